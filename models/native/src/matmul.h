// y = f(norm(x) W + bias) for a few or many rows of x. Knows tiles and rows, nothing of XLA.
//
// Every output is one chain of fused multiply-adds over the columns in ascending order, whatever the number of rows, the
// thread or the copy of the loop: a row's result is the same bits alone and among others.
#pragma once

#include <cmath>
#include <type_traits>

#include "scratch.h"
#include "team.h"
#include "weights.h"

namespace cortex {

// As `models.native.ops` numbers them; all but UNGATED and RELU2 are of gated products, act(gate) * up.
enum Gate : int64_t { UNGATED = 0, SILU = 1, GELU = 2, GELU_TANH = 3, SWIGLU_OAI = 4, RELU2 = 5 };

struct Product {
  const float* x;          // [rows, columns]
  const float* norm;       // [columns]: x is normalized by its root mean square and weighted first; or null
  const float* bias;       // [outputs], of gated products [2, outputs], added to the sums; or null
  const float* post_norm;  // [outputs]: so are a row's outputs, before the residual is added; or null
  const float* residual;   // [rows, outputs], added last; or null
  const float* beside;     // [rows, outputs], of gated products [rows, 2, outputs], added to the sums; or null
  float* y;                // [rows, outputs]
  int64_t rows, columns, outputs;
  float epsilon, post_epsilon;
  Gate gate;
  float limit;  // a gate is at most that, and what it gates within it; infinity for none
  const int32_t* from;     // [rows], the row of x that each is; or null: they are in order
  const int32_t* to;       // [rows], the row of y that each is added to, times its share; or null: each is its own
  const float* share;      // [rows] where there is a `to`; without, what each row of x is multiplied by, or null
  // Matrices side by side, each for its own part of a row: x is [rows, heads, columns] and y [rows, heads, outputs]. With
  // more than one there is nothing but the product.
  int64_t heads = 1;

  bool gated() const { return gate != UNGATED && gate != RELU2; }
};

constexpr int MOST_ROWS = 12;  // 24 accumulators, which leaves 8 of AVX-512's registers
// Up to FEW_BLOCKS blocks of at most FEW_ROWS rows the codes are decoded once for each block; for more, tiles are expanded.
#if defined(__AVX512F__)
constexpr bool NARROW = false;
constexpr int64_t FEW_BLOCKS = 2;
constexpr int FEW_ROWS = MOST_ROWS;
#else
// With half as many registers, of half the width or a quarter, 6 rows are computed at a time, and PANEL outputs.
constexpr bool NARROW = true;
constexpr int64_t FEW_BLOCKS = 4;
constexpr int FEW_ROWS = 6;
#endif
constexpr int PANEL = 16;

inline float inverse_rms(const float* x, int64_t width, float epsilon) {
  vf squares{};
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) {
    const vf v = load<vf>(x + i);
    squares += v * v;
  }
  float total = sum(squares);
  for (; i < width; ++i) total += x[i] * x[i];
  return 1.0f / std::sqrt(total / static_cast<float>(width) + epsilon);
}

inline void normalize(const float* x, const float* weight, int64_t width, float epsilon, float* y) {
  const float scale = inverse_rms(x, width, epsilon);
  for (int64_t i = 0; i < width; ++i) y[i] = x[i] * scale * weight[i];
}

// y = x less its mean.
inline void centre(const float* x, int64_t width, float* y) {
  vf sums{};
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES) sums += load<vf>(x + i);
  float total = sum(sums);
  for (; i < width; ++i) total += x[i];
  const float mean = total / static_cast<float>(width);
  for (i = 0; i < width; ++i) y[i] = x[i] - mean;
}

// Rows [first, first + count) of x as [columns, ROWS], zeros past `count`: the product then reads one stream.
inline void pack(const Product& p, int64_t first, int64_t count, int rows, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    if (r >= count) {
      for (int64_t k = 0; k < p.columns; ++k) to[k * rows + r] = 0;
      continue;
    }
    const float* x = p.x + (p.from != nullptr ? p.from[first + r] : first + r) * p.heads * p.columns;
    const float share = p.to == nullptr && p.share != nullptr ? p.share[first + r] : 1.0f;
    if (p.norm == nullptr) {
      for (int64_t k = 0; k < p.columns; ++k) to[k * rows + r] = x[k] * share;
      continue;
    }
    const float scale = inverse_rms(x, p.columns, p.epsilon) * share;
    for (int64_t k = 0; k < p.columns; ++k) to[k * rows + r] = x[k] * scale * p.norm[k];
  }
}

inline vf sigmoid(vf v) { return splat(1.0f) / (exp(-v) + 1.0f); }

