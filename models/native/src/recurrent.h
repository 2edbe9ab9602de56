// Recurrent layers over the rows of a step: short convolutions and the gated delta rule. Knows slots and snapshots by number.
//
// A row's tokens go one after the other, so what a token is given is the same bits whatever row and step it comes in. That
// costs little: the columns of a delta rule's state change independently of each other, and a block of them stays in the
// nearest cache for all tokens of a row. In chunks, as accelerators do it, the same work is more arithmetic, not less.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "scratch.h"
#include "team.h"
#include "vec.h"

namespace cortex {

// As `models.native.recurrent.StateRows`.
struct StateRows {
  const int32_t *slot, *start, *count, *load, *save;
  int64_t rows, tokens, page_size;
};

struct TextRow {
  int64_t slot, token, count, load, save;
  int64_t edge;  // how many of its tokens are before the state that is kept; below 0 where none is
  bool fresh;    // begins with zeros
  std::vector<std::pair<int64_t, int64_t>> marks;  // behind so many of its tokens the state is kept in that snapshot, too
};

inline std::vector<TextRow> rows_of(const StateRows& r) {
  std::vector<TextRow> found;
  int64_t token = 0;
  for (int64_t row = 0; row < r.rows; ++row) {
    const int64_t count = std::clamp<int64_t>(r.count[row], 0, r.tokens - token), start = r.start[row];
    if (count == 0) continue;
    if (r.load[row] < 0) {
      TextRow& before = found.back();
      if (r.save[row] > 0) before.marks.emplace_back(before.count, r.save[row]);
      before.count += count;
    } else {
      const int64_t edge = (start + count - 1) / r.page_size * r.page_size - start;
      found.push_back({r.slot[row], token, count, r.load[row], r.save[row], r.save[row] > 0 ? edge : -1, start == 0, {}});
    }
    token += count;
  }
  return found;
}

// One array of states, `size` floats for each slot and each snapshot.
struct States {
  float *slots, *snapshots;
  int64_t size;

  float* at(const TextRow& row) const { return slots + row.slot * size; }
  float* kept(const TextRow& row) const { return snapshots + row.save * size; }
  float* marked(int64_t snapshot) const { return snapshots + snapshot * size; }
  // What the row begins with; null for zeros.
  const float* begin(const TextRow& row) const {
    return row.load > 0 ? snapshots + row.load * size : row.fresh ? nullptr : at(row);
  }
};

constexpr int64_t ROW_TILE = 32;

// Calls use(row, first, last) for tiles of the rows' tokens, on all threads.
template <class Use>
inline void in_tiles(const std::vector<TextRow>& rows, const Use& use) {
  struct Tile {
    int64_t row, first, last;
  };
  std::vector<Tile> tiles;
  for (size_t row = 0; row < rows.size(); ++row)
    for (int64_t first = 0; first < rows[row].count; first += ROW_TILE)
      tiles.push_back({static_cast<int64_t>(row), first, std::min(first + ROW_TILE, rows[row].count)});
  Team::instance().run(static_cast<int64_t>(tiles.size()), 1, [&](int64_t from, int64_t to) {
    for (int64_t i = from; i < to; ++i) {
      const Tile& tile = tiles[static_cast<size_t>(i)];
      use(rows[static_cast<size_t>(tile.row)], tile.first, tile.last);
    }
  });
}

// A convolution over the last `taps` inputs of a text, channel by channel. `input(token, channel, lanes)` gives those of the
// step: a vector where lanes is a vf, else one float. The state is the last taps - 1 inputs, [taps - 1, channels].
struct Convolution {
  const float* weight;  // [taps, channels]
  int64_t taps, channels;
  States states;

  // use(channel, sum), with vectors of channels as long as there are whole ones, of token `i` of a row.
  template <class Input, class Use>
  void at(const TextRow& row, int64_t i, const Input& input, const Use& use) const {
    const float* before = states.begin(row);
    const auto sum = [&](int64_t c, auto zero) {
      using V = decltype(zero);
      V total = zero;
      for (int64_t n = 0; n < taps; ++n) {
        const V w = load<V>(weight + n * channels + c);
        total += w * value(row, before, i - (taps - 1) + n, c, input, zero);
      }
      use(c, total);
    };
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) sum(c, vf{});
    for (; c < channels; ++c) sum(c, 0.0f);
  }

