// y = f(norm(x) W + bias) for a few or many rows of x. Knows threads and what they share, nothing of XLA.
//
// How rows meet a matrix is a way: by floats, by integers, by the matrix unit. It says how rows are packed, once for all
// threads, and what becomes of two tiles of outputs. `with_way` chooses it by the matrix and the number of rows. A row's
// result is the same bits by all ways that there are for a matrix.
#pragma once

#include "floats.h"
#include "integers.h"
#include "matrix_unit.h"
#include "team.h"

namespace cortex {

template <class C, class S, bool OFFSET, class Use>
void with_way(const Product& p, const Coded<C, S, OFFSET>& w, const Use& use) {
  if (!with_unit(p, w, use)) with_integers(p, w, use);
}

inline Shelf packed_shelf;

// Work is handed out in pieces of which every thread gets a few.
inline int64_t grain_of(int64_t items) {
  const int64_t pieces = Team::instance().size() * 4;
  return items / pieces > 0 ? items / pieces : 1;
}

inline int64_t tiles_of(const Product& p) { return (p.outputs + TILE - 1) / TILE * (p.gated() ? 2 : 1); }

// Tiles are handed out in twos.
inline int64_t items_of(const Product& p) { return (tiles_of(p) + 1) / 2; }

template <class Way>
void two_tiles(const Way& way, int64_t begin, int64_t item, float* packed) {
  way.two_tiles(begin, 2 * item, 2 * item + 1 < tiles_of(way.p), packed);
}

template <class W>
void multiply(const Product& p, const W& w) {
  Team& team = Team::instance();
  with_way(p, w, [&](const auto& way) {
    Shelf::Lent lent(packed_shelf);
    float* packed = lent.get(way.packed_floats());
    team.run(way.blocks.count(), 1, [&](int64_t first, int64_t last) {
      for (int64_t b = first; b < last; ++b) way.pack(b, packed);
    });
    const int64_t items = items_of(p);
    team.run(items, grain_of(items), [&](int64_t first, int64_t last) {
      for (int64_t item = first; item < last; ++item) two_tiles(way, 0, item, packed);
    });
  });
  if (p.post_norm == nullptr) return;
  team.run(p.rows, 4, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) settle(p, row);
  });
}

}  // namespace cortex
