// A register of floats on any machine. Knows lanes, no matrices.
//
// GCC's and Clang's vector extensions rather than intrinsics: one source for AVX-512, AVX2 and NEON. Vectors are as wide as
// the machine's own: wider ones compile, too, but GCC keeps them in memory, which makes products ten times slower. `a * b +
// c` is one fused operation wherever the machine has one (-ffp-contract=fast), in every place alike: results must not
// depend on which copy of a loop computed them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace cortex {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t v16 __attribute__((vector_size(2 * LANES)));
typedef int16_t vs __attribute__((vector_size(4 * LANES)));  // two to a lane
typedef uint16_t vus __attribute__((vector_size(4 * LANES)));
typedef int16_t v16s __attribute__((vector_size(2 * LANES)));
typedef int8_t v8 __attribute__((vector_size(2 * LANES)));
typedef uint64_t v64 __attribute__((vector_size(4 * LANES)));

template <class V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
inline void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

#if defined(__AVX512F__)
inline vf splat(float x) { return vf{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
#elif defined(__AVX2__)
inline vf splat(float x) { return vf{x, x, x, x, x, x, x, x}; }
#else
inline vf splat(float x) { return vf{x, x, x, x}; }
#endif

inline vf from_bf16(v16 bits) { return reinterpret_cast<vf>(__builtin_convertvector(bits, vu) << 16); }

inline vf from_half(v16 bits) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(bits)));
#elif defined(__AVX2__) && defined(__F16C__)
  return reinterpret_cast<vf>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(bits)));
#else
  // Exponent and mantissa moved into place, then scaled by the difference of the biases: exact, subnormals included.
  const vu wide = __builtin_convertvector(bits, vu);
  const vf value = reinterpret_cast<vf>((wide & 0x7fff) << 13) * 0x1p112f;
  return reinterpret_cast<vf>(reinterpret_cast<vu>(value) | ((wide & 0x8000) << 16));
#endif
}

inline vi splat(int32_t x) { return vi{} + x; }

// sum + a * b of both halves of each lane: exact, whatever computes it.
inline vi dot(vi sum, vs a, vs b) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<vi>(_mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX512BW__)
  return sum + reinterpret_cast<vi>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVXVNNI__)
  return reinterpret_cast<vi>(_mm256_dpwssd_avx_epi32(reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return sum + reinterpret_cast<vi>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  const vi x = reinterpret_cast<vi>(a), y = reinterpret_cast<vi>(b);
  return sum + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

inline vf to_float(vi v) { return __builtin_convertvector(v, vf); }

// The sum of all lanes, always in the same order.
inline float sum(vf v) {
  float lane[LANES];
  store(lane, v);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

inline int32_t sum(vi v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(v));
#else
  int32_t total = 0;
  for (int i = 0; i < LANES; ++i) total += v[i];
  return total;
#endif
}

inline vf max(vf a, vf b) { return a > b ? a : b; }

inline float max(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#else
  float lane[LANES];
  store(lane, v);
  for (int width = LANES / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
  return lane[0];
#endif
}

inline vi max(vi a, vi b) { return a > b ? a : b; }

inline int32_t max(vi v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32(reinterpret_cast<__m512i>(v));
#else
  int32_t most = v[0];
  for (int i = 1; i < LANES; ++i) most = v[i] > most ? v[i] : most;
  return most;
#endif
}

// The low halves of a's lanes, then of b's.
inline vs narrow(vi a, vi b) {
#if defined(__AVX512BW__)
  const v16s low = reinterpret_cast<v16s>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(a)));
  const v16s high = reinterpret_cast<v16s>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(b)));
  return reinterpret_cast<vs>(_mm512_inserti64x4(_mm512_castsi256_si512(reinterpret_cast<__m256i>(low)), reinterpret_cast<__m256i>(high), 1));
#else
  const v16s half[2] = {__builtin_convertvector(a, v16s), __builtin_convertvector(b, v16s)};
  return load<vs>(half);
#endif
}

// e^x = 2^n (1 + rest): Cody and Waite's reduction and a Taylor series of degree 7 on [-ln2/2, ln2/2]; x within [-87, 88].
struct Exponential {
  vf r, slope;  // rest = r * slope
  vi n;

  vf power() const { return reinterpret_cast<vf>((n + 127) << 23); }
};

inline Exponential exponential(vf x) {
  const vf shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to the nearest integer
  const vf n = shifted - 12582912.0f;
  const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  vf p = splat(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  return {r, p, __builtin_convertvector(n, vi)};
}

// e^x within 2 units in the last place, for x <= 88; 0 below -87.
inline vf exp(vf x) {
  const vf floor = splat(-87.0f), ceiling = splat(88.0f);
  const Exponential e = exponential(x < floor ? floor : x > ceiling ? ceiling : x);
  const vf scaled = (e.slope * e.r + 1.0f) * e.power();
  return x < floor ? vf{} : scaled;
}

// 2^x within a unit in the last place, for x < 128; 0 below -126. A polynomial for what is left of x rounded, at most a half,
// fitted to the least relative error and to 1 at 0.
inline vf exp2(vf x) {
  const vf shifted = x + 12582912.0f;  // as above; its lowest bits are the integer
  const vf n = shifted - 12582912.0f;
  const vf f = x - n;
  vf p = splat(0.0001535336206452807f);
  p = p * f + 0.0013398874588720624f;
  p = p * f + 0.009618437358487972f;
  p = p * f + 0.05550332470701584f;
  p = p * f + 0.24022647913611156f;
  p = p * f + 0.6931472028552518f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  const __m512 power = reinterpret_cast<__m512>(n);
  const __mmask16 counts = _mm512_cmp_ps_mask(power, _mm512_set1_ps(-126.5f), _CMP_GT_OQ);
  return reinterpret_cast<vf>(_mm512_maskz_scalef_ps(counts, reinterpret_cast<__m512>(p), power));
#else
  const vi scaled = reinterpret_cast<vi>(p) + (reinterpret_cast<vi>(shifted) << 23);
  return reinterpret_cast<vf>(scaled & (n > -126.5f));
#endif
}

// (e^2x - 1) / (e^2x + 1), with e^2x - 1 put together so that nothing of a small x is lost; within 4 units in the last place.
inline vf tanh(vf x) {
  const vf floor = splat(-20.0f), ceiling = splat(20.0f);  // where it is -1 and 1
  const vf clamped = x < floor ? floor : x > ceiling ? ceiling : x;
  const Exponential e = exponential(clamped + clamped);
  const vf rest = e.r * e.slope * e.power() + (e.power() - 1.0f);
  return rest / (rest + 2.0f);
}

// The standard normal distribution's share below x: erfc(-x / sqrt 2) / 2 by Abramowitz and Stegun's 7.1.26, within 1e-7.
inline vf normal_share(vf x) {
  const vf z = (x < vf{} ? -x : x) * 0.70710678118654752f;
  const vf t = splat(1.0f) / (z * 0.3275911f + 1.0f);
  vf p = splat(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const vf tail = p * t * exp(-z * z) * 0.5f;
  return x < vf{} ? tail : 1.0f - tail;
}

}  // namespace cortex