  // The state behind `count` tokens of the row. Where it replaces the one that the row began with, later inputs move forward.
  template <class Input>
  void leave(const TextRow& row, int64_t count, const Input& input, float* into) const {
    const float* before = states.begin(row);
    for (int64_t n = 0; n < taps - 1; ++n)
      for (int64_t c = 0; c < channels; ++c)
        into[n * channels + c] = value(row, before, count - (taps - 1) + n, c, input, 0.0f);
  }

  // Snapshots and states of all rows, once nobody reads the old ones any more. In their order: a row may be kept where one
  // before it has begun.
  template <class Input>
  void leave_all(const std::vector<TextRow>& rows, const Input& input) const {
    for (const TextRow& row : rows) {
      // What it began with is overwritten last: its slot, or a snapshot whose place it may have been given again.
      const bool loads = row.load > 0;
      if (loads) leave(row, row.count, input, states.at(row));
      if (row.edge >= 0) leave(row, row.edge, input, states.kept(row));
      for (const auto& [done, place] : row.marks) leave(row, done, input, states.marked(place));
      if (!loads) leave(row, row.count, input, states.at(row));
    }
  }

 private:
  template <class V, class Input>
  V value(const TextRow& row, const float* before, int64_t i, int64_t c, const Input& input, V zero) const {
    if (i >= 0) return input(row.token + i, c, zero);
    return before == nullptr ? zero : load<V>(before + (taps - 1 + i) * channels + c);
  }
};

// A gated convolution: inputs [T, devices = 1, 3, channels] are B, C and x, and a token is given C * (conv(B x) + shift).
struct ShortConvolution {
  StateRows rows;
  Convolution convolution;
  const float *bcx, *shift;  // shift null: none
  float* given;
};

inline void convolve(const ShortConvolution& s) {
  const int64_t width = s.convolution.channels;
  const std::vector<TextRow> rows = rows_of(s.rows);
  const auto input = [&](int64_t token, int64_t c, auto zero) {
    using V = decltype(zero);
    const float* at = s.bcx + token * 3 * width + c;
    return load<V>(at) * load<V>(at + 2 * width);
  };
  in_tiles(rows, [&](const TextRow& row, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      s.convolution.at(row, i, input, [&](int64_t c, auto sum) {
        using V = decltype(sum);
        const int64_t token = row.token + i;
        if (s.shift != nullptr) sum += load<V>(s.shift + c);
        store(s.given + token * width + c, sum * load<V>(s.bcx + (token * 3 + 1) * width + c));
      });
  });
  s.convolution.leave_all(rows, input);
}

// Every row's state of `heads` parts as it begins, where it goes on. All rows have begun before the first is kept: one may be
// kept where another began.
inline void begin_all(const std::vector<TextRow>& rows, const States& states, int64_t heads) {
  const int64_t size = states.size / heads;
  Team::instance().run(static_cast<int64_t>(rows.size()) * heads, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const TextRow& row = rows[static_cast<size_t>(i / heads)];
      const float* begin = states.begin(row);
      float* state = states.at(row);
      if (begin == state) continue;
      const int64_t at = i % heads * size;
      if (begin == nullptr) std::memset(state + at, 0, sizeof(float) * static_cast<size_t>(size));
      else std::memcpy(state + at, begin + at, sizeof(float) * static_cast<size_t>(size));
    }
  });
}

constexpr int64_t COLUMNS = 32;
constexpr int64_t STATE_TILE = 64;

