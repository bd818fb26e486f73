// Products with bfloat16 weights: two columns at a time, as AVX512-BF16 multiplies them. Inputs are rounded to bfloat16,
// to the nearest, ties to even. Each product of two bfloat16 is exact in float32, and the sum is rounded after each of
// them: the odd column of a pair is added first, as vdpbf16ps does. So vector kinds with and without that instruction
// give the same bits. Numbers below 1e-38 count as zero.
#pragma once

#include "format.h"
#include "lanes.h"

namespace share4v {
namespace SHARE4V_ISA {

// The weights of an output for two consecutive columns.
struct Pair {
  uint16_t even, odd;
};

inline float from_bfloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// A float32 rounded to bfloat16, as the upper half of the result; the lower half is zero. NaN stays NaN.
inline uint32_t rounded_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const uint32_t nearest = bits + 0x7fff + (bits >> 16 & 1), quiet_nan = bits | 0x400000;
  return ((bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : nearest) & 0xffff0000;
}

#if defined(__AVX512BF16__)

// Inputs are stored as they are multiplied, and a step of a tile is a pair.
using PairInput = Pair;
constexpr int kPairSteps = 1;

struct PairLanes {
  __m512bh v;
};
inline PairLanes weights_of(const Pair* w, int) { return {(__m512bh)_mm512_loadu_si512(w)}; }
inline PairLanes input_of(Pair x, int) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return {(__m512bh)_mm512_set1_epi32(bits)};
}
inline Lanes fma(PairLanes x, PairLanes w, Lanes sum) { return {_mm512_dpbf16_ps(sum.v, w.v, x.v)}; }

// Rounds the columns of `groups` groups to bfloat16.
inline void round_pairs(const float* x, int64_t groups, PairInput* out) {
  for (int64_t g = 0; g < groups; g++) {
    const __m512bh both = _mm512_cvtne2ps_pbh(load(x + g * kGroup + kLanes).v, load(x + g * kGroup).v);
    _mm512_storeu_si512(out + g * kGroup / 2, (__m512i)both);
  }
}

#else

// Inputs are stored as float32, and a tile adds the odd column of a pair in one step and the even one in another.
struct PairInput {
  float even, odd;
};
constexpr int kPairSteps = 2;

#if defined(__AVX512F__)
inline Lanes weights_of(const Pair* w, int step) {
  const __m512i both = _mm512_loadu_si512(w);
  const __m512i wide = step ? _mm512_slli_epi32(both, 16) : _mm512_and_si512(both, _mm512_set1_epi32(-65536));
  return {_mm512_castsi512_ps(wide)};
}
#elif defined(__AVX2__)
inline __m256 half_of_weights(const Pair* w, int step) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
  const __m256i wide = step ? _mm256_slli_epi32(both, 16) : _mm256_and_si256(both, _mm256_set1_epi32(-65536));
  return _mm256_castsi256_ps(wide);
}
inline Lanes weights_of(const Pair* w, int step) { return {half_of_weights(w, step), half_of_weights(w + 8, step)}; }
#else
inline Lanes weights_of(const Pair* w, int step) {
  uint32_t wide[kLanes];
  std::memcpy(wide, w, sizeof wide);
  for (uint32_t& bits : wide) bits = step ? bits << 16 : bits & 0xffff0000;
  float values[kLanes];
  std::memcpy(values, wide, sizeof values);
  return load(values);
}
#endif
inline Lanes input_of(PairInput x, int step) { return set1(step ? x.even : x.odd); }

// A denormal input is zero, as to vcvtne2ps2bf16: the largest of them would be rounded to a normal number.
inline uint32_t input_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits & 0x7f800000 ? rounded_bits(x) : bits & 0x80000000;
}

inline void round_pairs(const float* x, int64_t groups, PairInput* out) {
  float values[8 * kGroup];
  for (int64_t i = 0; i < groups * kGroup; i++) {
    const uint32_t bits = input_bits(x[i]);
    std::memcpy(values + i, &bits, sizeof bits);
  }
  std::memcpy(out, values, static_cast<size_t>(groups * kGroup) * sizeof(float));
}

#endif

}  // namespace SHARE4V_ISA
}  // namespace share4v
