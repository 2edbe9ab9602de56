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
// of one token that is much of the work, with few queries and a long past, the segments are shared out among the threads.
#pragma once

#include <algorithm>
#include <vector>

#include "matmul.h"

namespace cortex {

constexpr int64_t SEGMENT = 128;
constexpr int64_t TILE_TOKENS = 64, TILE_QUERIES = 256;  // of a tile, at most; of one token there may be more queries
constexpr int64_t ROUND = 64;  // segments of single tokens whose parts are kept before they are merged, at most,
constexpr int64_t KEPT = int64_t{1} << 22;  // and no more floats of parts than these, or those of one segment
constexpr float LOG2E = 1.44269504088896341f;
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

// Asks for a share of a segment's keys and values, [first, last) of `all`, so that they are in the second cache when it is
// their turn.
inline void prefetch(const Attention& a, int64_t slot, int64_t head, int64_t segment, int64_t first, int64_t last, int64_t all) {
  constexpr int64_t LINE = 16;  // floats
  const auto share = [&](const float* from, int64_t rows, int64_t stride, int64_t floats) {
    for (int64_t row = rows * first / all; row < rows * last / all; ++row)
      for (int64_t i = 0; i < floats; i += LINE) __builtin_prefetch(from + row * stride + i, 0, 2);
  };
  const int64_t end = std::min((segment + 1) * SEGMENT, a.table_width * a.page_size);
  for (int64_t at = segment * SEGMENT; at < end;) {
    const int64_t keys = std::min(a.page_size - at % a.page_size, end - at);
    share(a.keys_at(slot, head, at), a.k_width, a.page_size, keys);
    share(a.values_at(slot, head, at), keys, a.v_width, a.v_width);
    at += keys;
  }
}

// Tokens of one row that stand one after the other.
struct Span {
  int64_t slot, token, position, count;
};

// A query or key x as it is compared: normed, turned by its token's position, scaled.
template <class Value>
inline void turn(const Attention& a, int64_t token, const Value& x, float scale, float* __restrict y) {
  if (a.half == 0) {
    for (int64_t i = 0; i < a.k_width; ++i) y[i] = x(i) * scale;
    return;
  }
  const float *cos = a.cos + token * a.half, *sin = a.sin + token * a.half;
  for (int64_t i = 0; i < a.half; ++i) {
    const float first = x(i), second = x(i + a.half);
    y[i] = (first * cos[i] - second * sin[i]) * scale;
    y[i + a.half] = (second * cos[i] + first * sin[i]) * scale;
  }
}

inline void prepare(const Attention& a, int64_t token, const float* x, const float* norm, float scale, float* y) {
  if (norm == nullptr) return turn(a, token, [&](int64_t i) { return x[i]; }, scale, y);
  const float root = inverse_rms(x, a.k_width, a.epsilon);
  turn(a, token, [&](int64_t i) { return x[i] * root * norm[i]; }, scale, y);
}

// Keys and values of a span go into the pool: of up to GROUP tokens of a page together, for a key's dimensions lie far apart.
inline void enter(const Attention& a, const Span& span) {
  static thread_local Scratch memory;
  constexpr int64_t GROUP = 16;
  float* rows = memory.get(GROUP * a.k_width);
  for (int64_t head = 0; head < a.kv_heads; ++head)
    for (int64_t done = 0; done < span.count;) {
      const int64_t position = span.position + done, count = std::min(GROUP - position % GROUP, span.count - done);
      for (int64_t n = 0; n < count; ++n) {
        const int64_t token = span.token + done + n;
        const float* key = a.projected(token, head) + a.group * a.k_width;
        prepare(a, token, key, a.k_norm, 1.0f, rows + n * a.k_width);
        std::memcpy(const_cast<float*>(a.values_at(span.slot, head, position + n)), key + a.k_width,
                    sizeof(float) * static_cast<size_t>(a.v_width));
      }
      float* to = const_cast<float*>(a.keys_at(span.slot, head, position));
      for (int64_t h = 0; h < a.k_width; ++h)
        for (int64_t n = 0; n < count; ++n) to[h * a.page_size + n] = rows[n * a.k_width + h];
      done += count;
    }
}

// Which keys a query sees: [first, last). None where they are the same.
struct Seen {
  int64_t first, last;
};

// What a query has gathered so far is a Record: the sum of its values, each times its weight, the total of the weights,
// still by lanes, and the `top` that they are relative to. A weight is 2^(score - top), a top an integer, so what was
// gathered comes to another top by a power of two: exactly, and without an exponential.
constexpr float UNSEEN = -1e30f;  // the score of a key that is not seen, and the top of who has seen none

struct Record {
  float* at;  // [floats(v_width)]
  int64_t v_width;

