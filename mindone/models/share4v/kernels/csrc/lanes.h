// A vector of 16 floats and its operations, in AVX-512, AVX2+FMA+F16C, NEON or plain C++. Operations work lane by lane,
// and a horizontal sum always uses the same tree, so all but plain C++, which has no fused multiply-add, give the same
// bits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "format.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace share4v {
namespace SHARE4V_ISA {

// Sanitizers check each access, so that they would need several times as long to compile what is unrolled.
#if defined(__SANITIZE_ADDRESS__)
#define SHARE4V_UNROLL
#else
#define SHARE4V_UNROLL _Pragma("GCC unroll 32")
#endif
// Of functions whose arguments are arrays of registers, which a call would store in memory.
#define SHARE4V_INLINE inline __attribute__((always_inline))

struct Half {
  uint16_t bits;
};

}  // namespace SHARE4V_ISA
}  // namespace share4v

#if defined(SHARE4V_NEON)
#include "lanes_neon.h"
#endif

namespace share4v {
namespace SHARE4V_ISA {

#if defined(__AVX512F__)

struct Lanes {
  __m512 v;
};
inline Lanes set1(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Lanes load(const Half* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Lanes load(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline void store(float* p, Lanes a) { _mm512_storeu_ps(p, a.v); }
inline void store(Half* p, Lanes a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
inline Lanes add(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes sub(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes mul(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes div(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes fnma(Lanes a, Lanes b, Lanes c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
// If either operand is NaN, max and min return the second; data goes second, so that its NaNs propagate.
inline Lanes max(Lanes bound, Lanes x) { return {_mm512_max_ps(bound.v, x.v)}; }
inline Lanes min(Lanes bound, Lanes x) { return {_mm512_min_ps(bound.v, x.v)}; }
// x where a < b, else y.
inline Lanes select_less(Lanes a, Lanes b, Lanes x, Lanes y) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}
inline Lanes abs(Lanes a) { return {_mm512_abs_ps(a.v)}; }
inline Lanes round(Lanes a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Lanes pow2(Lanes n) {  // 2^n for integers n in -126 .. 127
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
inline void store_int8(int8_t* p, Lanes a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}

#elif defined(__AVX2__)

struct Lanes {
  __m256 a, b;
};
inline Lanes set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Lanes load(const Half* p) {
  const __m128i* q = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline Lanes load(const int8_t* p) {
  const __m128i q = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(q, 8)))};
}
inline void store(float* p, Lanes x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline void store(Half* p, Lanes x) {
  __m128i* q = reinterpret_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
#define SHARE4V_PAIR(name, intrinsic) \
  inline Lanes name(Lanes x, Lanes y) { return {intrinsic(x.a, y.a), intrinsic(x.b, y.b)}; }
SHARE4V_PAIR(add, _mm256_add_ps)
SHARE4V_PAIR(sub, _mm256_sub_ps)
SHARE4V_PAIR(mul, _mm256_mul_ps)
SHARE4V_PAIR(div, _mm256_div_ps)
SHARE4V_PAIR(max, _mm256_max_ps)  // returns the second operand if either is NaN
SHARE4V_PAIR(min, _mm256_min_ps)
#undef SHARE4V_PAIR
inline Lanes fma(Lanes x, Lanes y, Lanes z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
inline Lanes fnma(Lanes x, Lanes y, Lanes z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
inline Lanes select_less(Lanes a, Lanes b, Lanes x, Lanes y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ)),
          _mm256_blendv_ps(y.b, x.b, _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ))};
}
inline Lanes abs(Lanes x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline Lanes round(Lanes x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline __m256 pow2_half(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
inline Lanes pow2(Lanes n) { return {pow2_half(n.a), pow2_half(n.b)}; }
inline void store_int8(int8_t* p, Lanes x) {
  alignas(32) int32_t wide[kLanes];
  _mm256_store_si256(reinterpret_cast<__m256i*>(wide), _mm256_cvtps_epi32(x.a));
  _mm256_store_si256(reinterpret_cast<__m256i*>(wide + 8), _mm256_cvtps_epi32(x.b));
  for (int i = 0; i < kLanes; i++) p[i] = static_cast<int8_t>(wide[i]);
}

#elif !defined(SHARE4V_NEON)

struct Lanes {
  float f[kLanes];
};
inline float to_float(Half h) {
  const uint32_t sign = static_cast<uint32_t>(h.bits & 0x8000) << 16, exponent = (h.bits >> 10) & 31;
  const uint32_t fraction = h.bits & 1023;
  float value;
  if (exponent == 0) {
    value = std::ldexp(static_cast<float>(fraction), -24);
  } else {
    const uint32_t bits = (exponent == 31 ? 255u << 23 : (exponent + 112) << 23) | fraction << 13;
    std::memcpy(&value, &bits, 4);
  }
  return sign ? -value : value;
}
inline Half to_half(float x) {  // round to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const float size = std::fabs(x);
  if (x != x) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (size < 6.103515625e-05f) {  // denormal
    return {static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24))))};
  }
  uint32_t rest = (bits & 0x7fffffff) - (112u << 23);
  rest += 0xfff + (rest >> 13 & 1);
  return {static_cast<uint16_t>(sign | rest >> 13)};
}
#define SHARE4V_EACH for (int i = 0; i < kLanes; i++)
inline Lanes set1(float x) { Lanes y; SHARE4V_EACH y.f[i] = x; return y; }
inline Lanes load(const float* p) { Lanes y; std::memcpy(y.f, p, sizeof y.f); return y; }
inline Lanes load(const Half* p) { Lanes y; SHARE4V_EACH y.f[i] = to_float(p[i]); return y; }
inline Lanes load(const int8_t* p) { Lanes y; SHARE4V_EACH y.f[i] = p[i]; return y; }
inline void store(float* p, Lanes x) { std::memcpy(p, x.f, sizeof x.f); }
inline void store(Half* p, Lanes x) { SHARE4V_EACH p[i] = to_half(x.f[i]); }
inline Lanes add(Lanes x, Lanes y) { SHARE4V_EACH x.f[i] += y.f[i]; return x; }
inline Lanes sub(Lanes x, Lanes y) { SHARE4V_EACH x.f[i] -= y.f[i]; return x; }
inline Lanes mul(Lanes x, Lanes y) { SHARE4V_EACH x.f[i] *= y.f[i]; return x; }
inline Lanes div(Lanes x, Lanes y) { SHARE4V_EACH x.f[i] /= y.f[i]; return x; }
inline Lanes fma(Lanes x, Lanes y, Lanes z) { SHARE4V_EACH z.f[i] += x.f[i] * y.f[i]; return z; }
inline Lanes fnma(Lanes x, Lanes y, Lanes z) { SHARE4V_EACH z.f[i] -= x.f[i] * y.f[i]; return z; }
inline Lanes max(Lanes b, Lanes x) { SHARE4V_EACH x.f[i] = b.f[i] > x.f[i] ? b.f[i] : x.f[i]; return x; }
inline Lanes min(Lanes b, Lanes x) { SHARE4V_EACH x.f[i] = b.f[i] < x.f[i] ? b.f[i] : x.f[i]; return x; }
inline Lanes select_less(Lanes a, Lanes b, Lanes x, Lanes y) {
  SHARE4V_EACH y.f[i] = a.f[i] < b.f[i] ? x.f[i] : y.f[i];
  return y;
}
inline Lanes abs(Lanes x) { SHARE4V_EACH x.f[i] = std::fabs(x.f[i]); return x; }
inline Lanes round(Lanes x) { SHARE4V_EACH x.f[i] = std::nearbyint(x.f[i]); return x; }
inline Lanes pow2(Lanes n) {
  SHARE4V_EACH n.f[i] = n.f[i] == n.f[i] ? std::ldexp(1.0f, static_cast<int>(n.f[i])) : n.f[i];
  return n;
}
inline void store_int8(int8_t* p, Lanes x) {
  SHARE4V_EACH p[i] = x.f[i] == x.f[i] ? static_cast<int8_t>(std::nearbyint(x.f[i])) : 0;
}
#undef SHARE4V_EACH

#endif

// While an instance lives, its thread treats denormal numbers (below 1e-38) as 0 (FTZ and DAZ, or FZ). They do not change a
// sum, but slow a multiply-add down a hundred times, and a softmax over a long sequence produces thousands of them.
class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_)::"memory");
    set(before_ | 1 << 24);
  }
  ~FlushDenormals() { set(before_); }

 private:
  static void set(uint64_t fpcr) { asm volatile("msr fpcr, %0" ::"r"(fpcr) : "memory"); }
  uint64_t before_;
#else
  FlushDenormals() {}
  ~FlushDenormals() {}

 public:
#endif
  FlushDenormals(const FlushDenormals&) = delete;
};

inline Lanes zero() { return set1(0.0f); }

// Horizontal operations. A sum adds the upper half to the lower half, four times, whichever way the halves are moved.
#if defined(__AVX2__)

#if defined(__AVX512F__)
// With a mask of ones, because GCC 12 warns of the undefined values in its other intrinsics of this instruction.
inline __m256 lower_half(Lanes x) { return _mm512_maskz_extractf32x8_ps(0xff, x.v, 0); }
inline __m256 upper_half(Lanes x) { return _mm512_maskz_extractf32x8_ps(0xff, x.v, 1); }
#else
inline __m256 lower_half(Lanes x) { return x.a; }
inline __m256 upper_half(Lanes x) { return x.b; }
#endif

inline float sum(Lanes x) {
  const __m256 eight = _mm256_add_ps(lower_half(x), upper_half(x));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float max_lane(Lanes x) {
  const __m256 eight = _mm256_max_ps(lower_half(x), upper_half(x));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

#else

inline float sum(Lanes x) {
  alignas(64) float f[kLanes];
  store(f, x);
  for (int width = kLanes / 2; width; width /= 2)
    for (int i = 0; i < width; i++) f[i] += f[i + width];
  return f[0];
}

inline float max_lane(Lanes x) {
  alignas(64) float f[kLanes];
  store(f, x);
  float best = f[0];
  for (int i = 1; i < kLanes; i++) best = f[i] > best ? f[i] : best;
  return best;
}

#endif

// Loads or stores the first n of 16 floats. A load sets the other lanes to `fill`; a store does not write them.
inline Lanes load_part(const float* p, int64_t n, float fill = 0.0f) {
  if (n >= kLanes) return load(p);
  float f[kLanes];
  for (int64_t i = 0; i < kLanes; i++) f[i] = i < n ? p[i] : fill;
  return load(f);
}
inline void store_part(float* p, Lanes x, int64_t n) {
  if (n >= kLanes) return store(p, x);
  float f[kLanes];
  store(f, x);
  std::memcpy(p, f, static_cast<size_t>(n) * sizeof(float));
}

// e^x with an error of at most 2 ulp (Cephes' range reduction and polynomial). x is clamped to -87.3 .. 88.3, so the
// result is finite.
inline Lanes exp(Lanes x) {
  x = min(set1(88.3762626647949f), max(set1(-87.3365478515625f), x));
  const Lanes n = round(mul(x, set1(1.44269504088896341f)));
  Lanes r = fnma(n, set1(0.693359375f), x);
  r = fnma(n, set1(-2.12194440e-4f), r);
  Lanes p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(mul(p, r), r, add(r, set1(1.0f)));
  return mul(p, pow2(n));
}

// x * sigmoid(factor * x)
inline Lanes sigmoid_gate(Lanes x, float factor) {
  return div(x, add(set1(1.0f), exp(mul(x, set1(-factor)))));
}

// A view of a float32 matrix: row r begins at data + r * stride, and the stride may exceed the length of a row.
struct ConstFloatRows {
  const float* data;
  int64_t stride;

  const float* row(int64_t r) const { return data + r * stride; }
  ConstFloatRows from(int64_t r, int64_t column) const { return {data + r * stride + column, stride}; }
};

struct FloatRows {
  float* data;
  int64_t stride;

  operator ConstFloatRows() const { return {data, stride}; }
  float* row(int64_t r) const { return data + r * stride; }
  FloatRows from(int64_t r, int64_t column) const { return {data + r * stride + column, stride}; }
};

}  // namespace SHARE4V_ISA
}  // namespace share4v
