// Products of rows with the matrices of the experts that each goes through, and which those are. Knows tiles, nothing of XLA.
//
// Rows are sorted by expert, so that an expert's tiles are read once for all its rows, and of the others nothing. As in a
// plain product an output is one chain of multiply-adds; what a token's experts give is added in the order of the experts.
// So a token's result is the same bits alone and among others.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "matmul.h"

namespace cortex {

// Which rows go through which experts: those of expert e are [begin[e], begin[e + 1]), each of a token and with its share.
struct Routed {
  const int32_t* token;  // [rows]
  const float* share;    // [rows], or null
  const int32_t* begin;  // [experts + 1]
  int64_t experts;
};

struct Routing {
  const float* logits;      // [tokens, experts]
  const float* correction;  // [experts], added for the choice alone; or null
  int32_t* token;           // what `Routed` has
  float* share;
  int32_t* begin;
  int64_t tokens, experts, active;
  int64_t groups, kept_groups, group_best;
  bool sigmoid, renormalised;
  float scale;
};

inline int64_t best_of(const float* values, int64_t count) {
  int64_t best = 0;
  for (int64_t i = 1; i < count; ++i) best = values[i] > values[best] ? i : best;
  return best;
}

constexpr float TAKEN = -std::numeric_limits<float>::infinity();

inline void score(const Routing& r, const float* logits, float* scores) {
  float most = 0, total = 0;
  if (!r.sigmoid) most = logits[best_of(logits, r.experts)];
  for (int64_t e = 0; e < r.experts; ++e) {
    scores[e] = r.sigmoid ? 1.0f / (1.0f + std::exp(-logits[e])) : std::exp(logits[e] - most);
    total += scores[e];
  }
  if (r.sigmoid) return;
  for (int64_t e = 0; e < r.experts; ++e) scores[e] /= total;
}

// Takes the groups that are not kept out of the choice. `rest` has room for a group's values and a value for each group.
inline void keep_groups(const Routing& r, float* ranked, float* rest) {
  const int64_t each = r.experts / r.groups;
  float* sums = rest + each;
  for (int64_t g = 0; g < r.groups; ++g) {
    std::copy_n(ranked + g * each, each, rest);
    sums[g] = 0;
    for (int64_t i = 0; i < r.group_best; ++i) {
      const int64_t best = best_of(rest, each);
      sums[g] += rest[best];
      rest[best] = TAKEN;
    }
  }
  for (int64_t i = 0; i < r.kept_groups; ++i) {
    const int64_t best = best_of(sums, r.groups);
    sums[best] = TAKEN;
  }
  for (int64_t g = 0; g < r.groups; ++g)
    if (sums[g] != TAKEN) std::fill_n(ranked + g * each, each, TAKEN);
}

// The experts of one token, the best first, and their shares. `room` has 2 * experts + 2 floats and more for groups.
inline void choose(const Routing& r, int64_t token, int32_t* chosen, float* share, float* room) {
  float *scores = room, *ranked = room + r.experts;
  score(r, r.logits + token * r.experts, scores);
  for (int64_t e = 0; e < r.experts; ++e) ranked[e] = scores[e] + (r.correction != nullptr ? r.correction[e] : 0);
  if (r.groups > 1) keep_groups(r, ranked, room + 2 * r.experts);
  float total = 0;
  for (int64_t i = 0; i < r.active; ++i) {
    const int64_t best = best_of(ranked, r.experts);
    chosen[i] = static_cast<int32_t>(best);
    share[i] = scores[best];
    total += scores[best];
    ranked[best] = TAKEN;
  }
  const float by = r.scale / (r.renormalised ? std::fmax(total, std::numeric_limits<float>::min()) : 1.0f);
  for (int64_t i = 0; i < r.active; ++i) share[i] *= by;
}

inline Shelf routing_shelf;

inline void route(const Routing& r) {
  Shelf::Lent lent(routing_shelf);
  const int64_t pairs = r.tokens * r.active;
  float* shares = lent.get(2 * pairs + r.experts);
  int32_t* chosen = reinterpret_cast<int32_t*>(shares + pairs);
  int32_t* next = chosen + pairs;
  Team::instance().run(r.tokens, 16, [&](int64_t first, int64_t last) {
    static thread_local Scratch scores;
    float* room = scores.get(3 * r.experts + r.groups);
    for (int64_t t = first; t < last; ++t) choose(r, t, chosen + t * r.active, shares + t * r.active, room);
  });
  std::fill_n(r.begin, r.experts + 1, 0);
  for (int64_t i = 0; i < pairs; ++i) ++r.begin[chosen[i] + 1];
  for (int64_t e = 0; e < r.experts; ++e) next[e] = r.begin[e + 1] += r.begin[e];
  for (int64_t i = pairs; i-- > 0;) {
    const int32_t at = --next[chosen[i]];
    r.token[at] = static_cast<int32_t>(i / r.active);
    r.share[at] = shares[i];
  }
}

// The rows of one expert.
struct Part {
  Product p;
  int64_t begin;  // its first tile
  float* packed;
};

// The experts that have rows, each as a product. `all` has what they share; rows are gathered from tokens where `gathers`,
// else added to them.
inline std::vector<Part> parts_of(const Product& all, const Routed& routed, bool gathers) {
  std::vector<Part> parts;
  const int64_t tiles = tiles_of(all), sums = all.outputs * (all.gated() ? 2 : 1);
  for (int64_t e = 0; e < routed.experts; ++e) {
    const int64_t first = routed.begin[e];
    Product p = all;
    p.rows = routed.begin[e + 1] - first;
    if (p.rows == 0) continue;
    if (p.bias != nullptr) p.bias += e * sums;
    if (gathers) {
      p.from = routed.token + first;
      p.share = routed.share == nullptr ? nullptr : routed.share + first;
      p.y += first * p.outputs;
    } else {
      p.x += first * p.columns;
      p.to = routed.token + first;
      p.share = routed.share + first;
    }
    parts.push_back({p, e * tiles, nullptr});
  }
  return parts;
}

template <class W>
inline void pack_parts(std::vector<Part>& parts, const W& w, Shelf::Lent& lent) {
  const auto floats = [&](const Part& part) {
    int64_t count = 0;
    with_way(part.p, w, [&](const auto& way) { count = whole_lines(way.packed_floats()); });
    return count;
  };
  int64_t total = 0;
  for (const Part& part : parts) total += floats(part);
  float* at = lent.get(total);
  for (Part& part : parts) {
    part.packed = at;
    at += floats(part);
  }
  Team::instance().run(static_cast<int64_t>(parts.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const Part& part = parts[static_cast<size_t>(i)];
      with_way(part.p, w, [&](const auto& way) {
        for (int64_t b = 0; b < way.blocks.count(); ++b) way.pack(b, part.packed);
      });
    }
  });
}