// All tokens of a row over one head's state [keys, values], a tile of them after the other. Of a tile each block of columns
// goes through all tokens: advance(vectors, s, stride, token, column, read) for so many vectors of columns, whose rows are
// `stride` apart. Then comes give(token, read) [values].
template <class Advance, class Give>
inline void over_row(const TextRow& row, const States& states, int64_t head, int64_t keys, int64_t values,
                     const Advance& advance, const Give& give) {
  static thread_local Scratch memory;
  float* local = memory.get(keys * COLUMNS + STATE_TILE * values);
  float* read = local + keys * COLUMNS;
  const int64_t size = keys * values;
  float* state = states.at(row) + head * size;
  const auto copy = [&](float* into) { std::memcpy(into + head * size, state, sizeof(float) * static_cast<size_t>(size)); };
  const auto keep = [&](int64_t done) {
    if (done == row.edge) copy(states.kept(row));
    for (const auto& [behind, place] : row.marks)
      if (done == behind) copy(states.marked(place));
  };
  keep(0);
  for (int64_t done = 0; done < row.count;) {
    int64_t until = row.edge > done ? row.edge : row.count;
    for (const auto& [behind, place] : row.marks)
      if (behind > done) until = std::min(until, behind);
    const int64_t count = std::min(STATE_TILE, until - done);
    const auto block = [&](auto vectors, int64_t column) {
      constexpr int64_t WIDTH = decltype(vectors)::value * LANES;
      float* s = state + column;
      int64_t stride = values;
      if (count > 1) {  // close together in the nearest cache
        for (int64_t i = 0; i < keys; ++i) std::memcpy(local + i * WIDTH, s + i * stride, sizeof(float) * WIDTH);
        s = local;
        stride = WIDTH;
      }
      for (int64_t i = 0; i < count; ++i)
        advance(vectors, s, stride, row.token + done + i, column, read + i * values + column);
      if (count > 1)
        for (int64_t i = 0; i < keys; ++i)
          std::memcpy(state + column + i * values, local + i * WIDTH, sizeof(float) * WIDTH);
    };
    int64_t column = 0;
    for (; column + COLUMNS <= values; column += COLUMNS)
      block(std::integral_constant<int, static_cast<int>(COLUMNS) / LANES>{}, column);
    for (; column < values; column += 16) block(std::integral_constant<int, 16 / LANES>{}, column);
    for (int64_t i = 0; i < count; ++i) give(row.token + done + i, read + i * values);
    done += count;
    keep(done);
  }
}

// The gated delta rule, see models/dense/delta.py. Channels are, of each key head, its query, its key, its values.
struct Delta {
  StateRows rows;
  Convolution convolution;
  States states;  // [key_heads, group, keys, values]
  const float *qkv, *gates, *z, *rate, *shift, *norm;
  float* given;
  float epsilon;
  int64_t key_heads, group, keys, values;

  int64_t heads() const { return key_heads * group; }
  int64_t per_key_head() const { return 2 * keys + group * values; }
};

inline float silu(float x) { return x / (1.0f + std::exp(-x)); }
inline vf silu(vf x) { return x / (exp(-x) + 1.0f); }

// x [width] to length 1, times `scale`.
inline void to_unit(float* x, int64_t width, float scale) {
  vf squares{};
  for (int64_t i = 0; i < width; i += LANES) squares += load<vf>(x + i) * load<vf>(x + i);
  const vf factor = splat(scale / std::sqrt(sum(squares) + 1e-6f));
  for (int64_t i = 0; i < width; i += LANES) store(x + i, load<vf>(x + i) * factor);
}

// Queries, keys and values of token `i` of a row in `mixed` [channels]; how its states fade and are corrected in `gates` [2, heads].
inline void prepare(const Delta& d, const TextRow& row, int64_t i, float* mixed, float* gates) {
  const int64_t channels = d.convolution.channels, token = row.token + i;
  const auto input = [&](int64_t at, int64_t c, auto zero) { return load<decltype(zero)>(d.qkv + at * channels + c); };
  d.convolution.at(row, i, input, [&](int64_t c, auto sum) { store(mixed + c, silu(sum)); });
  for (int64_t head = 0; head < d.key_heads; ++head) {
    float* q = mixed + head * d.per_key_head();
    to_unit(q, d.keys, 1.0f / std::sqrt(static_cast<float>(d.keys)));
    to_unit(q + d.keys, d.keys, 1.0f);
    for (int64_t g = 0; g < d.group; ++g) {
      const int64_t at = head * d.group + g;
      const float* raw = d.gates + token * 2 * d.heads() + head * 2 * d.group + g;
      const float a = raw[d.group] + d.shift[at];
      gates[at] = std::exp(d.rate[at] * (std::max(a, 0.0f) + std::log1p(std::exp(-std::fabs(a)))));
      gates[d.heads() + at] = 1.0f / (1.0f + std::exp(-raw[0]));
    }
  }
}

