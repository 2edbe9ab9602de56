// Attention of new tokens over a paged pool: norms, rotates, writes keys and values, mixes. Knows pages and rows, no
// products. What layers differ in is data: widths, window, scale, soft cap, sinks, norms of queries and keys.
//
//     keys [pages, K, k_width, page_size]: a vector is one dimension of several keys: scores need no sum across lanes
//     values [pages, K, page_size, v_width]
//
// The keys of a query are read in segments of SEGMENT positions that start at multiples of it, each with its own softmax,
// merged in ascending order (Dao et al. 2022, arXiv:2205.14135). What a query gets is the same bits whatever the page
// size, the row it came in, its neighbours and the thread: those that are computed along with it only mask keys that it
// does not see, which adds zeros to its sums.
//
// A row of several tokens is cut into tiles whose queries read each segment together, while it is in the cache. Of a row
// of one token, with few queries and a long past, the segments are shared out among the threads.
#pragma once

#include <vector>

#include "matmul.h"

namespace cortex {

constexpr int64_t SEGMENT = 128;
constexpr int64_t TILE_TOKENS = 32, TILE_QUERIES = 256;  // of a tile, at most; of one token there may be more queries
constexpr int64_t ROUND = 64;  // segments of single tokens whose parts are kept before they are merged, at most,
constexpr int64_t KEPT = int64_t{1} << 22;  // and no more floats of parts than these, or those of one segment
#if defined(__AVX512F__)
constexpr int MOST_QUERIES = 12, MOST_SUMS = 24;
#else
constexpr int MOST_QUERIES = 6, MOST_SUMS = 12;
#endif

// Vectors of keys, or of values, that Q queries are multiplied with at once.
template <int Q>
constexpr int VECTORS = MOST_SUMS / Q >= 4 ? 4 : MOST_SUMS / Q >= 2 ? 2 : 1;

struct Attention {
  const float* qkv;  // [tokens, K, (G + 1) * k_width + v_width]: the queries of a kv head, its key, its value
  const float* cos;  // [tokens, half]
  const float* sin;
  const float* q_norm;  // [k_width], what queries and keys are weighted with when they are normed; or null
  const float* k_norm;
  const float* sinks;    // [K, G], a score of each query head that has no value; or null
  const int32_t* table;  // [slots, table_width] page numbers
  const int32_t* slot;   // [rows]
  const int32_t* start;  // [rows] position of a row's first token
  const int32_t* count;  // [rows] how many tokens it has; rows stand one after the other
  float* keys;
  float* values;
  float* mixed;  // [tokens, K, G, v_width]
  int64_t tokens, rows, table_width, kv_heads, group, k_width, v_width, page_size;
  int64_t half;    // k_width / 2 pairs that turn, or 0
  int64_t window;  // 0 for none
  bool aligned;    // to see those from the last multiple of `window` on
  float scale, soft_cap, epsilon;  // a cap of 0 for none

  int64_t page(int64_t slot, int64_t position) const { return table[slot * table_width + position / page_size]; }
  const float* keys_at(int64_t slot, int64_t head, int64_t position) const {
    return keys + (page(slot, position) * kv_heads + head) * k_width * page_size + position % page_size;
  }
  const float* values_at(int64_t slot, int64_t head, int64_t position) const {
    return values + ((page(slot, position) * kv_heads + head) * page_size + position % page_size) * v_width;
  }
  // The queries, the key and the value of a token and kv head.
  const float* projected(int64_t token, int64_t head) const {
    return qkv + (token * kv_heads + head) * ((group + 1) * k_width + v_width);
  }
  int64_t first_seen(int64_t position) const {
    if (window == 0 || position < window) return 0;
    return aligned ? position / window * window : position - window + 1;
  }
};

// Tokens of one row that stand one after the other.
struct Span {
  int64_t slot, token, position, count;
};

// A query or key x as it is compared: normed, turned by its token's position, scaled; its dimensions STRIDE apart in y,
// or `apart` where that is 0.
template <int STRIDE, class Value>
inline void turn(const Attention& a, int64_t token, const Value& x, float scale, float* y, int64_t apart) {
  const int64_t stride = STRIDE > 0 ? STRIDE : apart;
  if (a.half == 0) {
    for (int64_t i = 0; i < a.k_width; ++i) y[i * stride] = x(i) * scale;
    return;
  }
  const float *cos = a.cos + token * a.half, *sin = a.sin + token * a.half;
  for (int64_t i = 0; i < a.half; ++i) {
    const float first = x(i), second = x(i + a.half);
    y[i * stride] = (first * cos[i] - second * sin[i]) * scale;
    y[(i + a.half) * stride] = (second * cos[i] + first * sin[i]) * scale;
  }
}

template <int STRIDE = 0>
inline void prepare(const Attention& a, int64_t token, const float* x, const float* norm, float scale, float* y, int64_t apart) {
  if (norm == nullptr) return turn<STRIDE>(a, token, [&](int64_t i) { return x[i]; }, scale, y, apart);
  const float root = inverse_rms(x, a.k_width, a.epsilon);
  turn<STRIDE>(a, token, [&](int64_t i) { return x[i] * root * norm[i]; }, scale, y, apart);
}

// Keys and values go into the pool.
inline void enter(const Attention& a, int64_t slot, int64_t token, int64_t position) {
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    const float* key = a.projected(token, head) + a.group * a.k_width;
    prepare(a, token, key, a.k_norm, 1.0f, const_cast<float*>(a.keys_at(slot, head, position)), a.page_size);
    std::memcpy(const_cast<float*>(a.values_at(slot, head, position)), key + a.k_width,
                sizeof(float) * static_cast<size_t>(a.v_width));
  }
}

