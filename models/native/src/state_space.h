// Mamba 2 over the rows of a step, see models/dense/mamba.py. Knows slots and snapshots by number.
//
// As the gated delta rule in recurrent.h: a row's tokens go one after the other over a block of the state's columns.
#pragma once

#include "recurrent.h"

namespace cortex {

// Channels are, of each group, its query c, its key b, its heads' values x.
struct StateSpace {
  StateRows rows;
  Convolution convolution;
  States states;  // [groups, group, keys, values]
  const float *cbx, *steps, *z, *bias, *rate, *shift, *skip, *norm;
  float* given;
  float epsilon;
  int64_t groups, group, keys, values;

  int64_t heads() const { return groups * group; }
  int64_t per_group() const { return 2 * keys + group * values; }
};

// Queries, keys and values of token `i` of a row in `mixed` [channels]; how its states fade, and its steps, in `gates` [2, heads].
inline void prepare(const StateSpace& s, const TextRow& row, int64_t i, float* mixed, float* gates) {
  const int64_t channels = s.convolution.channels, token = row.token + i;
  const auto input = [&](int64_t at, int64_t c, auto zero) { return load<decltype(zero)>(s.cbx + at * channels + c); };
  s.convolution.at(row, i, input, [&](int64_t c, auto sum) {
    store(mixed + c, silu(sum + load<decltype(sum)>(s.bias + c)));
  });
  for (int64_t head = 0; head < s.heads(); ++head) {
    const float raw = s.steps[token * s.heads() + head] + s.shift[head];
    const float step = std::max(raw, 0.0f) + std::log1p(std::exp(-std::fabs(raw)));
    gates[head] = std::exp(s.rate[head] * step);
    gates[s.heads() + head] = step;
  }
}

// One token over V vectors of a state's columns, `s` [keys, stride]: fades, takes in, and is read.
template <int V>
inline void take_in(float* s, int64_t stride, int64_t keys, const float* query, const float* key, const float* x, float fade,
                    float step, float* read) {
  constexpr int U = V >= 4 ? 2 : 4;  // chains of sums, so that none is waited for
  vf brought[V], sum[U][V] = {};
  for (int n = 0; n < V; ++n) brought[n] = load<vf>(x + n * LANES) * step;
  const vf faded = splat(fade);
  for (int64_t i = 0; i < keys; i += U)
    for (int u = 0; u < U; ++u) {
      const vf b = splat(key[i + u]), c = splat(query[i + u]);
      for (int n = 0; n < V; ++n) {
        float* at = s + (i + u) * stride + n * LANES;
        const vf after = load<vf>(at) * faded + brought[n] * b;
        store(at, after);
        sum[u][n] += after * c;
      }
    }
  for (int n = 0; n < V; ++n) {
    for (int u = 1; u < U; ++u) sum[0][n] += sum[u][n];
    store(read + n * LANES, sum[0][n]);
  }
}

// All tokens of a row, for one head: what each read, with what skips the state, and gated.
inline void advance_head(const StateSpace& s, const TextRow& row, int64_t head, const float* mixed, const float* gates) {
  const int64_t channels = s.convolution.channels, heads = s.heads();
  const auto of = [&](int64_t token) { return mixed + token * channels + head / s.group * s.per_group(); };
  const int64_t value = 2 * s.keys + head % s.group * s.values;
  const auto one = [&](auto vectors, float* state, int64_t stride, int64_t token, int64_t column, float* read) {
    const float *c = of(token), *gate = gates + token * 2 * heads + head;
    take_in<decltype(vectors)::value>(state, stride, s.keys, c, c + s.keys, c + value + column, gate[0], gate[heads], read);
  };
  over_row(row, s.states, head, s.keys, s.values, one, [&](int64_t token, const float* read) {
    const float *x = of(token) + value, *z = s.z + (token * heads + head) * s.values;
    float* given = s.given + (token * heads + head) * s.values;
    const vf skip = splat(s.skip[head]);
    for (int64_t i = 0; i < s.values; i += LANES)
      store(given + i, (load<vf>(read + i) + skip * load<vf>(x + i)) * silu(load<vf>(z + i)));
  });
}

// What a token is given, each group by its root mean square.
inline void norm_groups(const StateSpace& s, int64_t token) {
  const int64_t width = s.group * s.values;
  for (int64_t group = 0; group < s.groups; ++group) {
    float* given = s.given + (token * s.groups + group) * width;
    const float* norm = s.norm + group * width;
    vf squares{};
    for (int64_t i = 0; i < width; i += LANES) squares += load<vf>(given + i) * load<vf>(given + i);
    const vf factor = splat(1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + s.epsilon));
    for (int64_t i = 0; i < width; i += LANES) store(given + i, load<vf>(given + i) * factor * load<vf>(norm + i));
  }
}

inline void recur(const StateSpace& s) {
  static Shelf shelf;
  Shelf::Lent memory(shelf);
  const int64_t channels = s.convolution.channels, heads = s.heads();
  const std::vector<TextRow> rows = rows_of(s.rows);
  float* mixed = memory.get(s.rows.tokens * (channels + 2 * heads));
  float* gates = mixed + s.rows.tokens * channels;
  in_tiles(rows, [&](const TextRow& row, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t token = row.token + i;
      prepare(s, row, i, mixed + token * channels, gates + token * 2 * heads);
    }
  });
  s.convolution.leave_all(rows, [&](int64_t at, int64_t c, float) { return s.cbx[at * channels + c]; });
  begin_all(rows, s.states, heads);
  Team::instance().run(static_cast<int64_t>(rows.size()) * heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      advance_head(s, rows[static_cast<size_t>(i / heads)], i % heads, mixed, gates);
  });
  in_tiles(rows, [&](const TextRow& row, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) norm_groups(s, row.token + i);
  });
}

}  // namespace cortex
