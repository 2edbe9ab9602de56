// What a product is asked to do, and what becomes of its sums. Knows rows and their outputs, nothing of how sums are made.
#pragma once

#include <cstdint>

#include "norm.h"

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

// Row `row` of x as it is multiplied: normalized, weighted, times its share.
struct Row {
  const float *x, *norm;
  float scale;

  Row(const Product& p, int64_t row) : norm(p.norm), scale(p.to == nullptr && p.share != nullptr ? p.share[row] : 1.0f) {
    x = p.x + (p.from != nullptr ? p.from[row] : row) * p.heads * p.columns;
    if (norm != nullptr) scale *= inverse_rms(x, p.columns, p.epsilon);
  }

  vf vector(int64_t k) const { return norm == nullptr ? load<vf>(x + k) * scale : load<vf>(x + k) * scale * load<vf>(norm + k); }
  float at(int64_t k) const { return norm == nullptr ? x[k] * scale : x[k] * scale * norm[k]; }
};

// Rows of p in blocks of ROWS.
template <int ROWS>
struct Blocks {
  int64_t rows;

  int64_t count() const { return (rows + ROWS - 1) / ROWS; }
  int64_t rows_of(int64_t b) const { return rows - b * ROWS < ROWS ? rows - b * ROWS : int64_t{ROWS}; }
};

// How many rows a block of at most `most` has, where blocks are as even as they can be.
inline int64_t even_rows(int64_t all, int64_t most) {
  const int64_t blocks = (all + most - 1) / most;
  return blocks > 0 ? (all + blocks - 1) / blocks : 0;
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

}  // namespace cortex
