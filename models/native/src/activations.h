// Rows of x as 16-bit integers with a scale for every 32 columns. Knows rows, no matrices.
//
// A block of at most 32 columns has the scale max |x| / 32767, and each x is the nearest integer times it: off by at most
// 2^-16 of the block's largest. Sums of products with codes are then integers, exact in whatever order and by whatever
// instruction: 32 columns of |code| <= 255 stay below 2^31.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>

#include "product.h"
#include "weights.h"

namespace cortex {

constexpr int WIDEST = 32, LEAST_BLOCK = 16;  // columns of a block; groups are multiples of the least

// Of a matrix whose groups have so many columns: what divides both.
inline int64_t block_of(int64_t group) { return std::gcd(group, int64_t{WIDEST}); }

constexpr int BLOCK_VECTORS = WIDEST / LANES;

// One block of one row.
struct Rounded {
  vs value[BLOCK_VECTORS / 2];  // zeros past the block's columns
  float scale;
};

// What is not finite makes a scale that is not either, and so are the sums.
inline Rounded round_block(const vf (&x)[BLOCK_VECTORS]) {
  vi most{};
  for (int i = 0; i < BLOCK_VECTORS; ++i) most = max(most, reinterpret_cast<vi>(x[i]) & 0x7fffffff);
  const int32_t bits = max(most);
  float top;
  std::memcpy(&top, &bits, sizeof top);
  Rounded block;
  block.scale = top * (1.0f / 32767);
  const float by = top > 1e-30f ? 32767 / top : 0.0f;
  vi nearest[BLOCK_VECTORS];
  // 1.5 * 2^23 more is a number whose last bits are the nearest integer.
  for (int i = 0; i < BLOCK_VECTORS; ++i) nearest[i] = reinterpret_cast<vi>(x[i] * by + 12582912.0f);
  for (int i = 0; i < BLOCK_VECTORS; i += 2) block.value[i / 2] = narrow(nearest[i], nearest[i + 1]);
  return block;
}

inline int32_t sum_of(const Rounded& block) {
  vi sums{};
  for (const vs value : block.value) sums = dot(sums, value, vs{} + int16_t{1});
  return sum(sums);
}

// Calls body(b, block) for every block of `width` columns of a row, in order.
template <class Body>
inline void each_block(const Row& row, int64_t columns, int64_t width, const Body& body) {
  for (int64_t b = 0; b < columns / width; ++b) {
    vf x[BLOCK_VECTORS];
    if (width == WIDEST) {
      for (int i = 0; i < BLOCK_VECTORS; ++i) x[i] = row.vector(b * WIDEST + i * LANES);
    } else {
      float some[WIDEST] = {};
      for (int64_t k = 0; k < width; ++k) some[k] = row.at(b * width + k);
      for (int i = 0; i < BLOCK_VECTORS; ++i) x[i] = load<vf>(some + i * LANES);
    }
    body(b, round_block(x));
  }
}

// ROWS rows of one block, as products by vectors read them: of each row for every word of a matrix's columns (0, 2) and
// (1, 3), then what the sums are multiplied by, and what the offsets are.
template <int ROWS>
struct PairRows {
  int32_t word[ROWS][WIDEST / 2];
  float scale[ROWS], total[ROWS];

  void put(int64_t row, const Rounded& block, bool totals) {
    for (int i = 0; i < BLOCK_VECTORS / 2; ++i) {
      const v64 v = reinterpret_cast<v64>(block.value[i]);
      store(word[row] + i * LANES, (v & 0xffff00000000ffff) | (v << 16 & 0x0000ffff00000000) | (v >> 16 & 0x00000000ffff0000));
    }
    scale[row] = block.scale;
    if (totals) total[row] = block.scale * static_cast<float>(sum_of(block));
  }
};

// Rows [first, first + count) of x, ROWS rows of a block after the other; those past `count` are nothing times anything.
template <int ROWS, class Block>
inline void pack_rounded(const Product& p, int64_t width, int64_t first, int64_t count, bool totals, Block* to) {
  for (int64_t b = 0; b < p.columns / width && count < ROWS; ++b) {
    std::fill_n(to[b].scale, ROWS, 0.0f);
    std::fill_n(to[b].total, ROWS, 0.0f);
  }
  for (int64_t r = 0; r < count; ++r)
    each_block(Row(p, first + r), p.columns, width, [&](int64_t b, const Rounded& block) { to[b].put(r, block, totals); });
}

}  // namespace cortex
