// Products with a matrix of floats. Knows tiles and rows, nothing of XLA.
//
// Every output is one chain of fused multiply-adds over the columns in ascending order, whatever the number of rows, the
// thread or the copy of the loop: a row's result is the same bits alone and among others.
#pragma once

#include <type_traits>

#include "product.h"
#include "scratch.h"
#include "weights.h"

namespace cortex {

constexpr int MOST_ROWS = 12;  // 24 accumulators, which leaves 8 of AVX-512's registers
// Up to FEW_BLOCKS blocks of at most FEW_ROWS rows values are widened once for each block; for more, tiles are expanded.
#if defined(__AVX512F__)
constexpr bool NARROW = false;
constexpr int64_t FEW_BLOCKS = 2;
constexpr int FEW_ROWS = MOST_ROWS;
#else
// With half as many registers, of half the width or a quarter, 6 rows are computed at a time, and PANEL outputs.
constexpr bool NARROW = true;
constexpr int64_t FEW_BLOCKS = 4;
constexpr int FEW_ROWS = 6;
#endif
constexpr int PANEL = 16;

// Rows [first, first + count) of x as [columns, ROWS], zeros past `count`: the product then reads one stream.
template <int ROWS>
inline void pack(const Product& p, int64_t first, int64_t count, float* to) {
  for (int64_t r = 0; r < ROWS; ++r) {
    if (r >= count) {
      for (int64_t k = 0; k < p.columns; ++k) to[k * ROWS + r] = 0;
      continue;
    }
    const Row row(p, first + r);
    for (int64_t k = 0; k < p.columns; ++k) to[k * ROWS + r] = row.at(k);
  }
}

// TILES tiles times ROWS packed rows, of which `count` exist; of each tile COUNT vectors of outputs.
template <int TILES, int ROWS, int FROM = 0, int COUNT = PARTS, class W>
inline void block(const Product& p, const W& w, int64_t from, int64_t tile, const float* x, int64_t first, int64_t count) {
  vf acc[ROWS][TILES][COUNT] = {};
  w.template each<TILES>(from, [&](int64_t k, const Column* v) {
    for (int r = 0; r < ROWS; ++r) {
      const vf xr = splat(x[k * ROWS + r]);
      for (int t = 0; t < TILES; ++t)
        for (int i = 0; i < COUNT; ++i) acc[r][t][i] += xr * v[t].part[FROM + i];
    }
  });
  for (int r = 0; r < ROWS && r < count; ++r)
    for (int i = 0; i < COUNT; ++i) {
      const int at = (FROM + i) * LANES;
      if (p.gated()) {
        if constexpr (TILES == 2) put_gated(p, first + r, tile / 2 * TILE + at, acc[r][0][i], acc[r][1][i]);
        continue;
      }
      for (int t = 0; t < TILES; ++t) put(p, first + r, (tile + t) * TILE + at, acc[r][t][i]);
    }
}

// The same of whole tiles, one after the other, in as many passes as the sums need to stay in narrow registers.
template <int TILES, int ROWS, class W>
inline void in_passes(const Product& p, const W& w, int64_t begin, int64_t tile, const float* x, int64_t first, int64_t count) {
  constexpr int COUNT = (ROWS <= 2 ? TILE : PANEL) / LANES / TILES;
  const auto passes = [&](auto... pass) {
    (block<TILES, ROWS, decltype(pass)::value * COUNT, COUNT>(p, w, begin + tile, tile, x, first, count), ...);
  };
  static_assert(PARTS / COUNT == 1 || PARTS / COUNT == 2 || PARTS / COUNT == 4);
  using std::integral_constant;
  if constexpr (PARTS / COUNT == 1)
    passes(integral_constant<int, 0>{});
  else if constexpr (PARTS / COUNT == 2)
    passes(integral_constant<int, 0>{}, integral_constant<int, 1>{});
  else
    passes(integral_constant<int, 0>{}, integral_constant<int, 1>{}, integral_constant<int, 2>{}, integral_constant<int, 3>{});
}

// Expanded tiles, as blocks of rows read them. Wide registers take a tile as it is. Narrow ones take panels of PANEL outputs
// [panels, columns, PANEL], so that what a block reads is one stream; of a gated pair half a panel is gates and half ups.
template <bool GATED, class W>
inline void expand(const W& w, int64_t tile, float* flat) {
  constexpr int TILES = GATED ? 2 : 1, WIDTH = PANEL / TILES;
  if constexpr (!NARROW) {
    for (int t = 0; t < TILES; ++t) w.expand(tile + t, flat + t * w.columns * TILE);
  } else {
    w.template each<TILES>(tile, [&](int64_t k, const Column* v) {
      for (int t = 0; t < TILES; ++t)
        for (int i = 0; i < PARTS; ++i) {
          const int at = i * LANES;
          store(flat + (at / WIDTH * w.columns + k) * PANEL + t * WIDTH + at % WIDTH, v[t].part[i]);
        }
    });
  }
}

// SUB of the ROWS rows times one panel.
template <bool GATED, int ROWS, int SUB>
inline void panel(const Product& p, const float* w, int64_t column, const float* x, int64_t first, int64_t count) {
  constexpr int VECTORS = PANEL / LANES, HALF = VECTORS / 2;
  vf acc[SUB][VECTORS] = {};
  for (int64_t k = 0; k < p.columns; ++k) {
    vf v[VECTORS];
    for (int i = 0; i < VECTORS; ++i) v[i] = load<vf>(w + k * PANEL + i * LANES);
    for (int r = 0; r < SUB; ++r) {
      const vf xr = splat(x[k * ROWS + r]);
      for (int i = 0; i < VECTORS; ++i) acc[r][i] += xr * v[i];
    }
  }
  for (int r = 0; r < SUB && r < count; ++r) {
    if constexpr (GATED)
      for (int i = 0; i < HALF; ++i) put_gated(p, first + r, column + i * LANES, acc[r][i], acc[r][HALF + i]);
    else
      for (int i = 0; i < VECTORS; ++i) put(p, first + r, column + i * LANES, acc[r][i]);
  }
}

// ROWS rows times the expanded tile `tile` and, of a gated pair, the next.
template <bool GATED, int ROWS>
inline void expanded_block(const Product& p, const float* flat, int64_t tile, const float* x, int64_t first, int64_t count) {
  if constexpr (!NARROW) {
    const Plain<Float32> plain{reinterpret_cast<const uint8_t*>(flat), p.columns};
    return block<GATED ? 2 : 1, ROWS>(p, plain, 0, tile, x, first, count);
  } else {
    constexpr int SUB = ROWS % 6 == 0 ? 6 : ROWS % 4 == 0 ? 4 : ROWS, WIDTH = GATED ? PANEL / 2 : PANEL;
    const int64_t column = (GATED ? tile / 2 : tile) * TILE;
    for (int i = 0; i * WIDTH < TILE; ++i)
      for (int r = 0; r < ROWS && r < count; r += SUB)
        panel<GATED, ROWS, SUB>(p, flat + i * p.columns * PANEL, column + i * WIDTH, x + r, first + r, count - r);
  }
}

// A product with floats, of ROWS rows at a time.
template <int ROWS, class W>
struct ByFloats {
  const Product& p;
  const W& w;
  Blocks<ROWS> blocks{p.rows};