  static int64_t floats(int64_t v_width) { return v_width + 2 * LANES; }
  float* sum() const { return at; }
  float* total() const { return at + v_width; }
  float& top() const { return at[v_width + LANES]; }
  void clear() const {
    std::memset(at, 0, sizeof(float) * static_cast<size_t>(v_width + LANES));
    top() = UNSEEN;
  }
};

// 2^difference, of an integer not above 0; 0 where a float32 does not reach.
inline float power(float difference) {
  if (difference < -126) return 0;
  const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(difference) + 127) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// What brings a record and what is added to it to one top.
struct Scales {
  float old, fresh;
};

inline Scales raise(const Record& record, float top) {
  const float before = record.top(), highest = before > top ? before : top;
  record.top() = highest;
  return {power(before - highest), power(top - highest)};
}

inline void add(float* to, vf more, const Scales& scales) { store(to, load<vf>(to) * scales.old + more * scales.fresh); }

// `into` and `more` (of later keys) together, in `into`.
inline void merge(const Record& into, const Record& more) {
  const Scales scales = raise(into, more.top());
  add(into.total(), load<vf>(more.total()), scales);
  for (int64_t h = 0; h < into.v_width; h += LANES) add(into.sum() + h, load<vf>(more.sum() + h), scales);
}

// Query `g` of a token and kv head gets what it gathered, over the total of its weights and of its sink's.
inline void finish(const Attention& a, int64_t token, int64_t head, int64_t g, const Record& found) {
  float* out = a.mixed + ((token * a.kv_heads + head) * a.group + g) * a.v_width;
  float kept = 1.0f;
  vf total = splat(sum(load<vf>(found.total())));
  if (a.sinks != nullptr) {
    const float sink = a.sinks[head * a.group + g] * LOG2E, highest = std::max(found.top(), std::ceil(sink));
    kept = power(found.top() - highest);
    total = total * kept + exp2(splat(sink - highest));
  }
  for (int64_t h = 0; h < a.v_width; h += LANES) store(out + h, load<vf>(found.sum() + h) * kept / total);
}

// Scores of keys [at, + LANES * BLOCKS) for queries q [k_width, Q].
template <int Q, int BLOCKS>
inline void score_keys(const Attention& a, const float* q, int64_t slot, int64_t head, int64_t at, float* score) {
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
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i)
    for (int b = 0; b < BLOCKS; ++b) store(score + i * SEGMENT + (at + b * LANES) % SEGMENT, acc[i][b]);
}

// Values [first, last) times their weights, of dimensions [h, + LANES * BLOCKS), onto what the queries gathered.
template <int Q, int BLOCKS>
inline void mix_values(const Attention& a, int64_t slot, int64_t head, int64_t first, int64_t last, const float* weight,
                       int64_t h, const Record* records, const Scales* scales) {
  vf acc[Q][BLOCKS] = {};
  for (int64_t j = first; j < last;) {
    const float* v = a.values_at(slot, head, j) + h;
    const int64_t end = (j / a.page_size + 1) * a.page_size < last ? (j / a.page_size + 1) * a.page_size : last;
    const float* w = weight + j % SEGMENT;
    for (; j < end; ++j, ++w, v += a.v_width) {
      vf value[BLOCKS];
      for (int b = 0; b < BLOCKS; ++b) value[b] = load<vf>(v + b * LANES);
      for (int i = 0; i < Q; ++i) {
        const vf one = splat(w[i * SEGMENT]);
        for (int b = 0; b < BLOCKS; ++b) acc[i][b] += value[b] * one;
      }
    }
  }
  // Unrolled, or GCC takes the sums through memory once more.
#pragma GCC unroll 16
  for (int i = 0; i < Q; ++i)
    for (int b = 0; b < BLOCKS; ++b) add(records[i].sum() + h + b * LANES, acc[i][b], scales[i]);
}