inline vf act(Gate kind, vf gate, vf up) {
  switch (kind) {
    case UNGATED: case RELU2: return gate;
    case SILU: return gate / (exp(-gate) + 1.0f) * up;
    case GELU: return gate * normal_share(gate) * up;
    // (1 + tanh(u)) / 2 = sigmoid(2u)
    case GELU_TANH: return gate * sigmoid((gate * gate * 0.044715f + 1.0f) * gate * 1.5957691216057308f) * up;
    case SWIGLU_OAI: return gate * sigmoid(gate * 1.702f) * (up + 1.0f);
  }
  return gate;
}

// `LANES` values from `from`, of which `live` exist.
inline vf some(const float* from, int64_t live) {
  if (live >= LANES) return load<vf>(from);
  vf v{};
  for (int64_t i = 0; i < live; ++i) v[i] = from[i];
  return v;
}

// Up to LANES outputs of one row, from `column` on, into memory.
inline void put(const Product& p, int64_t row, int64_t column, vf value) {
  const int64_t live = p.outputs - column, at = row * p.heads * p.outputs + column;
  if (live <= 0) return;
  if (p.bias != nullptr && !p.gated()) value += some(p.bias + column, live);
  if (p.beside != nullptr && !p.gated()) value += some(p.beside + at, live);
  if (p.gate == RELU2) value = value > 0 ? value * value : vf{};
  if (p.to != nullptr) {
    float* sum = p.y + p.to[row] * p.outputs + column;
    value = value * p.share[row] + some(sum, live);
    if (live >= LANES) return store(sum, value);
    for (int64_t i = 0; i < live; ++i) sum[i] = value[i];
    return;
  }
  if (p.residual != nullptr && p.post_norm == nullptr) value += some(p.residual + at, live);
  if (live >= LANES) return store(p.y + at, value);
  for (int64_t i = 0; i < live; ++i) p.y[at + i] = value[i];
}

// The same of a gated product.
inline void put_gated(const Product& p, int64_t row, int64_t column, vf gate, vf up) {
  const int64_t live = p.outputs - column;
  if (live <= 0) return;
  if (p.bias != nullptr) {
    gate += some(p.bias + column, live);
    up += some(p.bias + p.outputs + column, live);
  }
  if (p.beside != nullptr) {
    const float* beside = p.beside + row * 2 * p.outputs + column;
    gate += some(beside, live);
    up += some(beside + p.outputs, live);
  }
  const vf most = splat(p.limit);
  gate = gate > most ? most : gate;
  up = up > most ? most : up < -most ? -most : up;
  put(p, row, column, act(p.gate, gate, up));
}

// What is left to do of a row once all its outputs are there.
inline void settle(const Product& p, int64_t row) {
  float* y = p.y + row * p.outputs;
  normalize(y, p.post_norm, p.outputs, p.post_epsilon, y);
  if (p.residual == nullptr) return;
  const float* residual = p.residual + row * p.outputs;
  for (int64_t i = 0; i < p.outputs; ++i) y[i] += residual[i];
}

// TILES tiles times ROWS packed rows, of which `count` exist; of each tile COUNT vectors of outputs.
template <int TILES, int ROWS, int FROM = 0, int COUNT = PARTS, class W>
inline void block(const Product& p, const W& w, int64_t from, int64_t tile, const float* x, int64_t first, int64_t count) {
  vf acc[ROWS][TILES][COUNT] = {};
  w.template each<TILES>(from, [&](int64_t k, const Column* v) {
    for (int r = 0; r < ROWS; ++r) {
      const vf xr = splat(x[k * ROWS + r]);
      for (int t = 0; t < TILES; ++t)
        for (int i = 0; i < COUNT; ++i) acc[r][t][i] += xr * v[t].part[FROM + i];
    }
  });
  for (int r = 0; r < ROWS && r < count; ++r)
    for (int i = 0; i < COUNT; ++i) {
      const int at = (FROM + i) * LANES;
      if (p.gated()) {
        if constexpr (TILES == 2) put_gated(p, first + r, tile / 2 * TILE + at, acc[r][0][i], acc[r][1][i]);
        continue;
      }
      for (int t = 0; t < TILES; ++t) put(p, first + r, (tile + t) * TILE + at, acc[r][t][i]);
    }
}