inline vi lanes_from(int64_t first) {
  vi lane;
  for (int i = 0; i < LANES; ++i) lane[i] = static_cast<int32_t>(first + i);
  return lane;
}

// Which keys a query sees: [first, last).
struct Seen {
  int64_t first, last;
};

// Scores of keys [at, + LANES * BLOCKS) for queries q [k_width, Q], -inf where a query does not see a key.
template <int Q, int BLOCKS>
inline void score_keys(const Attention& a, const float* q, int64_t slot, int64_t head, int64_t at, const Seen* seen, float* score) {
  const float* k[BLOCKS];
  for (int b = 0; b < BLOCKS; ++b) k[b] = a.keys_at(slot, head, at + b * LANES);
  vf acc[Q][BLOCKS] = {};
  for (int64_t h = 0; h < a.k_width; ++h) {
    vf key[BLOCKS];
    for (int b = 0; b < BLOCKS; ++b) key[b] = load<vf>(k[b] + h * a.page_size);
    for (int i = 0; i < Q; ++i) {
      const vf query = splat(q[h * Q + i]);
      for (int b = 0; b < BLOCKS; ++b) acc[i][b] += key[b] * query;
    }
  }
  for (int b = 0; b < BLOCKS; ++b) {
    const vi lane = lanes_from(at + b * LANES);
    for (int i = 0; i < Q; ++i) {
      const vi sees = (lane >= static_cast<int32_t>(seen[i].first)) & (lane < static_cast<int32_t>(seen[i].last));
      store(score + i * SEGMENT + (at + b * LANES) % SEGMENT, sees ? acc[i][b] : splat(-__builtin_inff()));
    }
  }
}

// Values [first, last) times their weights, of dimensions [h, + LANES * BLOCKS).
template <int Q, int BLOCKS>
inline void mix_values(const Attention& a, int64_t slot, int64_t head, int64_t first, int64_t last, const float* weight,
                       int64_t h, float* sum) {
  vf acc[Q][BLOCKS] = {};
  for (int64_t j = first; j < last;) {
    const float* v = a.values_at(slot, head, j) + h;
    const int64_t end = (j / a.page_size + 1) * a.page_size < last ? (j / a.page_size + 1) * a.page_size : last;
    for (; j < end; ++j, v += a.v_width) {
      vf value[BLOCKS];
      for (int b = 0; b < BLOCKS; ++b) value[b] = load<vf>(v + b * LANES);
      for (int i = 0; i < Q; ++i) {
        const vf one = splat(weight[i * SEGMENT + j % SEGMENT]);
        for (int b = 0; b < BLOCKS; ++b) acc[i][b] += value[b] * one;
      }
    }
  }
  for (int i = 0; i < Q; ++i)
    for (int b = 0; b < BLOCKS; ++b) store(sum + i * a.v_width + h + b * LANES, acc[i][b]);
}

// `into` and `more` (of later keys) together, in `into`.
inline void merge(float& top, float& total, float* sum, float more_top, float more_total, const float* more, int64_t width) {
  const float highest = top > more_top ? top : more_top;
  const vf old = exp(splat(top - highest)), fresh = exp(splat(more_top - highest));
  total = total * old[0] + more_total * fresh[0];
  top = highest;
  for (int64_t h = 0; h < width; h += LANES) store(sum + h, load<vf>(sum + h) * old + load<vf>(more + h) * fresh);
}

