// Logits to tokens, one row after the other: what `neuron_jax.engine.sampler` says in XLA. Knows rows and slots, no XLA.
//
// A row's token and log-probabilities are the same bits whatever rows are beside it: each is one thread's work, and sums go
// over the vocabulary in fixed blocks. Cuts keep what ties with the last one kept; of equal scores the lowest id wins.
#pragma once

#include <algorithm>
#include <limits>

#include "matmul.h"

namespace cortex {

// Columns of `ints` and `floats`, as `models.native.ops` stacks them.
enum Int { SLOT, POSITION, SEED_LOW, SEED_HIGH, TOP_K, BIASED, NEED, FULL_UNTIL, MASKED, INTS };
enum Float { TEMPERATURE, TOP_P, MIN_P, PRESENCE, FREQUENCY, REPETITION, FLOATS };
enum Need : int32_t { NOTHING = -1, FULL = 2 };  // the others are told by the temperature

constexpr float NEVER = -std::numeric_limits<float>::infinity();
// Between the greatest and the least noise there is: what is further below the best logit cannot be drawn.
constexpr float REACH = 20.0f;
constexpr float MOST_NOISE = 16.7f;

struct Sampling {
  const float* logits;  // [rows, vocab]
  const int32_t* ints;  // [rows, INTS]
  const float* floats;  // [rows, FLOATS]
  const int16_t* generated;  // [slots, vocab]
  const uint8_t* in_prompt;  // [slots, vocab]
  const int32_t* bias_ids;   // [slots, biases]
  const float* bias;
  const uint32_t* bias_until;
  const int32_t* masks;  // [rows, words]: a bit for each token, the lowest first
  int32_t* token;       // [rows]
  float* logprob;       // [rows]
  int32_t* top_ids;     // [rows, alternatives]
  float* top_logprobs;  // [rows, alternatives]
  int64_t rows, vocab, biases, alternatives, words;