template <class W>
inline void item_of(const Part& part, const W& w, int64_t item) {
  with_way(part.p, w, [&](const auto& way) { two_tiles(way, part.begin, item, part.packed); });
}

// y[row, head] = x[row, head] W of the head.
template <class W>
void multiply_heads(const Product& all, const W& w) {
  Shelf::Lent lent(packed_shelf);
  std::vector<Part> parts;
  for (int64_t head = 0; head < all.heads; ++head) {
    Product p = all;
    p.x += head * all.columns;
    p.y += head * all.outputs;
    parts.push_back({p, head * tiles_of(all), nullptr});
  }
  pack_parts(parts, w, lent);
  const int64_t each = items_of(all), items = all.heads * each;
  Team::instance().run(items, grain_of(items), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) item_of(parts[static_cast<size_t>(i / each)], w, i % each);
  });
}

// y[row] = f(share * norm(x[token of row]) W of its expert + bias), gated or not; the share is 1 where there is none.
template <class W>
void multiply_gathered(const Product& all, const W& w, const Routed& routed) {
  Shelf::Lent lent(packed_shelf);
  std::vector<Part> parts = parts_of(all, routed, true);
  pack_parts(parts, w, lent);
  const int64_t each = items_of(all), items = static_cast<int64_t>(parts.size()) * each;
  Team::instance().run(items, grain_of(items), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) item_of(parts[static_cast<size_t>(i / each)], w, i % each);
  });
}

// y[token] = residual[token] + the sum, over its rows in the order of their experts, of share * (x[row] W + bias).
template <class W>
void multiply_summed(const Product& all, const W& w, const Routed& routed) {
  Shelf::Lent lent(packed_shelf);
  Product shared = all;
  shared.residual = nullptr;
  std::vector<Part> parts = parts_of(shared, routed, false);
  pack_parts(parts, w, lent);
  const int64_t items = items_of(all);
  // Who has an item has its columns of all tokens, so nobody else adds to them.
  Team::instance().run(items, grain_of(items), [&](int64_t first, int64_t last) {
    const int64_t begin = first * 2 * TILE, end = std::min(last * 2 * TILE, all.outputs);
    for (int64_t t = 0; t < all.rows; ++t) {
      float* y = all.y + t * all.outputs;
      if (all.residual == nullptr)
        std::fill(y + begin, y + end, 0.0f);
      else
        std::copy(all.residual + t * all.outputs + begin, all.residual + t * all.outputs + end, y + begin);
    }
    for (int64_t item = first; item < last; ++item)
      for (const Part& part : parts) item_of(part, w, item);
  });
}

}  // namespace cortex
