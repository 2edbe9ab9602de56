// How a matrix lies in memory, and how 32 of its values become vectors. Knows layouts, no products.
//
// Rows (out-channels) lie in tiles of 32. Floats lie a tile's columns one after the other, codes four columns at a time:
//     float32, bfloat16, float16 [tiles, K, 32]
//     codes of 8 bits [tiles, K / 4, 32, 4], of 4 bits [tiles, K / 4, 16, 4] (row i low, row i + 16 high)
//     scale, offset [tiles, K / group, 32]: float16 or float32; a value is scale * code + offset
// So a broadcast input times those vectors serves 32 outputs, without a sum across lanes.
#pragma once

#include "vec.h"

namespace cortex {

constexpr int TILE = 32;
constexpr int PARTS = TILE / LANES;  // vectors of a column of a tile
// Bytes ahead of a stream that are asked for: the hardware's own prefetching stops at the end of every 4 KiB page.
constexpr int64_t AHEAD = 1536;

struct Column {
  vf part[PARTS];
};

// `part(i)` for every vector of a column.
template <class Part>
inline Column column_of(const Part& part) {
  Column column;
  for (int i = 0; i < PARTS; ++i) column.part[i] = part(i);
  return column;
}

// Of each kind: BYTES of a tile's column, and `at(p, c)`, column c of the COLUMNS that lie together at p.
struct Float32 {
  static constexpr int64_t BYTES = 4 * TILE, COLUMNS = 1;
  static constexpr bool CODED = false;
  static Column at(const uint8_t* p, int = 0) {
    return column_of([&](int i) { return load<vf>(p + 4 * LANES * i); });
  }
};

struct Bfloat16 {
  static constexpr int64_t BYTES = 2 * TILE, COLUMNS = 1;
  static constexpr bool CODED = false;
  static Column at(const uint8_t* p, int = 0) {
    return column_of([&](int i) { return from_bf16(load<v16>(p + 2 * LANES * i)); });
  }
};

struct Float16 {
  static constexpr int64_t BYTES = 2 * TILE, COLUMNS = 1;
  static constexpr bool CODED = false;
  static Column at(const uint8_t* p, int = 0) {
    return column_of([&](int i) { return from_half(load<v16>(p + 2 * LANES * i)); });
  }
};

struct Int8 {
  static constexpr int64_t BYTES = TILE, COLUMNS = 4;
  static constexpr bool CODED = true;
  static Column at(const uint8_t* p, int c) {
    return column_of([&](int i) { return to_float(load<vi>(p + 4 * LANES * i) << (24 - 8 * c) >> 24); });
  }
};

struct Int4 {
  static constexpr int64_t BYTES = TILE / 2, COLUMNS = 4;
  static constexpr bool CODED = true;
  static Column at(const uint8_t* p, int c) {
    Column column;
    for (int i = 0; i < PARTS / 2; ++i) {
      const vi both = load<vi>(p + 4 * LANES * i) >> (8 * c);
      column.part[i] = to_float(both & 15);
      column.part[PARTS / 2 + i] = to_float(both >> 4 & 15);
    }
    return column;
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

  static void ask_ahead(const uint8_t* at) {
    for (int64_t line = 0; line < Codes::BYTES * Codes::COLUMNS; line += 64) __builtin_prefetch(at + AHEAD + line);
  }

  // Calls body(k, values of the tile's 32 rows at column k) for every column, in order.
  template <int TILES, class Body>
  void each(int64_t first, const Body& body) const {
    const int64_t groups = Codes::CODED ? columns / group : 1, width = step();
    for (int64_t g = 0; g < groups; ++g) {
      Column scales[TILES], offsets[TILES];
      for (int t = 0; t < TILES; ++t) {
        if constexpr (Codes::CODED) {
          const int64_t at = ((first + t) * groups + g) * ScaleT::BYTES;
          scales[t] = ScaleT::at(scale + at);
          if constexpr (OFFSET) offsets[t] = ScaleT::at(offset + at);
        }
      }
      for (int64_t k = g * width; k < (g + 1) * width; k += Codes::COLUMNS) {
        for (int c = 0; c < Codes::COLUMNS; ++c) {
          Column values[TILES];
          for (int t = 0; t < TILES; ++t) {
            const uint8_t* at = tile(first + t) + k * Codes::BYTES;
            if (c == 0) ask_ahead(at);
            values[t] = Codes::at(at, c);
            for (int i = 0; i < PARTS; ++i) {
              if constexpr (Codes::CODED) values[t].part[i] *= scales[t].part[i];
              if constexpr (Codes::CODED && OFFSET) values[t].part[i] += offsets[t].part[i];
            }
          }
          body(k + c, values);
        }
      }
    }
  }

  // The tile as float32 [columns, 32], which is a Float32 matrix of one tile.
  void expand(int64_t index, float* to) const {
    each<1>(index, [&](int64_t k, const Column* v) {
      for (int i = 0; i < PARTS; ++i) store(to + k * TILE + i * LANES, v->part[i]);
    });
  }
};

}  // namespace cortex
