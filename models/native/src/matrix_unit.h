// The same products by AMX, a unit of the processor that multiplies tiles of bytes. Knows tiles and rows, nothing of XLA.
//
// Each x is 256 * high + low, two bytes, so a block of columns takes two products of tiles, and gives the same integers as
// products by vectors do. What is done with them is the same, too: a row's bits do not depend on which computed it.
#pragma once

#include "integers.h"

#if defined(__AMX_INT8__) && defined(__AVX512F__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

namespace cortex {

constexpr int UNIT_ROWS = 16;            // of a tile of the unit, which are 64 bytes wide
constexpr int64_t LEAST_UNIT_ROWS = 24;  // from so many rows on it is faster than vectors

// Whether this process may use it. Linux gives the state's memory to those who ask.
inline bool unit_there() {
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
  static const bool there = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return there;
}

// Tiles 0 to 3 are sums [ROWS, 16], 4 and 5 high and low bytes of x [ROWS, width], 6 codes [width / 4, 16 rows of 4].
struct alignas(64) UnitConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  UnitConfig(int row_count, int64_t width) {
    for (int tile = 0; tile < 6; ++tile) {
      bytes[tile] = static_cast<uint16_t>(tile < 4 ? 64 : width);
      rows[tile] = static_cast<uint8_t>(row_count);
    }
    bytes[6] = 64;
    rows[6] = static_cast<uint8_t>(width / WORD);
  }
};

// ROWS rows of one block of columns as the unit reads them, then as in `PairRows`.
template <int ROWS>
struct PlaneRows {
  alignas(64) int8_t high[ROWS][WIDEST];
  uint8_t low[ROWS][WIDEST];
  float scale[ROWS], total[ROWS];

  void put(int64_t row, const Rounded& block, bool totals) {
    for (int i = 0; i < BLOCK_VECTORS / 2; ++i) {
      store(high[row] + i * 2 * LANES, __builtin_convertvector(block.value[i] >> 8, v8));
      store(low[row] + i * 2 * LANES, __builtin_convertvector(block.value[i], v8));
    }
    scale[row] = block.scale;
    total[row] = totals ? block.scale * static_cast<float>(sum_of(block)) : 0.0f;
  }
};

// Codes as the unit reads them: of each half of a tile [columns / 4, 16 rows of 4], rows `stride` bytes apart.
struct UnitCodes {
  const uint8_t* half[2];
  int64_t stride;
};

constexpr int64_t unit_bytes(const Int4&, int64_t columns) { return columns * TILE; }
constexpr int64_t unit_bytes(const Int8&, int64_t) { return 0; }

inline UnitCodes unit_codes(const Int8&, const uint8_t* tile, int64_t, uint8_t*) { return {{tile, tile + 64}, 128}; }

// Two to a byte they are unfolded into `room`.
inline UnitCodes unit_codes(const Int4&, const uint8_t* tile, int64_t columns, uint8_t* room) {
  uint8_t* high = room + columns * (TILE / 2);
  for (int64_t at = 0; at < columns * Int4::BYTES; at += 64) {
    __builtin_prefetch(tile + at + AHEAD);
    const vi v = load<vi>(tile + at);
    store(room + at, v & 0x0f0f0f0f);
    store(high + at, v >> 4 & 0x0f0f0f0f);
  }
  return {{room, high}, 64};
}

// What the unit made of a block of columns. There are two, in tiles 0 and 1 and in 2 and 3.
struct alignas(64) UnitSums {
  int32_t high[UNIT_ROWS][LANES], low[UNIT_ROWS][LANES];
};

template <int ODD>
inline void unit_multiply(const uint8_t* codes, int64_t stride, const int8_t* high, const uint8_t* low) {
  _tile_loadd(6, codes, stride);
  _tile_loadd(4, high, WIDEST);
  _tile_loadd(5, low, WIDEST);
  if constexpr (ODD) {
    _tile_zero(2);
    _tile_zero(3);
    _tile_dpbssd(2, 4, 6);
    _tile_dpbusd(3, 5, 6);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_dpbssd(0, 4, 6);
    _tile_dpbusd(1, 5, 6);
  }
}

template <int ODD>
inline void unit_store(UnitSums& to) {
  if constexpr (ODD) {
    _tile_stored(2, to.high, 4 * LANES);
    _tile_stored(3, to.low, 4 * LANES);
  } else {
    _tile_stored(0, to.high, 4 * LANES);
    _tile_stored(1, to.low, 4 * LANES);
  }
}

