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
constexpr int WORD = 4;              // columns of codes that lie together
// Bytes ahead of a stream that are asked for: the hardware's own prefetching stops at the end of every 4 KiB page.
constexpr int64_t AHEAD = 1536;

struct Column {
  vf part[PARTS];
};

// Of each kind of floats: BYTES of a tile's column, and its vectors.
struct Float32 {
  static constexpr int64_t BYTES = 4 * TILE;
  static vf part(const uint8_t* p, int i) { return load<vf>(p + 4 * LANES * i); }
};

struct Bfloat16 {
  static constexpr int64_t BYTES = 2 * TILE;
  static vf part(const uint8_t* p, int i) { return from_bf16(load<v16>(p + 2 * LANES * i)); }
};

struct Float16 {
  static constexpr int64_t BYTES = 2 * TILE;
  static vf part(const uint8_t* p, int i) { return from_half(load<v16>(p + 2 * LANES * i)); }
};

// Two vectors of outputs of a word as 16-bit integers: in each lane columns 0 and 2 of a row, and columns 1 and 3.
struct Pairs {
  vs even[2], odd[2];
};

struct Int8 {
  static constexpr int64_t BYTES = TILE;  // of a column
  static int code(const uint8_t* word, int64_t row, int c) { return static_cast<int8_t>(word[WORD * row + c]); }
  // The tile's vectors 2 * strip and the next.
  static constexpr int part(int strip, int i) { return 2 * strip + i; }
  static Pairs pairs(const uint8_t* word, int strip) {
    Pairs pairs;
    for (int i = 0; i < 2; ++i) {
      const vs v = load<vs>(word + 4 * LANES * part(strip, i));
      pairs.even[i] = v << 8 >> 8;
      pairs.odd[i] = v >> 8;
    }
    return pairs;
  }
};

struct Int4 {
  static constexpr int64_t BYTES = TILE / 2;
  static int code(const uint8_t* word, int64_t row, int c) {
    return word[WORD * (row % (TILE / 2)) + c] >> (row < TILE / 2 ? 0 : 4) & 15;
  }
  // The tile's vector `strip` and that half a tile after it.
  static constexpr int part(int strip, int i) { return strip + i * (PARTS / 2); }
  static Pairs pairs(const uint8_t* word, int strip) {
    const vus v = load<vus>(word + 4 * LANES * strip);
    const vus even[2] = {v & 15, v >> 4 & 15}, odd[2] = {v >> 8 & 15, v >> 12};
    Pairs pairs;
    for (int i = 0; i < 2; ++i) {
      pairs.even[i] = reinterpret_cast<vs>(even[i]);
      pairs.odd[i] = reinterpret_cast<vs>(odd[i]);
    }
    return pairs;
  }
};

// A matrix of floats.
template <class Values>
struct Plain {
  const uint8_t* values;
  int64_t columns;

  const uint8_t* tile(int64_t index) const { return values + index * columns * Values::BYTES; }

  // Calls body(k, values of the tiles' 32 rows at column k) for every column, in order.
  template <int TILES, class Body>
  void each(int64_t first, const Body& body) const {
    for (int64_t k = 0; k < columns; ++k) {
      Column values_of[TILES];
      for (int t = 0; t < TILES; ++t) {
        const uint8_t* at = tile(first + t) + k * Values::BYTES;
        __builtin_prefetch(at + AHEAD);
        for (int i = 0; i < PARTS; ++i) values_of[t].part[i] = Values::part(at, i);
      }
      body(k, values_of);
    }
  }

  // The tile as float32 [columns, 32], which is a Float32 matrix of one tile.
  void expand(int64_t index, float* to) const {
    each<1>(index, [&](int64_t k, const Column* v) {
      for (int i = 0; i < PARTS; ++i) store(to + k * TILE + i * LANES, v->part[i]);
    });
  }

  // One row as float32 [columns].
  void row(int64_t index, float* to) const {
    const int64_t inside = index % TILE;
    for (int64_t k = 0; k < columns; ++k)
      to[k] = Values::part(tile(index / TILE) + k * Values::BYTES, static_cast<int>(inside / LANES))[inside % LANES];
  }
};

// A matrix of codes. Scales are Float16 or Float32; OFFSET says whether values have one.
template <class CodesT, class ScaleT, bool OFFSET>
struct Coded {
  using Codes = CodesT;
  static constexpr bool OFFSETS = OFFSET;
  const uint8_t* codes;
  const uint8_t* scale;
  const uint8_t* offset;
  int64_t columns, group;

  const uint8_t* tile(int64_t index) const { return codes + index * columns * Codes::BYTES; }
  // Of a tile's 32 rows: where those of a group are, and what they are as vectors.
  int64_t place(int64_t index, int64_t group_number) const { return (index * (columns / group) + group_number) * ScaleT::BYTES; }
  vf scale_at(int64_t place, int part) const { return ScaleT::part(scale + place, part); }
  vf offset_at(int64_t place, int part) const { return ScaleT::part(offset + place, part); }

  // One row as float32 [columns]. The product of a scale and a code is exact: it does not matter whether the sum is fused.
  void row(int64_t index, float* to) const {
    const int64_t number = index / TILE, inside = index % TILE;
    for (int64_t g = 0; g < columns; g += group) {
      const int64_t at = place(number, g / group);
      const int part = static_cast<int>(inside / LANES), lane = static_cast<int>(inside % LANES);
      const float by = scale_at(at, part)[lane];
      float more = 0;
      if constexpr (OFFSET) more = offset_at(at, part)[lane];
      for (int64_t k = g; k < g + group; ++k) {
        const uint8_t* word = tile(number) + k / WORD * WORD * Codes::BYTES;
        to[k] = static_cast<float>(Codes::code(word, inside, static_cast<int>(k % WORD))) * by + more;
      }
    }
  }
};

}  // namespace cortex