// The same of whole tiles, one after the other, in as many passes as the sums need to stay in narrow registers.
template <int TILES, int ROWS, class W>
inline void in_passes(const Product& p, const W& w, int64_t begin, int64_t tile, const float* x, int64_t first, int64_t count) {
  constexpr int COUNT = (ROWS <= 2 ? TILE : PANEL) / LANES / TILES;
  const auto passes = [&](auto... pass) {
    (block<TILES, ROWS, decltype(pass)::value * COUNT, COUNT>(p, w, begin + tile, tile, x, first, count), ...);
  };
  static_assert(PARTS / COUNT == 1 || PARTS / COUNT == 2 || PARTS / COUNT == 4);
  using std::integral_constant;
  if constexpr (PARTS / COUNT == 1)
    passes(integral_constant<int, 0>{});
  else if constexpr (PARTS / COUNT == 2)
    passes(integral_constant<int, 0>{}, integral_constant<int, 1>{});
  else
    passes(integral_constant<int, 0>{}, integral_constant<int, 1>{}, integral_constant<int, 2>{}, integral_constant<int, 3>{});
}

// Expanded tiles, as blocks of rows read them. Wide registers take a tile as it is. Narrow ones take panels of PANEL outputs
// [panels, columns, PANEL], so that what a block reads is one stream; of a gated pair half a panel is gates and half ups.
template <bool GATED, class W>
inline void expand(const W& w, int64_t tile, float* flat) {
  constexpr int TILES = GATED ? 2 : 1, WIDTH = PANEL / TILES;
  if constexpr (!NARROW) {
    for (int t = 0; t < TILES; ++t) w.expand(tile + t, flat + t * w.columns * TILE);
  } else {
    w.template each<TILES>(tile, [&](int64_t k, const Column* v) {
      for (int t = 0; t < TILES; ++t)
        for (int i = 0; i < PARTS; ++i) {
          const int at = i * LANES;
          store(flat + (at / WIDTH * w.columns + k) * PANEL + t * WIDTH + at % WIDTH, v[t].part[i]);
        }
    });
  }
}

// SUB of the ROWS rows times one panel.
template <bool GATED, int ROWS, int SUB>
inline void panel(const Product& p, const float* w, int64_t column, const float* x, int64_t first, int64_t count) {
  constexpr int VECTORS = PANEL / LANES, HALF = VECTORS / 2;
  vf acc[SUB][VECTORS] = {};
  for (int64_t k = 0; k < p.columns; ++k) {
    vf v[VECTORS];
    for (int i = 0; i < VECTORS; ++i) v[i] = load<vf>(w + k * PANEL + i * LANES);
    for (int r = 0; r < SUB; ++r) {
      const vf xr = splat(x[k * ROWS + r]);
      for (int i = 0; i < VECTORS; ++i) acc[r][i] += xr * v[i];
    }
  }
  for (int r = 0; r < SUB && r < count; ++r) {
    if constexpr (GATED)
      for (int i = 0; i < HALF; ++i) put_gated(p, first + r, column + i * LANES, acc[r][i], acc[r][HALF + i]);
    else
      for (int i = 0; i < VECTORS; ++i) put(p, first + r, column + i * LANES, acc[r][i]);
  }
}

// ROWS rows times the expanded tile `tile` and, of a gated pair, the next.
template <bool GATED, int ROWS>
inline void expanded_block(const Product& p, const float* flat, int64_t tile, const float* x, int64_t first, int64_t count) {
  if constexpr (!NARROW) {
    const Weights<Float32, Float32, false> plain{reinterpret_cast<const uint8_t*>(flat), nullptr, nullptr, p.columns, 0};
    return block<GATED ? 2 : 1, ROWS>(p, plain, 0, tile, x, first, count);
  } else {
    constexpr int SUB = ROWS % 6 == 0 ? 6 : ROWS % 4 == 0 ? 4 : ROWS, WIDTH = GATED ? PANEL / 2 : PANEL;
    const int64_t column = (GATED ? tile / 2 : tile) * TILE;
    for (int i = 0; i * WIDTH < TILE; ++i)
      for (int r = 0; r < ROWS && r < count; r += SUB)
        panel<GATED, ROWS, SUB>(p, flat + i * p.columns * PANEL, column + i * WIDTH, x + r, first + r, count - r);
  }
}

inline Shelf packed_shelf;

// Rows of p in blocks of ROWS, packed one after the other.
template <int ROWS>
struct Blocks {
  int64_t rows;

  int64_t count() const { return (rows + ROWS - 1) / ROWS; }
  int64_t rows_of(int64_t b) const { return rows - b * ROWS < ROWS ? rows - b * ROWS : int64_t{ROWS}; }
};

