// Blocks of GGUF into codes, scales and offsets. Knows ggml's block structs (ggml-common.h), no tiles, nothing of XLA.
//
// `neuron_jax.weights.gguf_formats` says the same in numpy; every bit is equal.
#include <cstdint>
#include <cstring>

namespace {

// What a block becomes: its codes and scales, and where the format has them an offset for each scale.
struct Target {
  int8_t* codes;
  float* scale;
  float* offset;
};

float half(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, rest = static_cast<uint32_t>(bits & 0x7fff) << 13;
  float value;
  std::memcpy(&value, &rest, sizeof value);
  value *= 0x1p112f;  // the difference of the biases: exact, subnormals included
  uint32_t found;
  std::memcpy(&found, &value, sizeof found);
  if ((bits & 0x7c00) == 0x7c00) found = 0x7f800000u | rest;  // infinity, or no number
  found |= sign;
  std::memcpy(&value, &found, sizeof value);
  return value;
}

// Low halves of `count` bytes, then their high halves.
void nibbles(const uint8_t* from, int count, int8_t* codes) {
  for (int i = 0; i < count; ++i) {
    codes[i] = static_cast<int8_t>(from[i] & 15);
    codes[count + i] = static_cast<int8_t>(from[i] >> 4);
  }
}

void fifth_bits(const uint8_t* from, int8_t* codes) {
  uint32_t bits;
  std::memcpy(&bits, from, sizeof bits);
  for (int i = 0; i < 32; ++i) codes[i] = static_cast<int8_t>(codes[i] | ((bits >> i & 1) << 4));
}

void q4_0(const uint8_t* raw, const Target& to) {
  nibbles(raw + 2, 16, to.codes);
  *to.scale = half(raw);
  *to.offset = -8 * *to.scale;
}

void q4_1(const uint8_t* raw, const Target& to) {
  nibbles(raw + 4, 16, to.codes);
  *to.scale = half(raw);
  *to.offset = half(raw + 2);
}

void q5_0(const uint8_t* raw, const Target& to) {
  nibbles(raw + 6, 16, to.codes);
  fifth_bits(raw + 2, to.codes);
  for (int i = 0; i < 32; ++i) to.codes[i] = static_cast<int8_t>(to.codes[i] - 16);
  *to.scale = half(raw);
}

void q5_1(const uint8_t* raw, const Target& to) {
  nibbles(raw + 8, 16, to.codes);
  fifth_bits(raw + 4, to.codes);
  *to.scale = half(raw);
  *to.offset = half(raw + 2);
}

void q8_0(const uint8_t* raw, const Target& to) {
  std::memcpy(to.codes, raw + 2, 32);
  *to.scale = half(raw);
}

// Eight scales and offsets of d, m and 12 bytes: 6-bit factors, the last four of each kind borrowing their high bits from
// the first.
void k_scales(const uint8_t* raw, const Target& to) {
  const float d = half(raw), m = half(raw + 2);
  const uint8_t* q = raw + 4;
  for (int i = 0; i < 4; ++i) {
    to.scale[i] = d * static_cast<float>(q[i] & 63);
    to.offset[i] = -m * static_cast<float>(q[4 + i] & 63);
    to.scale[4 + i] = d * static_cast<float>((q[8 + i] & 15) | (q[i] >> 6 << 4));
    to.offset[4 + i] = -m * static_cast<float>((q[8 + i] >> 4) | (q[4 + i] >> 6 << 4));
  }
}

void q4_k(const uint8_t* raw, const Target& to) {
  k_scales(raw, to);
  for (int i = 0; i < 4; ++i) nibbles(raw + 16 + 32 * i, 32, to.codes + 64 * i);
}

void q5_k(const uint8_t* raw, const Target& to) {
  k_scales(raw, to);
  for (int i = 0; i < 4; ++i) nibbles(raw + 48 + 32 * i, 32, to.codes + 64 * i);
  const uint8_t* high = raw + 16;
  for (int group = 0; group < 8; ++group)
    for (int i = 0; i < 32; ++i) {
      int8_t& code = to.codes[32 * group + i];
      code = static_cast<int8_t>(code | ((high[i] >> group & 1) << 4));
    }
}

void q6_k(const uint8_t* raw, const Target& to) {
  for (int part = 0; part < 2; ++part) {
    int8_t* codes = to.codes + 128 * part;
    nibbles(raw + 64 * part, 64, codes);
    const uint8_t* high = raw + 128 + 32 * part;
    for (int group = 0; group < 4; ++group)
      for (int i = 0; i < 32; ++i) {
        int8_t& code = codes[32 * group + i];
        code = static_cast<int8_t>((code | ((high[i] >> 2 * group & 3) << 4)) - 32);
      }
  }
  const float d = half(raw + 208);
  for (int i = 0; i < 16; ++i) to.scale[i] = d * static_cast<float>(static_cast<int8_t>(raw[192 + i]));
}

// A format by its number in GGUF files: bytes of a block, its weights and scales.
struct Format {
  int64_t number, size, weights, scales;
  void (*unpack)(const uint8_t*, const Target&);
};

constexpr Format FORMATS[] = {
    {2, 18, 32, 1, q4_0}, {3, 20, 32, 1, q4_1},    {6, 22, 32, 1, q5_0},    {7, 24, 32, 1, q5_1},
    {8, 34, 32, 1, q8_0}, {12, 144, 256, 8, q4_k}, {13, 176, 256, 8, q5_k}, {14, 210, 256, 16, q6_k},
};

}  // namespace

// `blocks` of them one after the other; `offset` is null where the format has none. False for a format that is not known here.
extern "C" bool cortex_unpack(int64_t number, const uint8_t* raw, int64_t blocks, int8_t* codes, float* scale, float* offset) {
  for (const Format& format : FORMATS) {
    if (format.number != number) continue;
    for (int64_t b = 0; b < blocks; ++b)
      format.unpack(raw + b * format.size, {codes + b * format.weights, scale + b * format.scales,
                                            offset == nullptr ? nullptr : offset + b * format.scales});
    return true;
  }
  return false;
}