  int32_t integer(int64_t row, Int column) const { return ints[row * INTS + column]; }
  uint32_t word(int64_t row, Int column) const { return static_cast<uint32_t>(integer(row, column)); }
  float number(int64_t row, Float column) const { return floats[row * FLOATS + column]; }
  bool masked(int64_t row) const { return integer(row, MASKED) != 0; }
  bool full(int64_t row) const { return integer(row, NEED) == FULL || word(row, POSITION) < word(row, FULL_UNTIL); }
};

inline int64_t whole_vectors(int64_t count) { return (count + LANES - 1) / LANES * LANES; }

inline bool any(vi mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#else
  uint64_t part[LANES / 2], all = 0;
  store(part, mask);
  for (uint64_t p : part) all |= p;
  return all != 0;
#endif
}

// ln x of normal numbers, within 1 unit in the last place: that of FreeBSD's msun, which keeps it close to 1, too.
inline vf log(vf x) {
  const vi bits = reinterpret_cast<vi>(x);
  const vi exponent = (bits - 0x3f3504f3) >> 23;
  const vf f = reinterpret_cast<vf>(bits - (exponent << 23)) - 1.0f, e = to_float(exponent);
  const vf s = f / (f + 2.0f), z = s * s, half = 0.5f * f * f;
  const vf tail = z * (z * (z * (z * 0.24279078841f + 0.28498786688f) + 0.40000972152f) + 0.66666662693f);
  return e * 6.9313812256e-01f - ((half - (s * (half + tail) + e * 9.0580006145e-06f)) - f);
}

inline float ln(float x) { return static_cast<float>(std::log(static_cast<double>(x))); }

// Threefry-2x32 with 20 rounds, its first word (neuron_jax/engine/noise.py).
inline vu threefry(uint32_t low, uint32_t high, uint32_t position, vu id) {
  constexpr int ROTATIONS[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t keys[3] = {low, high, low ^ high ^ 0x1BD11BDAu};
  vu a = vu{} + (position + low), b = id + high;
  for (uint32_t block = 0; block < 5; ++block) {
    for (int rotation : ROTATIONS[block % 2]) {
      a += b;
      b = ((b << rotation) | (b >> (32 - rotation))) ^ a;
    }
    a += keys[(block + 1) % 3];
    b += keys[(block + 2) % 3] + block + 1;
  }
  return a;
}

inline vf gumbel(vu bits) {
  const vf uniform = (to_float(reinterpret_cast<vi>(bits >> 8)) + 0.5f) * 0x1p-24f, most = splat(1 - 0x1p-24f);
  return -log(-log(uniform < most ? uniform : most));
}

inline float highest(const float* v, int64_t count) {
  vf top = splat(NEVER);
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) top = max(load<vf>(v + i), top);
  float most = max(top);
  for (; i < count; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// The first place of the highest value; 0 where nothing is a number.
inline int64_t first_best(const float* v, int64_t count) {
  const float most = highest(v, count);
  int64_t i = 0;
  while (i + LANES <= count && !any(load<vf>(v + i) == splat(most))) i += LANES;
  while (i < count && v[i] != most) ++i;
  return i < count ? i : 0;
}

// The sum of e^(v - top) over `count` values, whole vectors of them, in blocks of float32 that are summed in float64.
inline double mass_of(const float* v, int64_t count, float top) {
  constexpr int64_t BLOCK = 64 * LANES;
  double total = 0;
  for (int64_t at = 0; at < count; at += BLOCK) {
    vf part{};
    for (int64_t i = at; i < std::min(at + BLOCK, count); i += LANES) part += exp(load<vf>(v + i) - splat(top));
    total += static_cast<double>(sum(part));
  }
  return total;
}

// float32 -> int32 in the same order.
inline vi ordered(vf values) {
  const vi bits = reinterpret_cast<vi>(values);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The tokens that may still be drawn: values, ids in ascending order, and e^(value - top); filled up to whole vectors.
struct Candidates {
  float* value;
  int32_t* id;
  float* mass;
  int64_t size;

  // All with a value of at least `least`, of [vocab] values that are filled up with NEVER.
  void gather(const float* v, int64_t vocab, float least) {
    size = 0;
    for (int64_t i = 0; i < vocab; i += LANES) {
      const vf values = load<vf>(v + i);
      if (!any(values >= splat(least))) continue;
      for (int64_t j = i; j < std::min(i + LANES, vocab); ++j) {
        value[size] = v[j];
        id[size] = static_cast<int32_t>(j);
        size += v[j] >= least;
      }
    }
    for (int64_t i = size; i < whole_vectors(size); ++i) value[i] = NEVER, id[i] = 0;
  }

  void weigh(float top) {
    for (int64_t i = 0; i < size; i += LANES) store(mass + i, exp(load<vf>(value + i) - splat(top)));
    for (int64_t i = size; i < whole_vectors(size); ++i) mass[i] = 0;
  }

  int64_t count_from(int32_t cut) const {
    vi found{};
    for (int64_t i = 0; i < size; i += LANES) found -= ordered(load<vf>(value + i)) >= cut;
    int64_t total = 0;
    for (int i = 0; i < LANES; ++i) total += found[i];
    // What fills the last vector is below every number.
    return std::min(total, size);
  }

  double mass_from(int32_t cut) const {
    vf total{};
    for (int64_t i = 0; i < size; i += LANES) total += ordered(load<vf>(value + i)) >= cut ? load<vf>(mass + i) : vf{};
    return static_cast<double>(sum(total));
  }
};

// The largest int in [low, high] for which the falling `holds` is true; it is taken to be at `low`.
template <class Holds>
inline int32_t largest(int32_t low, int32_t high, const Holds& holds) {
  while (low < high) {
    const int32_t middle = (low | high) - ((low ^ high) >> 1);  // the upper mean, which cannot overflow
    if (holds(middle))
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

inline float unordered(int32_t order) {
  const int32_t bits = order ^ ((order >> 31) & 0x7fffffff);
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The smallest value that top_k and, of what that keeps, top_p keep; false where candidates are missing to tell. `whole`:
// the mass of all tokens.
inline bool threshold(const Candidates& c, int64_t k, int64_t vocab, float top_p, float top, double whole, float& cut) {
  const bool everything = c.size >= vocab;
  if (k < vocab && k > c.size && !everything) return false;
  const int32_t low = std::numeric_limits<int32_t>::min(), high = ordered(splat(top))[0];
  const bool some = k < vocab && k <= c.size;
  const int32_t by_k = some ? largest(low, high, [&](int32_t at) { return c.count_from(at) >= k; }) : low;
  cut = some ? unordered(by_k) : NEVER;
  if (top_p >= 1) return true;
  if (some) {
    // Of those that tie with the last one, as many count as there are places.
    const int64_t above = by_k < high ? c.count_from(by_k + 1) : 0;
    const double each = static_cast<double>(exp(splat(cut - top))[0]);
    whole = (by_k < high ? c.mass_from(by_k + 1) : 0.0) + static_cast<double>(k - above) * each;
  }
  const double enough = static_cast<double>(top_p) * whole;
  if (!some && !everything && c.mass_from(low) < enough) return false;
  const int32_t by_p = largest(by_k, high, [&](int32_t at) { return c.mass_from(at) >= enough; });
  cut = by_p > low ? unordered(by_p) : NEVER;
  return true;
}

// arg max of value + noise over the candidates from `cut` on: a draw from their softmax (Gumbel 1954).
inline int32_t gumbel_max(const Sampling& s, int64_t row, const Candidates& c, float cut) {
  float best = NEVER;
  int32_t token = c.size > 0 ? c.id[0] : 0;
  for (int64_t i = 0; i < c.size; i += LANES) {
    const vf value = load<vf>(c.value + i);
    if (!any((value >= splat(cut)) & (value > splat(best - MOST_NOISE)))) continue;
    const vu bits = threefry(s.word(row, SEED_LOW), s.word(row, SEED_HIGH), s.word(row, POSITION), load<vu>(c.id + i));
    const vf score = value >= splat(cut) ? value + gumbel(bits) : splat(NEVER);
    if (!any(score > splat(best))) continue;
    for (int j = 0; j < LANES; ++j)
      if (score[j] > best) best = score[j], token = c.id[i + j];
  }
  return token;
}

// `values` [vocab], filled up with NEVER, over the temperature -> a token.
inline int32_t draw(const Sampling& s, int64_t row, const float* values, float* memory) {
  const int64_t padded = whole_vectors(s.vocab), top_k = s.integer(row, TOP_K);
  const int64_t k = top_k > 0 ? std::min(top_k, s.vocab) : s.vocab;
  const float top = highest(values, s.vocab), top_p = s.number(row, TOP_P), min_p = s.number(row, MIN_P);
  const float floor = min_p > 0 ? top + ln(min_p) : NEVER;
  Candidates c{memory, reinterpret_cast<int32_t*>(memory + padded), memory + 2 * padded, 0};
  if (k == s.vocab && top_p >= 1) {
    c.gather(values, s.vocab, std::max(floor, top - REACH));
    return gumbel_max(s, row, c, floor);
  }
  const double whole = top_p < 1 && k == s.vocab ? mass_of(values, padded, top) : 0.0;
  float cut = NEVER;
  for (float reach : {8.0f, REACH, -NEVER}) {
    c.gather(values, s.vocab, top - reach);
    if (top_p < 1) c.weigh(top);
    if (threshold(c, k, s.vocab, top_p, top, whole, cut)) break;
  }
  return gumbel_max(s, row, c, std::max(cut, floor));
}

// Penalties (Keskar et al. 2019 for repetition), bias and bans.
inline void adjust(const Sampling& s, int64_t row, float* values) {
  const int64_t slot = s.integer(row, SLOT);
  const int16_t* generated = s.generated + slot * s.vocab;
  const uint8_t* in_prompt = s.in_prompt + slot * s.vocab;
  const float rate = s.number(row, REPETITION), presence = s.number(row, PRESENCE), frequency = s.number(row, FREQUENCY);
  if (rate != 1 || presence != 0 || frequency != 0) {
    for (int64_t i = 0; i < s.vocab; ++i) {
      const float value = values[i], repeated = value > 0 ? value / rate : value * rate;
      const int32_t count = generated[i];
      const float kept = (count > 0) | (in_prompt[i] != 0) ? repeated : value;
      values[i] = kept - (frequency * static_cast<float>(count) + (count > 0 ? presence : 0.0f));
    }
  }
  if (s.integer(row, BIASED) == 0) return;
  for (int64_t i = slot * s.biases; i < (slot + 1) * s.biases; ++i)
    if (s.word(row, POSITION) < s.bias_until[i] && s.bias_ids[i] >= 0 && s.bias_ids[i] < s.vocab)
      values[s.bias_ids[i]] += s.bias[i];
}

// Leaves the tokens that may be drawn.
inline void mask(const Sampling& s, int64_t row, float* values) {
  const int32_t* words = s.masks + row * s.words;
  for (int64_t word = 0; word < s.words; ++word) {
    const uint32_t bits = static_cast<uint32_t>(words[word]);
    if (bits == ~0u) continue;
    const int64_t first = word * 32, last = std::min(first + 32, s.vocab);
    for (int64_t i = first; i < last; ++i)
      if (!(bits >> (i - first) & 1)) values[i] = NEVER;
  }
}

// Log-probabilities of the raw logits, as OpenAI defines them: the token's, and the likeliest with theirs.
inline void log_probabilities(const Sampling& s, int64_t row, const float* raw, float* padded) {
  const int64_t size = whole_vectors(s.vocab), most = std::min(s.alternatives, s.vocab);
  std::copy(raw, raw + s.vocab, padded);
  std::fill(padded + s.vocab, padded + size, NEVER);
  const float top = highest(raw, s.vocab);
  const float whole = static_cast<float>(static_cast<double>(top) + std::log(mass_of(padded, size, top)));
  s.logprob[row] = raw[s.token[row]] - whole;
  int32_t* ids = s.top_ids + row * s.alternatives;
  float* values = s.top_logprobs + row * s.alternatives;
  int64_t found = 0;
  for (int64_t i = 0; i < size; i += LANES) {
    if (found == most && !any(load<vf>(padded + i) > splat(values[most - 1]))) continue;
    for (int64_t j = i; j < std::min(i + LANES, s.vocab); ++j) {
      if (found == most && !(raw[j] > values[most - 1])) continue;
      int64_t at = found < most ? found++ : most - 1;
      for (; at > 0 && raw[j] > values[at - 1]; --at) values[at] = values[at - 1], ids[at] = ids[at - 1];
      values[at] = raw[j];
      ids[at] = static_cast<int32_t>(j);
    }
  }
  for (int64_t i = 0; i < most; ++i) values[i] -= whole;
}

inline void sample_row(const Sampling& s, int64_t row) {
  static thread_local Scratch memory;
  s.token[row] = 0;
  s.logprob[row] = 0;
  std::fill_n(s.top_ids + row * s.alternatives, s.alternatives, 0);
  std::fill_n(s.top_logprobs + row * s.alternatives, s.alternatives, 0.0f);
  if (s.integer(row, NEED) == NOTHING) return;
  const float *raw = s.logits + row * s.vocab, temperature = s.number(row, TEMPERATURE);
  if (!s.full(row) && !s.masked(row) && !(temperature > 0)) {
    s.token[row] = static_cast<int32_t>(first_best(raw, s.vocab));
    return;
  }
  const int64_t padded = whole_vectors(s.vocab);
  float *values = memory.get(4 * padded), *rest = values + padded;
  std::copy(raw, raw + s.vocab, values);
  std::fill(values + s.vocab, values + padded, NEVER);
  if (s.full(row)) adjust(s, row, values);
  if (s.masked(row)) mask(s, row, values);
  if (temperature > 0) {
    for (int64_t i = 0; i < s.vocab; ++i) values[i] /= temperature;
    s.token[row] = draw(s, row, values, rest);
  } else {
    s.token[row] = static_cast<int32_t>(first_best(values, s.vocab));
  }
  if (s.full(row)) log_probabilities(s, row, raw, rest);
}

inline void sample(const Sampling& s) {
  Team::instance().run(s.rows, 1, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) sample_row(s, row);
  });
}

}  // namespace cortex