  int64_t packed_floats() const { return blocks.count() * ROWS * p.columns; }
  float* packed(float* all, int64_t b) const { return all + b * ROWS * p.columns; }
  void pack(int64_t b, float* all) const { cortex::pack<ROWS>(p, b * ROWS, blocks.rows_of(b), packed(all, b)); }

  // Two tiles of outputs, or one where there is no second, of all packed rows. A matrix of a stack begins at tile `begin`.
  void two_tiles(int64_t begin, int64_t tile, bool both, float* all) const {
    // Two tiles at once: for one row, enough independent sums to hide their latency; for gated ones, gate and up.
    constexpr int TILES = ROWS <= 6 ? 2 : 1;
    if (ROWS <= 2 || (ROWS <= FEW_ROWS && blocks.count() <= FEW_BLOCKS)) {
      for (int64_t b = 0; b < blocks.count(); ++b) {
        const auto times = [&](auto tiles_at_once, int64_t at) {
          constexpr int N = decltype(tiles_at_once)::value;
          if constexpr (NARROW && ROWS > 1)
            in_passes<N, ROWS>(p, w, begin, at, packed(all, b), b * ROWS, blocks.rows_of(b));
          else
            block<N, ROWS>(p, w, begin + at, at, packed(all, b), b * ROWS, blocks.rows_of(b));
        };
        if constexpr (TILES == 2) {
          if (both && (p.gated() || !NARROW || ROWS == 1)) {
            times(std::integral_constant<int, 2>{}, tile);
            continue;
          }
        }
        times(std::integral_constant<int, 1>{}, tile);
        if (both) times(std::integral_constant<int, 1>{}, tile + 1);
      }
      return;
    }
    // Many rows: each tile is expanded once, and read from the cache for every block of them.
    float* flat = thread_scratch().get(2 * p.columns * TILE);
    const auto over_rows = [&](auto gated, int64_t at) {
      expand<decltype(gated)::value>(w, begin + at, flat);
      for (int64_t b = 0; b < blocks.count(); ++b)
        expanded_block<decltype(gated)::value, ROWS>(p, flat, at, packed(all, b), b * ROWS, blocks.rows_of(b));
    };
    if constexpr (TILES == 2 || NARROW) {
      if (p.gated()) return over_rows(std::true_type{}, tile);
    }
    over_rows(std::false_type{}, tile);
    if (both) over_rows(std::false_type{}, tile + 1);
  }
};

// Calls use(way) with the product in blocks of rows that fit so many. Even blocks: 16 rows are 8 + 8, not 12 + 4.
template <class Values, class Use>
void with_way(const Product& p, const Plain<Values>& w, const Use& use) {
  const bool few = NARROW && p.rows <= FEW_BLOCKS * FEW_ROWS;
  const int64_t rows = even_rows(p.rows, few || (p.gated() && !NARROW) ? 6 : MOST_ROWS);
  if (rows <= 1) return use(ByFloats<1, Plain<Values>>{p, w});
  if (rows <= 2) return use(ByFloats<2, Plain<Values>>{p, w});
  if (rows <= 4) return use(ByFloats<4, Plain<Values>>{p, w});
  if (rows <= 6) return use(ByFloats<6, Plain<Values>>{p, w});
  if (rows <= 8) return use(ByFloats<8, Plain<Values>>{p, w});
  return use(ByFloats<12, Plain<Values>>{p, w});
}

}  // namespace cortex