// What a query has gathered: `top` score, the `total` of its weights, and their sum over the values.
struct Gathered {
  float top, total;
};

// Query `g` of a token and kv head gets what it gathered, over the total of its weights and of its sink's.
inline void finish(const Attention& a, int64_t token, int64_t head, int64_t g, const Gathered& found, const float* sum) {
  float* out = a.mixed + ((token * a.kv_heads + head) * a.group + g) * a.v_width;
  vf kept = splat(1.0f), total = splat(found.total);
  if (a.sinks != nullptr) {
    const float sink = a.sinks[head * a.group + g], highest = std::max(found.top, sink);
    kept = exp(splat(found.top - highest));
    total = total * kept + exp(splat(sink - highest));
  }
  for (int64_t h = 0; h < a.v_width; h += LANES) store(out + h, load<vf>(sum + h) * kept / total);
}

// Scores become cap * tanh(score / cap); keys that are not seen stay so.
[[gnu::noinline]] inline void cap(float* score, int64_t size, float cap) {
  for (int64_t j = 0; j < size; j += LANES) {
    const vf s = load<vf>(score + j);
    store(score + j, s < splat(-__FLT_MAX__) ? s : tanh(s / cap) * cap);
  }
}

// Q queries [k_width, Q] over the keys of one segment: what each gathers there, in `found` and `sum` [Q, v_width].
template <int Q>
void gather(const Attention& a, const float* q, int64_t slot, int64_t head, const Seen* seen, Gathered* found, float* sum) {
  alignas(64) float score[Q * SEGMENT];
  int64_t first = seen[0].first, last = seen[0].last;
  for (int i = 1; i < Q; ++i) {
    first = std::min(first, seen[i].first);
    last = std::max(last, seen[i].last);
  }
  const int64_t from = first / LANES * LANES, to = (last + LANES - 1) / LANES * LANES;
  int64_t at = from;
  for (; at + VECTORS<Q> * LANES <= to; at += VECTORS<Q> * LANES) score_keys<Q, VECTORS<Q>>(a, q, slot, head, at, seen, score);
  for (; at < to; at += LANES) score_keys<Q, 1>(a, q, slot, head, at, seen, score);
  const int64_t base = from % SEGMENT, size = to - from;
  for (int i = 0; i < Q; ++i) {
    float* s = score + i * SEGMENT + base;
    if (a.soft_cap > 0) cap(s, size, a.soft_cap);
    vf top = load<vf>(s);
    for (int64_t j = LANES; j < size; j += LANES) top = max(top, load<vf>(s + j));
    found[i].top = max(top);
    vf total{};
    for (int64_t j = 0; j < size; j += LANES) {
      const vf weight = exp(load<vf>(s + j) - splat(found[i].top));
      store(s + j, weight);
      total += weight;
    }
    found[i].total = cortex::sum(total);
  }
  int64_t h = 0;
  for (; h + VECTORS<Q> * LANES <= a.v_width; h += VECTORS<Q> * LANES)
    mix_values<Q, VECTORS<Q>>(a, slot, head, first, last, score, h, sum);
  for (; h < a.v_width; h += LANES) mix_values<Q, 1>(a, slot, head, first, last, score, h, sum);
}

// Calls use(constant Q, i) for blocks of queries [i, i + Q) that cover [0, queries).
template <class Use>
inline void in_blocks(int64_t queries, const Use& use) {
  for (int64_t i = 0; i < queries;) {
    const auto with = [&](auto constant) {
      use(constant, i);
      i += decltype(constant)::value;
    };
    const int64_t left = queries - i;
    if constexpr (MOST_QUERIES >= 12) {
      if (left >= 12) { with(std::integral_constant<int, 12>{}); continue; }
      if (left >= 8) { with(std::integral_constant<int, 8>{}); continue; }
    }
    if (left >= 6) with(std::integral_constant<int, 6>{});
    else if (left >= 4) with(std::integral_constant<int, 4>{});
    else if (left == 3) with(std::integral_constant<int, 3>{});
    else if (left == 2) with(std::integral_constant<int, 2>{});
    else with(std::integral_constant<int, 1>{});
  }
}