// Two tiles of outputs, or one where there is no second, of all packed rows. A matrix of a stack begins at tile `begin`.
template <int ROWS, class W>
void two_tiles(const Product& p, const W& w, int64_t begin, int64_t tile, int64_t tiles, const float* packed, Scratch& expanded) {
  // Two tiles at once: for one row, enough independent sums to hide their latency; for gated ones, gate and up.
  constexpr int TILES = ROWS <= 6 ? 2 : 1;
  const Blocks<ROWS> blocks{p.rows};
  const bool both = tile + 1 < tiles;
  if (ROWS <= 2 || (ROWS <= FEW_ROWS && blocks.count() <= FEW_BLOCKS)) {
    for (int64_t b = 0; b < blocks.count(); ++b) {
      const float* x = packed + b * ROWS * p.columns;
      const auto times = [&](auto tiles_at_once, int64_t at) {
        constexpr int N = decltype(tiles_at_once)::value;
        if constexpr (NARROW && ROWS > 1)
          in_passes<N, ROWS>(p, w, begin, at, x, b * ROWS, blocks.rows_of(b));
        else
          block<N, ROWS>(p, w, begin + at, at, x, b * ROWS, blocks.rows_of(b));
      };
      if constexpr (TILES == 2) {
        if (both && (p.gated() || !NARROW || ROWS == 1)) {
          times(std::integral_constant<int, 2>{}, tile);
          continue;
        }
      }
      times(std::integral_constant<int, 1>{}, tile);
      if (both) times(std::integral_constant<int, 1>{}, tile + 1);
    }
    return;
  }
  // Many rows: each tile is expanded once, and read from the cache for every block of them.
  float* flat = expanded.get(2 * p.columns * TILE);
  const auto over_rows = [&](auto gated, int64_t at) {
    expand<decltype(gated)::value>(w, begin + at, flat);
    for (int64_t b = 0; b < blocks.count(); ++b)
      expanded_block<decltype(gated)::value, ROWS>(p, flat, at, packed + b * ROWS * p.columns, b * ROWS, blocks.rows_of(b));
  };
  if constexpr (TILES == 2 || NARROW) {
    if (p.gated()) return over_rows(std::true_type{}, tile);
  }
  over_rows(std::false_type{}, tile);
  if (both) over_rows(std::false_type{}, tile + 1);
}

// Scratch of whichever thread is at work.
inline Scratch& expanded_scratch() {
  static thread_local Scratch expanded;
  return expanded;
}

// Work is handed out in pieces of which every thread gets a few.
inline int64_t grain_of(int64_t items) {
  const int64_t pieces = Team::instance().size() * 4;
  return items / pieces > 0 ? items / pieces : 1;
}

inline int64_t tiles_of(const Product& p) { return (p.outputs + TILE - 1) / TILE * (p.gated() ? 2 : 1); }

template <int ROWS, class W>
void product(const Product& p, const W& w) {
  Shelf::Lent packed_rows(packed_shelf);
  const Blocks<ROWS> blocks{p.rows};
  float* packed = packed_rows.get(blocks.count() * ROWS * p.columns);
  Team& team = Team::instance();
  team.run(blocks.count(), 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) pack(p, b * ROWS, blocks.rows_of(b), ROWS, packed + b * ROWS * p.columns);
  });
  const int64_t tiles = tiles_of(p), items = (tiles + 1) / 2;
  team.run(items, grain_of(items), [&](int64_t first, int64_t last) {
    for (int64_t item = first; item < last; ++item) two_tiles<ROWS>(p, w, 0, 2 * item, tiles, packed, expanded_scratch());
  });
  if (p.post_norm == nullptr) return;
  team.run(p.rows, 4, [&](int64_t first, int64_t last) {
    for (int64_t row = first; row < last; ++row) settle(p, row);
  });
}

// Calls use(std::integral_constant<int, ROWS>) with the rows of a block for so many. Even blocks: 16 rows are 8 + 8, not 12 + 4.
template <class Use>
void with_rows(int64_t all, bool gated, const Use& use) {
  const bool few = NARROW && all <= FEW_BLOCKS * FEW_ROWS;
  const int64_t most = few || (gated && !NARROW) ? 6 : MOST_ROWS;
  const int64_t blocks = (all + most - 1) / most, rows = (all + blocks - 1) / blocks;
  if (rows <= 1) return use(std::integral_constant<int, 1>{});
  if (rows <= 2) return use(std::integral_constant<int, 2>{});
  if (rows <= 4) return use(std::integral_constant<int, 4>{});
  if (rows <= 6) return use(std::integral_constant<int, 6>{});
  if (rows <= 8) return use(std::integral_constant<int, 8>{});
  return use(std::integral_constant<int, 12>{});
}

template <class W>
void multiply(const Product& p, const W& w) {
  with_rows(p.rows, p.gated(), [&](auto rows) { product<decltype(rows)::value>(p, w); });
}

}  // namespace cortex
