// Attention of new tokens over a paged pool: rotates, writes keys and values, mixes. Knows pages and rows, no weights.
//
//     keys [pages, K, H, page_size]: 16 keys of one dimension are one vector, so that scores need no sum across lanes
//     values [pages, K, page_size, H]
//
// The keys of a query are read in segments of SEGMENT positions that start at multiples of it, each with its own softmax,
// merged in ascending order (Dao et al. 2022, arXiv:2205.14135). What a query gets is the same bits whatever the page
// size, the chunk it came in, its neighbours and the thread.
#pragma once

#include "matmul.h"

namespace cortex {

constexpr int64_t SEGMENT = 128;

struct Attention {
  const float* qkv;  // [rows * chunk, K, G + 2, H]
  const float* cos;  // [rows * chunk, H / 2]
  const float* sin;
  const int32_t* table;  // [rows, table_width] page numbers
  const int32_t* start;  // [rows] position of a row's first token
  const int32_t* count;  // [rows] how many of its tokens are real
  float* keys;
  float* values;
  float* mixed;  // [rows * chunk, K, G, H]
  int64_t rows, chunk, table_width, kv_heads, group, width, page_size, window;
  float scale;

  int64_t page(int64_t row, int64_t position) const { return table[row * table_width + position / page_size]; }
  const float* keys_at(int64_t row, int64_t head, int64_t position) const {
    return keys + (page(row, position) * kv_heads + head) * width * page_size + position % page_size;
  }
  const float* values_at(int64_t row, int64_t head, int64_t position) const {
    return values + ((page(row, position) * kv_heads + head) * page_size + position % page_size) * width;
  }
};

inline void rotate(const float* x, const float* cos, const float* sin, int64_t half, float scale, float* y, int64_t stride) {
  for (int64_t i = 0; i < half; ++i) {
    const float first = x[i], second = x[i + half];
    y[i * stride] = (first * cos[i] - second * sin[i]) * scale;
    y[(i + half) * stride] = (second * cos[i] + first * sin[i]) * scale;
  }
}

// Queries, rotated and scaled, go to their places in `mixed`; keys and values into the pool.
inline void enter(const Attention& a, int64_t token) {
  const int64_t row = token / a.chunk, nth = token % a.chunk, half = a.width / 2;
  float* queries = a.mixed + token * a.kv_heads * a.group * a.width;
  if (nth >= a.count[row]) {
    std::memset(queries, 0, sizeof(float) * static_cast<size_t>(a.kv_heads * a.group * a.width));
    return;
  }
  const int64_t position = a.start[row] + nth;
  const float *cos = a.cos + token * half, *sin = a.sin + token * half;
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    const float* x = a.qkv + (token * a.kv_heads + head) * (a.group + 2) * a.width;
    for (int64_t g = 0; g < a.group; ++g)
      rotate(x + g * a.width, cos, sin, half, a.scale, queries + (head * a.group + g) * a.width, 1);
    rotate(x + a.group * a.width, cos, sin, half, 1.0f, const_cast<float*>(a.keys_at(row, head, position)), a.page_size);
    std::memcpy(const_cast<float*>(a.values_at(row, head, position)), x + (a.group + 1) * a.width,
                sizeof(float) * static_cast<size_t>(a.width));
  }
}

// What Q queries gather from some keys: the largest score, the sum of weights, the weighted values [Q, width].
template <int Q>
struct Gathered {
  float top[Q], total[Q];
  float* sum;
};

inline vi lanes_from(int64_t first) {
  vi lane;
  for (int i = 0; i < LANES; ++i) lane[i] = static_cast<int32_t>(first + i);
  return lane;
}

// Scores of keys [16 * block, + 16 * BLOCKS) into `score`, -inf where a key is not in [first, last).
template <int Q, int BLOCKS>
inline void score_keys(const Attention& a, const float* q, int64_t row, int64_t head, int64_t at, int64_t first, int64_t last,
                       float* score) {
  const float* k[BLOCKS];
  for (int b = 0; b < BLOCKS; ++b) k[b] = a.keys_at(row, head, at + b * LANES);
  vf acc[Q][BLOCKS] = {};
  for (int64_t h = 0; h < a.width; ++h)
    for (int b = 0; b < BLOCKS; ++b) {
      const vf key = load<vf>(k[b] + h * a.page_size);
      for (int g = 0; g < Q; ++g) acc[g][b] += key * splat(q[g * a.width + h]);
    }
  for (int b = 0; b < BLOCKS; ++b) {
    const vi lane = lanes_from(at + b * LANES);
    const vi seen = (lane >= static_cast<int32_t>(first)) & (lane < static_cast<int32_t>(last));
    for (int g = 0; g < Q; ++g)
      store(score + g * SEGMENT + (at + b * LANES) % SEGMENT, seen ? acc[g][b] : splat(-__builtin_inff()));
  }
}