// Scores become cap * tanh(score / cap).
[[gnu::noinline]] inline void cap(float* score, int64_t size, float cap) {
  for (int64_t j = 0; j < size; j += LANES) store(score + j, tanh(load<vf>(score + j) / cap) * cap);
}

// Those of keys [from, + size) that are not seen become UNSEEN.
inline void mask(float* score, int64_t from, int64_t size, const Seen& seen) {
  const auto all = [&](int64_t first, int64_t last) {
    for (int64_t j = first; j < last; ++j) score[j] = UNSEEN;
  };
  if (seen.first >= seen.last) return all(0, size);
  all(0, seen.first - from);
  all(seen.last - from, size);
}

// A query's highest score of a segment.
inline float highest_score(const float* score, int64_t size) {
  vf most = load<vf>(score);
  for (int64_t j = LANES; j < size; j += LANES) most = max(most, load<vf>(score + j));
  return max(most);
}

// Its scores become weights, whose total goes to its record; returns how its sum follows.
inline Scales weigh(float* score, int64_t size, float highest, const Record& record) {
  const bool none = highest == UNSEEN;  // then weights of zero are added
  const float top = none ? 0.0f : std::ceil(highest);
  vf total{};
  for (int64_t j = 0; j < size; j += LANES) {
    const vf weight = exp2(load<vf>(score + j) - top);
    store(score + j, weight);
    total += weight;
  }
  const Scales scales = none ? Scales{1.0f, 0.0f} : raise(record, top);
  add(record.total(), total, scales);
  return scales;
}

// Q queries [k_width, Q] over the keys of one segment that any of them sees.
template <int Q>
void gather(const Attention& a, const float* q, int64_t slot, int64_t head, const Seen* seen, const Record* records) {
  alignas(64) float score[Q * SEGMENT];
  int64_t first = INT64_MAX, last = 0;
  for (int i = 0; i < Q; ++i) {
    if (seen[i].first == seen[i].last) continue;
    first = std::min(first, seen[i].first);
    last = std::max(last, seen[i].last);
  }
  if (first >= last) return;
  const int64_t from = first / LANES * LANES, to = (last + LANES - 1) / LANES * LANES;
  int64_t at = from;
  for (; at + VECTORS<Q> * LANES <= to; at += VECTORS<Q> * LANES) score_keys<Q, VECTORS<Q>>(a, q, slot, head, at, score);
  for (; at < to; at += LANES) score_keys<Q, 1>(a, q, slot, head, at, score);
  const int64_t base = from % SEGMENT, size = to - from;
  float tops[Q];
  for (int i = 0; i < Q; ++i) {
    float* s = score + i * SEGMENT + base;
    if (a.soft_cap > 0) cap(s, size, a.soft_cap * LOG2E);
    if (seen[i].first > from || seen[i].last < to) mask(s, from, size, seen[i]);
    tops[i] = highest_score(s, size);
  }
  Scales scales[Q];
  for (int i = 0; i < Q; ++i) scales[i] = weigh(score + i * SEGMENT + base, size, tops[i], records[i]);
  int64_t h = 0;
  for (; h + VECTORS<Q> * LANES <= a.v_width; h += VECTORS<Q> * LANES)
    mix_values<Q, VECTORS<Q>>(a, slot, head, first, last, score, h, records, scales);
  for (; h < a.v_width; h += LANES) mix_values<Q, 1>(a, slot, head, first, last, score, h, records, scales);
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
  // The floats of memory that a span of so many tokens needs: its queries, and those of a block once more.
  static int64_t floats(const Attention& a, int64_t tokens) { return (tokens * a.group + MOST_QUERIES) * a.k_width; }

  Queries(const Attention& a, const Span& span, int64_t head, float* memory)
      : a_(a), span_(span), head_(head), count_(span.count * a.group), packed_(memory) {
    float* rows = packed_ + count_ * a.k_width;
    in_blocks(count_, [&](auto constant, int64_t first) {
      constexpr int Q = decltype(constant)::value;
      for (int i = 0; i < Q; ++i) {
        const int64_t query = first + i, token = span_.token + query / a_.group;
        const float* q = a_.projected(token, head_) + query % a_.group * a_.k_width;
        prepare(a_, token, q, a_.q_norm, a_.scale * LOG2E, rows + i * a_.k_width);
      }
      float* to = packed_ + first * a_.k_width;
      for (int64_t h = 0; h < a_.k_width; ++h)
        for (int i = 0; i < Q; ++i) to[h * Q + i] = rows[i * a_.k_width + h];
    });
  }

  // What the segment has for query i goes to record(i). Meanwhile the next one is asked for, if it will be gathered `next`.
  template <class Records>
  void gather_segment(int64_t segment, bool next, const Records& record) const {
    const int64_t begin = segment * SEGMENT, end = begin + SEGMENT;
    in_blocks(count_, [&](auto constant, int64_t first) {
      constexpr int Q = decltype(constant)::value;
      Seen seen[Q];
      Record records[Q];
      for (int i = 0; i < Q; ++i) {
        const int64_t position = span_.position + (first + i) / a_.group;
        seen[i].first = std::clamp(a_.first_seen(position), begin, end);
        seen[i].last = std::clamp(position + 1, seen[i].first, end);
        records[i] = record(first + i);
      }
      if (next) prefetch(a_, span_.slot, head_, segment + 1, first, first + Q, count_);
      gather<Q>(a_, packed_ + first * a_.k_width, span_.slot, head_, seen, records);
    });
  }

  int64_t count() const { return count_; }

  void finish(int64_t query, const Record& found) const {
    cortex::finish(a_, span_.token + query / a_.group, head_, query % a_.group, found);
  }

 private:
  const Attention& a_;
  const Span span_;
  int64_t head_, count_;
  float* packed_;
};