// One token over V vectors of a state's columns, `s` [keys, stride]: reads, corrects and reads again.
template <int V>
inline void advance(float* s, int64_t stride, int64_t keys, const float* q, const float* k, const float* v, float fade,
                    float rate, float* read) {
  constexpr int U = V >= 4 ? 2 : 4;  // chains of sums, so that none is waited for
  vf answer[U][V] = {}, sum[U][V] = {}, wrong[V];
  for (int64_t i = 0; i < keys; i += U)
    for (int u = 0; u < U; ++u) {
      const vf key = splat(k[i + u]);
      for (int n = 0; n < V; ++n) answer[u][n] += load<vf>(s + (i + u) * stride + n * LANES) * key;
    }
  for (int n = 0; n < V; ++n) {
    for (int u = 1; u < U; ++u) answer[0][n] += answer[u][n];
    wrong[n] = (load<vf>(v + n * LANES) - answer[0][n] * fade) * rate;
  }
  const vf faded = splat(fade);
  for (int64_t i = 0; i < keys; i += U)
    for (int u = 0; u < U; ++u) {
      const vf key = splat(k[i + u]), query = splat(q[i + u]);
      for (int n = 0; n < V; ++n) {
        float* at = s + (i + u) * stride + n * LANES;
        const vf after = load<vf>(at) * faded + wrong[n] * key;
        store(at, after);
        sum[u][n] += after * query;
      }
    }
  for (int n = 0; n < V; ++n) {
    for (int u = 1; u < U; ++u) sum[0][n] += sum[u][n];
    store(read + n * LANES, sum[0][n]);
  }
}

// What a token of one head read, normed and gated.
inline void give(const Delta& d, const float* read, const float* z, float* given) {
  vf squares{};
  for (int64_t i = 0; i < d.values; i += LANES) squares += load<vf>(read + i) * load<vf>(read + i);
  const vf factor = splat(1.0f / std::sqrt(sum(squares) / static_cast<float>(d.values) + d.epsilon));
  for (int64_t i = 0; i < d.values; i += LANES)
    store(given + i, load<vf>(read + i) * factor * load<vf>(d.norm + i) * silu(load<vf>(z + i)));
}

// All tokens of a row, for one head.
inline void advance_head(const Delta& d, const TextRow& row, int64_t head, const float* mixed, const float* gates) {
  const int64_t key_head = head / d.group, g = head % d.group, channels = d.convolution.channels;
  const auto one = [&](auto vectors, float* s, int64_t stride, int64_t token, int64_t column, float* read) {
    const float* q = mixed + token * channels + key_head * d.per_key_head();
    const float* gate = gates + token * 2 * d.heads() + head;
    advance<decltype(vectors)::value>(s, stride, d.keys, q, q + d.keys, q + 2 * d.keys + g * d.values + column, gate[0],
                                      gate[d.heads()], read);
  };
  over_row(row, d.states, head, d.keys, d.values, one, [&](int64_t token, const float* read) {
    const int64_t at = (token * d.heads() + head) * d.values;
    give(d, read, d.z + at, d.given + at);
  });
}

inline void recur(const Delta& d) {
  static Shelf shelf;
  Shelf::Lent memory(shelf);
  const int64_t channels = d.convolution.channels;
  const std::vector<TextRow> rows = rows_of(d.rows);
  float* mixed = memory.get(d.rows.tokens * (channels + 2 * d.heads()));
  float* gates = mixed + d.rows.tokens * channels;
  in_tiles(rows, [&](const TextRow& row, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t token = row.token + i;
      prepare(d, row, i, mixed + token * channels, gates + token * 2 * d.heads());
    }
  });
  d.convolution.leave_all(rows, [&](int64_t at, int64_t c, float) { return d.qkv[at * channels + c]; });
  begin_all(rows, d.states, d.heads());
  Team::instance().run(static_cast<int64_t>(rows.size()) * d.heads(), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      advance_head(d, rows[static_cast<size_t>(i / d.heads())], i % d.heads(), mixed, gates);
  });
}

}  // namespace cortex