// The queries of one kv head of a span of tokens, ready to gather segment after segment.
class Queries {
 public:
  // The floats of memory that a span of so many tokens needs: its queries, what they gather, and a query more.
  static int64_t floats(const Attention& a, int64_t tokens) {
    return tokens * a.group * (a.k_width + a.v_width) + a.k_width;
  }

  Queries(const Attention& a, const Span& span, int64_t head, float* memory)
      : a_(a), span_(span), head_(head), count_(span.count * a.group), packed_(memory), part_(memory + count_ * a.k_width) {
    float* one = part_ + count_ * a.v_width;
    in_blocks(count_, [&](auto constant, int64_t first) {
      constexpr int Q = decltype(constant)::value;
      for (int i = 0; i < Q; ++i) {
        const int64_t query = first + i, token = span_.token + query / a_.group;
        const float* q = a_.projected(token, head_) + query % a_.group * a_.k_width;
        prepare<1>(a_, token, q, a_.q_norm, a_.scale, one, 1);
        for (int64_t h = 0; h < a_.k_width; ++h) packed_[first * a_.k_width + h * Q + i] = one[h];
      }
    });
  }

  // use(query, gathered, sum [v_width]) for every query that sees any key of the segment.
  template <class Use>
  void gather_segment(int64_t segment, const Use& use) const {
    const int64_t begin = segment * SEGMENT, end = begin + SEGMENT;
    in_blocks(count_, [&](auto constant, int64_t first) {
      constexpr int Q = decltype(constant)::value;
      Seen seen[Q];
      bool sees[Q], any = false;
      for (int i = 0; i < Q; ++i) {
        const int64_t position = span_.position + (first + i) / a_.group;
        seen[i] = {std::max(a_.first_seen(position), begin), std::min(position + 1, end)};
        any |= sees[i] = seen[i].first < seen[i].last;
      }
      if (!any) return;
      // Whoever sees nothing here is taken along by seeing what a neighbour sees; nobody looks at what it gets.
      for (int i = 0; i < Q; ++i)
        for (int other = 0; other < Q && !(seen[i].first < seen[i].last); ++other)
          if (sees[other]) seen[i] = seen[other];
      Gathered found[Q];
      float* sum = part_ + first * a_.v_width;
      gather<Q>(a_, packed_ + first * a_.k_width, span_.slot, head_, seen, found, sum);
      for (int i = 0; i < Q; ++i)
        if (sees[i]) use(first + i, found[i], sum + i * a_.v_width);
    });
  }

  int64_t count() const { return count_; }

  void finish(int64_t query, const Gathered& found, const float* sum) const {
    cortex::finish(a_, span_.token + query / a_.group, head_, query % a_.group, found, sum);
  }

 private:
  const Attention& a_;
  const Span span_;
  int64_t head_, count_;
  float *packed_, *part_;
};

// All that a span of tokens gathers for one kv head.
inline void attend_span(const Attention& a, const Span& span, int64_t head) {
  static thread_local Scratch memory;
  const int64_t queries = span.count * a.group, needed = Queries::floats(a, span.count);
  float* sums = memory.get(needed + queries * (a.v_width + 2));
  Gathered* state = reinterpret_cast<Gathered*>(sums + queries * a.v_width);
  const Queries q(a, span, head, sums + queries * (a.v_width + 2));
  std::memset(sums, 0, sizeof(float) * static_cast<size_t>(queries * a.v_width));
  for (int64_t i = 0; i < queries; ++i) state[i] = {-__builtin_inff(), 0};
  const int64_t last = (span.position + span.count - 1) / SEGMENT;
  for (int64_t segment = a.first_seen(span.position) / SEGMENT; segment <= last; ++segment)
    q.gather_segment(segment, [&](int64_t i, const Gathered& part, const float* sum) {
      merge(state[i].top, state[i].total, sums + i * a.v_width, part.top, part.total, sum, a.v_width);
    });
  for (int64_t i = 0; i < queries; ++i) q.finish(i, state[i], sums + i * a.v_width);
}