template <int Q, int VECTORS>
inline void mix_values(const Attention& a, int64_t row, int64_t head, int64_t first, int64_t last, const float* weight,
                       int64_t h, float* sum) {
  vf acc[Q][VECTORS] = {};
  for (int64_t j = first; j < last;) {
    const float* v = a.values_at(row, head, j) + h;
    const int64_t end = (j / a.page_size + 1) * a.page_size < last ? (j / a.page_size + 1) * a.page_size : last;
    for (; j < end; ++j, v += a.width)
      for (int i = 0; i < VECTORS; ++i) {
        const vf value = load<vf>(v + i * LANES);
        for (int g = 0; g < Q; ++g) acc[g][i] += value * splat(weight[g * SEGMENT + j % SEGMENT]);
      }
  }
  for (int g = 0; g < Q; ++g)
    for (int i = 0; i < VECTORS; ++i) store(sum + g * a.width + h + i * LANES, acc[g][i]);
}

// Keys [first, last), all of one segment, as seen by Q queries of one kv head.
template <int Q>
void gather(const Attention& a, const float* q, int64_t row, int64_t head, int64_t first, int64_t last, Gathered<Q>& out) {
  alignas(64) float score[Q * SEGMENT];
  const int64_t from = first / LANES * LANES, to = (last + LANES - 1) / LANES * LANES;
  int64_t at = from;
  for (; at + 2 * LANES <= to; at += 2 * LANES) score_keys<Q, 2>(a, q, row, head, at, first, last, score);
  for (; at < to; at += LANES) score_keys<Q, 1>(a, q, row, head, at, first, last, score);
  const int64_t base = from % SEGMENT, size = to - from;
  for (int g = 0; g < Q; ++g) {
    float* s = score + g * SEGMENT + base;
    vf top = load<vf>(s);
    for (int64_t i = LANES; i < size; i += LANES) top = max(top, load<vf>(s + i));
    out.top[g] = max(top);
    vf total{};
    for (int64_t i = 0; i < size; i += LANES) {
      const vf weight = exp(load<vf>(s + i) - splat(out.top[g]));
      store(s + i, weight);
      total += weight;
    }
    out.total[g] = sum(total);
  }
  int64_t h = 0;
  for (; h + 4 * LANES <= a.width; h += 4 * LANES) mix_values<Q, 4>(a, row, head, first, last, score, h, out.sum);
  for (; h < a.width; h += LANES) mix_values<Q, 1>(a, row, head, first, last, score, h, out.sum);
}

// `into` and `more` (of later keys) together, in `into`.
inline void merge(float& top, float& total, float* sum, float more_top, float more_total, const float* more, int64_t width) {
  const float highest = top > more_top ? top : more_top;
  const vf old = exp(splat(top - highest)), fresh = exp(splat(more_top - highest));
  total = total * old[0] + more_total * fresh[0];
  top = highest;
  for (int64_t h = 0; h < width; h += LANES) store(sum + h, load<vf>(sum + h) * old + load<vf>(more + h) * fresh);
}

inline void finish(float* sum, float total, int64_t width, float* out) {
  for (int64_t h = 0; h < width; h += LANES) store(out + h, load<vf>(sum + h) / splat(total));
}

inline int64_t first_seen(const Attention& a, int64_t position) {
  return a.window > 0 && position >= a.window ? position - a.window + 1 : 0;
}

// Q query heads of one token over all its keys, one segment after the other.
template <int Q>
void attend_token(const Attention& a, int64_t token, int64_t head, int64_t g, float* scratch) {
  const int64_t row = token / a.chunk, last = a.start[row] + token % a.chunk + 1, first = first_seen(a, last - 1);
  float* q = a.mixed + ((token * a.kv_heads + head) * a.group + g) * a.width;
  float top[Q], total[Q] = {}, *sum = scratch;
  for (int i = 0; i < Q; ++i) top[i] = -__builtin_inff();
  std::memset(sum, 0, sizeof(float) * static_cast<size_t>(Q * a.width));
  for (int64_t at = first; at < last;) {
    const int64_t end = (at / SEGMENT + 1) * SEGMENT < last ? (at / SEGMENT + 1) * SEGMENT : last;
    Gathered<Q> part{{}, {}, scratch + Q * a.width};
    gather<Q>(a, q, row, head, at, end, part);
    for (int i = 0; i < Q; ++i)
      merge(top[i], total[i], sum + i * a.width, part.top[i], part.total[i], part.sum + i * a.width, a.width);
    at = end;
  }
  for (int i = 0; i < Q; ++i) finish(sum + i * a.width, total[i], a.width, q + i * a.width);
}