// All that a span of tokens gathers for one kv head.
inline void attend_span(const Attention& a, const Span& span, int64_t head) {
  static thread_local Scratch memory;
  const int64_t queries = span.count * a.group, stride = Record::floats(a.v_width);
  float* records = memory.get(queries * stride + Queries::floats(a, span.count));
  const auto record = [&](int64_t i) { return Record{records + i * stride, a.v_width}; };
  const Queries q(a, span, head, records + queries * stride);
  for (int64_t i = 0; i < queries; ++i) record(i).clear();
  const int64_t last = (span.position + span.count - 1) / SEGMENT;
  for (int64_t segment = a.first_seen(span.position) / SEGMENT; segment <= last; ++segment)
    q.gather_segment(segment, segment < last, record);
  for (int64_t i = 0; i < queries; ++i) q.finish(i, record(i));
}

// Single tokens whose segments are items of their own, ROUND of them at a time.
inline void attend_singles(const Attention& a, const std::vector<Span>& singles) {
  static Shelf shelf;
  Shelf::Lent memory(shelf);
  const int64_t pairs = static_cast<int64_t>(singles.size()) * a.kv_heads, stride = a.group * Record::floats(a.v_width);
  int64_t begin = INT64_MAX, end = 0;
  for (const Span& span : singles) {
    begin = std::min(begin, a.first_seen(span.position) / SEGMENT);
    end = std::max(end, span.position / SEGMENT + 1);
  }
  const int64_t round = std::min(end - begin, std::clamp<int64_t>(KEPT / (pairs * stride), 1, ROUND));
  float* states = memory.get((round + 1) * pairs * stride);
  float* parts = states + pairs * stride;
  // Query g of a pair, or of an item.
  const auto record = [&](float* all, int64_t i, int64_t g) {
    return Record{all + i * stride + g * Record::floats(a.v_width), a.v_width};
  };
  const auto span_of = [&](int64_t pair) -> const Span& { return singles[static_cast<size_t>(pair / a.kv_heads)]; };
  const auto sees = [&](const Span& span, int64_t segment) {
    return a.first_seen(span.position) < (segment + 1) * SEGMENT && segment * SEGMENT <= span.position;
  };
  for (int64_t i = 0; i < pairs; ++i)
    for (int64_t g = 0; g < a.group; ++g) record(states, i, g).clear();
  for (int64_t base = begin; base < end; base += round) {
    Team::instance().run(pairs * round, 1, [&](int64_t from, int64_t to) {
      static thread_local Scratch packed;
      float* own = packed.get(Queries::floats(a, 1));
      for (int64_t item = from; item < to; ++item) {
        const int64_t pair = item / round, segment = base + item % round;
        if (!sees(span_of(pair), segment)) continue;
        const Queries q(a, span_of(pair), pair % a.kv_heads, own);
        for (int64_t g = 0; g < a.group; ++g) record(parts, item, g).clear();
        q.gather_segment(segment, false, [&](int64_t g) { return record(parts, item, g); });
      }
    });
    for (int64_t item = 0; item < pairs * round; ++item) {
      if (!sees(span_of(item / round), base + item % round)) continue;
      for (int64_t g = 0; g < a.group; ++g) merge(record(states, item / round, g), record(parts, item, g));
    }
  }
  for (int64_t i = 0; i < pairs; ++i)
    for (int64_t g = 0; g < a.group; ++g) finish(a, span_of(i).token, i % a.kv_heads, g, record(states, i, g));
}

