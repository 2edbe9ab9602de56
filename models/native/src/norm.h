// What is done to a whole row of floats: its root mean square, its mean. Knows no products.
#pragma once

#include <cmath>

#include "vec.h"

namespace cortex {

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

}  // namespace cortex