inline void attend_head(const Attention& a, int64_t token, int64_t head) {
  static thread_local Scratch memory;
  float* scratch = memory.get(8 * a.width);
  int64_t g = 0;
  for (; g + 4 <= a.group; g += 4) attend_token<4>(a, token, head, g, scratch);
  switch (a.group - g) {
    case 3: attend_token<3>(a, token, head, g, scratch); break;
    case 2: attend_token<2>(a, token, head, g, scratch); break;
    case 1: attend_token<1>(a, token, head, g, scratch); break;
    default: break;
  }
}

// One segment of one query head of a decoding row: top, total and sum go to `part`.
inline void attend_part(const Attention& a, int64_t row, int64_t head, int64_t first, int64_t last, float* part) {
  const int64_t stride = a.width + LANES;
  const float* q = a.mixed + (row * a.kv_heads + head) * a.group * a.width;
  for (int64_t g = 0; g < a.group;) {
    const auto run = [&](auto constant) {
      constexpr int Q = decltype(constant)::value;
      static thread_local Scratch memory;
      Gathered<Q> out{{}, {}, memory.get(Q * a.width)};
      gather<Q>(a, q + g * a.width, row, head, first, last, out);
      for (int i = 0; i < Q; ++i) {
        float* to = part + (g + i) * stride;
        to[0] = out.top[i];
        to[1] = out.total[i];
        std::memcpy(to + LANES, out.sum + i * a.width, sizeof(float) * static_cast<size_t>(a.width));
      }
      g += Q;
    };
    switch (a.group - g) {
      case 1: run(std::integral_constant<int, 1>{}); break;
      case 2: run(std::integral_constant<int, 2>{}); break;
      case 3: run(std::integral_constant<int, 3>{}); break;
      default: run(std::integral_constant<int, 4>{}); break;
    }
  }
}

// Decode: few queries with long pasts, so the segments of one query are shared out too.
inline void attend_rows(const Attention& a) {
  static thread_local Scratch memory;
  int64_t most = 0;
  for (int64_t row = 0; row < a.rows; ++row)
    if (a.count[row] > 0) most = std::max<int64_t>(most, a.start[row] + 1);
  const int64_t segments = (most + SEGMENT - 1) / SEGMENT, stride = a.group * (a.width + LANES);
  float* parts = memory.get((segments + 1) * a.rows * a.kv_heads * stride);
  const auto bounds = [&](int64_t row, int64_t segment) {
    const int64_t last = a.count[row] > 0 ? a.start[row] + 1 : 0, first = a.count[row] > 0 ? first_seen(a, last - 1) : 0;
    return std::pair<int64_t, int64_t>{std::max(first, segment * SEGMENT), std::min(last, (segment + 1) * SEGMENT)};
  };
  Team::instance().run(a.rows * a.kv_heads * segments, 1, [&](int64_t from, int64_t to) {
    for (int64_t item = from; item < to; ++item) {
      const int64_t segment = item % segments, pair = item / segments;
      const auto [first, last] = bounds(pair / a.kv_heads, segment);
      if (first < last) attend_part(a, pair / a.kv_heads, pair % a.kv_heads, first, last, parts + item * stride);
    }
  });
  float* sum = parts + a.rows * a.kv_heads * segments * stride;
  for (int64_t pair = 0; pair < a.rows * a.kv_heads; ++pair) {
    const int64_t row = pair / a.kv_heads;
    if (a.count[row] <= 0) continue;
    for (int64_t g = 0; g < a.group; ++g) {
      float top = -__builtin_inff(), total = 0;
      std::memset(sum, 0, sizeof(float) * static_cast<size_t>(a.width));
      for (int64_t segment = 0; segment < segments; ++segment) {
        const auto [first, last] = bounds(row, segment);
        if (first >= last) continue;
        const float* part = parts + (pair * segments + segment) * stride + g * (a.width + LANES);
        merge(top, total, sum, part[0], part[1], part + LANES, a.width);
      }
      finish(sum, total, a.width, a.mixed + (pair * a.group + g) * a.width);
    }
  }
}

inline void attend(Attention a) {
  Team& team = Team::instance();
  while (a.rows > 0 && a.count[a.rows - 1] <= 0) --a.rows;
  if (a.rows == 0) return;
  // Up to the last real token: what is behind it is nobody's.
  const int64_t tokens = (a.rows - 1) * a.chunk + std::min<int64_t>(a.count[a.rows - 1], a.chunk);
  team.run(tokens, 4, [&](int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) enter(a, token);
  });
  if (a.chunk == 1) return attend_rows(a);
  team.run(tokens * a.kv_heads, 4, [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) {
      // From the last token back: later ones have more keys, and the longest work goes out first.
      const int64_t token = tokens - 1 - item / a.kv_heads;
      if (token % a.chunk < a.count[token / a.chunk]) attend_head(a, token, item % a.kv_heads);
    }
  });
}

}  // namespace cortex