// acc + what by_strips adds for a block. 256 * high + low is rounded once, as the conversion of the whole integer is.
template <int ROWS, class W>
inline void take(const W& w, int64_t place, int half, const UnitSums& from, const PlaneRows<ROWS>& x, vf* acc) {
  const vf scale = w.scale_at(place, half);
  vf offset{};
  if constexpr (W::OFFSETS) offset = w.offset_at(place, half);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    const vf part = to_float(load<vi>(from.high[r])) * 256.0f + to_float(load<vi>(from.low[r]));
    acc[r] += part * (scale * x.scale[r]);
    if constexpr (W::OFFSETS) acc[r] += offset * x.total[r];
  }
}

// ROWS rows times half a tile: while the unit multiplies a block, the sums of the one before go to memory, and vectors take
// those of the one before that.
template <int ROWS, class W>
inline void by_unit(const W& w, int64_t tile, int half, const UnitCodes& codes, const PlaneRows<ROWS>* x, int64_t width, float (*sums)[TILE]) {
  const int64_t blocks = w.columns / width, blocks_of_group = w.group / width;
  const int64_t step = width / WORD * codes.stride, each = w.place(0, 1);
  UnitSums found[2];
  vf acc[ROWS] = {};
  int64_t place = w.place(tile, 0), left = blocks_of_group;
  const auto take_next = [&](int64_t b, const UnitSums& from) __attribute__((always_inline)) {
    take<ROWS>(w, place, half, from, x[b], acc);
    if (--left == 0) {
      left = blocks_of_group;
      place += each;
    }
  };
  const auto stage = [&](int64_t b, auto parity) __attribute__((always_inline)) {
    constexpr int ODD = decltype(parity)::value;
    if (b + 1 < blocks) unit_multiply<1 - ODD>(codes.half[half] + (b + 1) * step, codes.stride, x[b + 1].high[0], x[b + 1].low[0]);
    unit_store<ODD>(found[ODD]);
    if (b > 0) take_next(b - 1, found[1 - ODD]);
  };
  unit_multiply<0>(codes.half[half], codes.stride, x->high[0], x->low[0]);
  for (int64_t b = 0; b < blocks; b += 2) {
    stage(b, std::integral_constant<int, 0>{});
    if (b + 1 < blocks) stage(b + 1, std::integral_constant<int, 1>{});
  }
  take_next(blocks - 1, found[(blocks - 1) % 2]);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) store(sums[r] + half * LANES, acc[r]);
}

// A product with codes, of ROWS rows at a time.
template <int ROWS, class W>
struct ByUnit {
  const Product& p;
  const W& w;
  Blocks<ROWS> blocks{p.rows};
  int64_t width = block_of(w.group), each = p.columns / width;

  int64_t packed_floats() const { return blocks.count() * each * static_cast<int64_t>(sizeof(PlaneRows<ROWS>) / sizeof(float)); }
  PlaneRows<ROWS>* packed(float* all, int64_t b) const { return reinterpret_cast<PlaneRows<ROWS>*>(all) + b * each; }
  void pack(int64_t b, float* all) const {
    pack_rounded<ROWS>(p, width, b * ROWS, blocks.rows_of(b), W::OFFSETS, packed(all, b));
  }

  void two_tiles(int64_t begin, int64_t tile, bool both, float* all) const {
    using Codes = typename W::Codes;
    const int64_t room = unit_bytes(Codes{}, p.columns);
    uint8_t* unfolded = reinterpret_cast<uint8_t*>(thread_scratch().get(2 * room / static_cast<int64_t>(sizeof(float))));
    UnitCodes codes[2];
    for (int t = 0; t < 1 + both; ++t)
      codes[t] = unit_codes(Codes{}, w.tile(begin + tile + t), p.columns, unfolded + t * room);
    asm volatile("" ::: "memory");  // the unit reads what was written here
    const UnitConfig config(ROWS, width);
    _tile_loadconfig(&config);
    Sums<ROWS> sums;
    for (int64_t b = 0; b < blocks.count(); ++b) {
      for (int t = 0; t < 1 + both; ++t)
        for (int half = 0; half < 2; ++half)
          by_unit<ROWS>(w, begin + tile + t, half, codes[t], packed(all, b), width, sums.of[t]);
      sums.put(p, tile, both, b * ROWS, blocks.rows_of(b));
    }
    _tile_release();
  }
};

// Whether it calls use(way): where the unit is there and faster.
template <class C, class S, bool OFFSET, class Use>
bool with_unit(const Product& p, const Coded<C, S, OFFSET>& w, const Use& use) {
  using W = Coded<C, S, OFFSET>;
  if (p.rows < LEAST_UNIT_ROWS || !unit_there()) return false;
  const int64_t rows = even_rows(p.rows, UNIT_ROWS);
  if (rows <= 12) use(ByUnit<12, W>{p, w});
  else use(ByUnit<16, W>{p, w});
  return true;
}

}  // namespace cortex

#else

namespace cortex {

template <class W, class Use>
bool with_unit(const Product&, const W&, const Use&) {
  return false;
}

}  // namespace cortex
#endif