// The rows of a call: single tokens whose segments are shared out, and tiles, which one thread has for a kv head each.
struct Plan {
  std::vector<Span> singles, tiles;
};

inline std::vector<Span> rows_of(const Attention& a) {
  std::vector<Span> rows;
  int64_t tokens = 0;
  for (int64_t row = 0; row < a.rows; ++row) {
    const int64_t count = std::clamp<int64_t>(a.count[row], 0, a.tokens - tokens);
    if (count > 0) rows.push_back({a.slot[row], tokens, a.start[row], count});
    tokens += count;
  }
  return rows;
}

inline Plan planned(const Attention& a, int64_t threads) {
  const std::vector<Span> rows = rows_of(a);
  const auto segments = [&](const Span& row) { return row.position / SEGMENT - a.first_seen(row.position) / SEGMENT + 1; };
  int64_t tokens = 0, of_singles = 0;
  for (const Span& row : rows) {
    tokens += row.count;
    if (row.count == 1) of_singles += segments(row) * a.kv_heads;
  }
  // Fewer tokens to a tile where there would be too few tiles for everybody.
  const int64_t pieces = (3 * threads + a.kv_heads - 1) / a.kv_heads;
  const int64_t most = std::min(TILE_TOKENS, std::max<int64_t>(TILE_QUERIES / a.group, 1));
  const int64_t size = std::clamp((tokens + pieces - 1) / pieces, std::min<int64_t>(8, most), most);
  Plan plan;
  for (const Span& row : rows) {
    if (row.count == 1 && segments(row) * 4 * threads > of_singles) {
      plan.singles.push_back(row);
      continue;
    }
    for (int64_t done = 0; done < row.count; done += size)
      plan.tiles.push_back({row.slot, row.token + done, row.position + done, std::min(size, row.count - done)});
  }
  // The longest work goes out first: later tokens have more keys.
  const auto work = [](const Span& tile) { return tile.count * (tile.position + tile.count); };
  std::stable_sort(plan.tiles.begin(), plan.tiles.end(), [&](const Span& x, const Span& y) { return work(x) > work(y); });
  return plan;
}

inline void attend(const Attention& a) {
  Team& team = Team::instance();
  const Plan plan = planned(a, team.size());
  const std::vector<Span>&singles = plan.singles, &tiles = plan.tiles;
  team.run(static_cast<int64_t>(singles.size() + tiles.size()), 1, [&](int64_t first, int64_t last) {
    for (size_t i = static_cast<size_t>(first); i < static_cast<size_t>(last); ++i)
      enter(a, i < singles.size() ? singles[i] : tiles[i - singles.size()]);
  });
  if (!singles.empty()) attend_singles(a, singles);
  team.run(static_cast<int64_t>(tiles.size()) * a.kv_heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) attend_span(a, tiles[static_cast<size_t>(i / a.kv_heads)], i % a.kv_heads);
  });
}

}  // namespace cortex