// Single tokens: their segments are items of their own, ROUND of them at a time.
inline void attend_singles(const Attention& a, const std::vector<Span>& singles) {
  static Shelf shelf;
  Shelf::Lent memory(shelf);
  const int64_t pairs = static_cast<int64_t>(singles.size()) * a.kv_heads, stride = a.group * (a.v_width + LANES);
  int64_t begin = INT64_MAX, end = 0;
  for (const Span& span : singles) {
    begin = std::min(begin, a.first_seen(span.position) / SEGMENT);
    end = std::max(end, span.position / SEGMENT + 1);
  }
  const int64_t round = std::min(end - begin, std::clamp<int64_t>(KEPT / (pairs * stride), 1, ROUND));
  float* states = memory.get((round + 1) * pairs * stride);
  float* parts = states + pairs * stride;
  for (int64_t i = 0; i < pairs * a.group; ++i) {
    float* state = states + i * (a.v_width + LANES);
    std::memset(state, 0, sizeof(float) * static_cast<size_t>(a.v_width + LANES));
    state[0] = -__builtin_inff();
  }
  const auto span_of = [&](int64_t pair) -> const Span& { return singles[static_cast<size_t>(pair / a.kv_heads)]; };
  const auto sees = [&](const Span& span, int64_t segment) {
    return a.first_seen(span.position) < (segment + 1) * SEGMENT && segment * SEGMENT <= span.position;
  };
  for (int64_t base = begin; base < end; base += round) {
    Team::instance().run(pairs * round, 1, [&](int64_t from, int64_t to) {
      static thread_local Scratch packed;
      float* own = packed.get(Queries::floats(a, 1));
      for (int64_t item = from; item < to; ++item) {
        const int64_t pair = item / round, segment = base + item % round;
        if (!sees(span_of(pair), segment)) continue;
        const Queries q(a, span_of(pair), pair % a.kv_heads, own);
        q.gather_segment(segment, [&](int64_t i, const Gathered& part, const float* sum) {
          float* at = parts + item * stride + i * (a.v_width + LANES);
          at[0] = part.top;
          at[1] = part.total;
          std::memcpy(at + LANES, sum, sizeof(float) * static_cast<size_t>(a.v_width));
        });
      }
    });
    for (int64_t item = 0; item < pairs * round; ++item) {
      if (!sees(span_of(item / round), base + item % round)) continue;
      for (int64_t i = 0; i < a.group; ++i) {
        float* state = states + (item / round * a.group + i) * (a.v_width + LANES);
        const float* part = parts + item * stride + i * (a.v_width + LANES);
        merge(state[0], state[1], state + LANES, part[0], part[1], part + LANES, a.v_width);
      }
    }
  }
  for (int64_t i = 0; i < pairs * a.group; ++i) {
    const int64_t pair = i / a.group;
    const float* state = states + i * (a.v_width + LANES);
    finish(a, span_of(pair).token, pair % a.kv_heads, i % a.group, {state[0], state[1]}, state + LANES);
  }
}

inline void attend(const Attention& a) {
  Team& team = Team::instance();
  std::vector<Span> rows, tiles, singles;
  int64_t tokens = 0;
  for (int64_t row = 0; row < a.rows; ++row) {
    const int64_t count = std::clamp<int64_t>(a.count[row], 0, a.tokens - tokens);
    if (count > 0) rows.push_back({a.slot[row], tokens, a.start[row], count});
    tokens += count;
  }
  // Fewer tokens to a tile where there would be too few tiles for everybody.
  int64_t size = TILE_TOKENS;
  while (size > TILE_TOKENS / 4 && tokens * a.kv_heads < 8 * size * team.size()) size /= 2;
  size = std::min(size, std::max<int64_t>(TILE_QUERIES / a.group, 1));
  for (const Span& row : rows)
    for (int64_t done = 0; done < row.count; done += size) {
      const Span span{row.slot, row.token + done, row.position + done, std::min(size, row.count - done)};
      (row.count == 1 ? singles : tiles).push_back(span);
    }
  team.run(static_cast<int64_t>(singles.size() + tiles.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const size_t at = static_cast<size_t>(i);
      const Span& span = at < singles.size() ? singles[at] : tiles[at - singles.size()];
      for (int64_t n = 0; n < span.count; ++n) enter(a, span.slot, span.token + n, span.position + n);
    }
  });
  if (!singles.empty()) attend_singles(a, singles);
  team.run(static_cast<int64_t>(tiles.size()) * a.kv_heads, 1, [&](int64_t first, int64_t last) {
    // From the last token back: later ones have more keys, and the longest work goes out first.
    for (int64_t i = first; i < last; ++i)
      attend_span(a, tiles[tiles.size() - 1 - static_cast<size_t>(i / a.kv_heads)], i % a.kv_heads);
  });
}

}  // namespace cortex
