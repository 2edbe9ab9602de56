// Products with a matrix of codes, by vectors of integers. Knows tiles and rows, nothing of XLA.
//
// Of every block of columns the sum of products is an exact integer. An output is one chain of fused multiply-adds of those
// sums, times scales, over the blocks in ascending order, offsets after the sums they belong to. So a row's result is the
// same bits alone and among others, on whatever thread, by whatever instructions.
#pragma once

#include "activations.h"
#include "scratch.h"
#include "weights.h"

namespace cortex {

// Rows whose sums of two vectors fit the registers.
#if defined(__AVX512F__)
constexpr int SUM_ROWS = 12;
#elif defined(__AVX2__)
constexpr int SUM_ROWS = 4;
#else
constexpr int SUM_ROWS = 8;
#endif

constexpr int STRIPS = PARTS / 2;  // of a tile: two vectors of outputs each

// Sums of two tiles' outputs, or one's, for a block of rows.
template <int ROWS>
struct Sums {
  alignas(64) float of[2][ROWS][TILE];

  // Outputs from tile `tile` on.
  void put(const Product& p, int64_t tile, bool both, int64_t first, int64_t count) const {
    for (int64_t r = 0; r < count; ++r)
      for (int i = 0; i < TILE; i += LANES) {
        const vf one = load<vf>(of[0][r] + i), two = load<vf>(of[1][r] + i);
        if (p.gated()) {
          put_gated(p, first + r, tile / 2 * TILE + i, one, two);
          continue;
        }
        cortex::put(p, first + r, tile * TILE + i, one);
        if (both) cortex::put(p, first + r, (tile + 1) * TILE + i, two);
      }
  }
};

// ROWS rows times one tile. Loops over rows are unrolled, so that the sums stay in registers.
template <int ROWS, class W>
inline void by_strips(const W& w, int64_t tile, const PairRows<ROWS>* all, int64_t width, float (*sums)[TILE]) {
  using Codes = typename W::Codes;
  const int64_t blocks_of_group = w.group / width, first = w.place(tile, 0), each = w.place(0, 1);
  for (int strip = 0; strip < STRIPS; ++strip) {
    vf acc[ROWS][2] = {};
    const uint8_t* word = w.tile(tile);
    const PairRows<ROWS>* x = all;
    for (int64_t place = first; place < first + w.columns / w.group * each; place += each) {
      for (int64_t b = 0; b < blocks_of_group; ++b, ++x) {
        vi part[ROWS][2] = {};
        for (int64_t j = 0; j < width / WORD; ++j, word += WORD * Codes::BYTES) {
          for (int line = 0; line < WORD * Codes::BYTES / STRIPS; line += 64) __builtin_prefetch(word + AHEAD + line);
          const Pairs pairs = Codes::pairs(word, strip);
#pragma GCC unroll 12
          for (int r = 0; r < ROWS; ++r) {
            const vs even = reinterpret_cast<vs>(splat(x->word[r][2 * j])), odd = reinterpret_cast<vs>(splat(x->word[r][2 * j + 1]));
            for (int i = 0; i < 2; ++i) part[r][i] = dot(dot(part[r][i], pairs.even[i], even), pairs.odd[i], odd);
          }
        }
        for (int i = 0; i < 2; ++i) {
          const vf scale = w.scale_at(place, Codes::part(strip, i));
#pragma GCC unroll 12
          for (int r = 0; r < ROWS; ++r) acc[r][i] += to_float(part[r][i]) * (scale * x->scale[r]);
          if constexpr (W::OFFSETS) {
            const vf offset = w.offset_at(place, Codes::part(strip, i));
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; ++r) acc[r][i] += offset * x->total[r];
          }
        }
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < 2; ++i) store(sums[r] + Codes::part(strip, i) * LANES, acc[r][i]);
  }
}

// A product with codes, of ROWS rows at a time.
template <int ROWS, class W>
struct ByIntegers {
  const Product& p;
  const W& w;
  Blocks<ROWS> blocks{p.rows};
  int64_t width = block_of(w.group), each = p.columns / width;

  int64_t packed_floats() const { return blocks.count() * each * static_cast<int64_t>(sizeof(PairRows<ROWS>) / sizeof(float)); }
  PairRows<ROWS>* packed(float* all, int64_t b) const { return reinterpret_cast<PairRows<ROWS>*>(all) + b * each; }
  void pack(int64_t b, float* all) const {
    pack_rounded<ROWS>(p, width, b * ROWS, blocks.rows_of(b), W::OFFSETS, packed(all, b));
  }

  void two_tiles(int64_t begin, int64_t tile, bool both, float* all) const {
    Sums<ROWS> sums;
    for (int64_t b = 0; b < blocks.count(); ++b) {
      for (int t = 0; t < 1 + both; ++t) by_strips<ROWS>(w, begin + tile + t, packed(all, b), width, sums.of[t]);
      sums.put(p, tile, both, b * ROWS, blocks.rows_of(b));
    }
  }
};

template <class C, class S, bool OFFSET, class Use>
void with_integers(const Product& p, const Coded<C, S, OFFSET>& w, const Use& use) {
  using W = Coded<C, S, OFFSET>;
  const int64_t rows = even_rows(p.rows, SUM_ROWS);
  if (rows <= 1) return use(ByIntegers<1, W>{p, w});
  if (rows <= 2) return use(ByIntegers<2, W>{p, w});
  if (rows <= 4) return use(ByIntegers<4, W>{p, w});
  if constexpr (SUM_ROWS > 4) {
    if (rows <= 6) return use(ByIntegers<6, W>{p, w});
    if (rows <= 8) return use(ByIntegers<8, W>{p, w});
    if constexpr (SUM_ROWS > 8) return use(ByIntegers<12, W>{p, w});
  }
}

}  // namespace cortex
