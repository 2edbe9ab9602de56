// How a matrix lies in memory, and how 32 of its values become two vectors. Knows layouts, no products.
//
// Rows (out-channels) lie in tiles of 32, a tile's columns one after the other:
//     codes [tiles, K, 32]: float32, bfloat16, float16, int8, or two 4-bit codes to a byte [tiles, K, 16] (row i low, row i + 16 high)
//     scale, offset [tiles, K / group, 32]: float16 or float32; a value is scale * code + offset
// So a broadcast input times two vectors serves 32 outputs, without a sum across lanes.
#pragma once

#include "vec.h"

namespace cortex {

constexpr int TILE = 2 * LANES;
// Bytes ahead of a stream that are asked for: the hardware's own prefetching stops at the end of every 4 KiB page.
constexpr int64_t AHEAD = 1536;

struct Pair {
  vf a, b;
};

struct Float32 {
  static constexpr int64_t BYTES = 4 * TILE;
  static constexpr bool CODED = false;
  static Pair at(const uint8_t* p) { return {load<vf>(p), load<vf>(p + 64)}; }
};

struct Bfloat16 {
  static constexpr int64_t BYTES = 2 * TILE;
  static constexpr bool CODED = false;
  static Pair at(const uint8_t* p) { return {from_bf16(load<v16>(p)), from_bf16(load<v16>(p + 32))}; }
};

struct Float16 {
  static constexpr int64_t BYTES = 2 * TILE;
  static constexpr bool CODED = false;
  static Pair at(const uint8_t* p) { return {from_half(load<v16>(p)), from_half(load<v16>(p + 32))}; }
};

struct Int8 {
  static constexpr int64_t BYTES = TILE;
  static constexpr bool CODED = true;
  static Pair at(const uint8_t* p) { return {to_float(widen(load<v8>(p))), to_float(widen(load<v8>(p + 16)))}; }
};

struct Int4 {
  static constexpr int64_t BYTES = TILE / 2;
  static constexpr bool CODED = true;
  static Pair at(const uint8_t* p) {
    const vi both = widen(load<vu8>(p));
    return {to_float(both & 15), to_float(both >> 4)};
  }
};

// One matrix. Scales are Float16 or Float32; OFFSET says whether values have one.
template <class CodesT, class ScaleT, bool OFFSET>
struct Weights {
  using Codes = CodesT;
  const uint8_t* codes;
  const uint8_t* scale;
  const uint8_t* offset;
  int64_t columns, group;

  const uint8_t* tile(int64_t index) const { return codes + index * columns * Codes::BYTES; }
  int64_t step() const { return Codes::CODED ? group : columns; }

  // Calls body(k, values of the tile's 32 rows at column k) for every column, in order.
  template <int TILES, class Body>
  void each(int64_t first, const Body& body) const {
    const int64_t groups = Codes::CODED ? columns / group : 1, width = step();
    for (int64_t g = 0; g < groups; ++g) {
      Pair scales[TILES], offsets[TILES];
      for (int t = 0; t < TILES; ++t) {
        if constexpr (Codes::CODED) {
          const int64_t at = ((first + t) * groups + g) * ScaleT::BYTES;
          scales[t] = ScaleT::at(scale + at);
          if constexpr (OFFSET) offsets[t] = ScaleT::at(offset + at);
        }
      }
      for (int64_t k = g * width; k < (g + 1) * width; ++k) {
        Pair values[TILES];
        for (int t = 0; t < TILES; ++t) {
          const uint8_t* at = tile(first + t) + k * Codes::BYTES;
          __builtin_prefetch(at + AHEAD);
          values[t] = Codes::at(at);
          if constexpr (Codes::CODED) {
            values[t].a *= scales[t].a;
            values[t].b *= scales[t].b;
          }
          if constexpr (Codes::CODED && OFFSET) {
            values[t].a += offsets[t].a;
            values[t].b += offsets[t].b;
          }
        }
        body(k, values);
      }
    }
  }

  // The tile as float32 [columns, 32], which is a Float32 matrix of one tile.
  void expand(int64_t index, float* to) const {
    each<1>(index, [&](int64_t k, const Pair* v) {
      store(to + k * TILE, v->a);
      store(to + k * TILE + LANES, v->b);
    });
  }
};

}  // namespace cortex
