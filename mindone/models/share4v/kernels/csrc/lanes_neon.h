// lanes.h's vector of 16 floats in NEON, as four registers. Each operation gives the bits of its AVX-512 counterpart.
#pragma once

#include <arm_neon.h>

#include <cstdint>

namespace share4v {
namespace SHARE4V_ISA {

struct Lanes {
  float32x4_t a, b, c, d;
};

#define SHARE4V_UNARY(name, intrinsic) \
  inline Lanes name(Lanes x) { return {intrinsic(x.a), intrinsic(x.b), intrinsic(x.c), intrinsic(x.d)}; }
#define SHARE4V_BINARY(name, intrinsic)                                                                 \
  inline Lanes name(Lanes x, Lanes y) {                                                                 \
    return {intrinsic(x.a, y.a), intrinsic(x.b, y.b), intrinsic(x.c, y.c), intrinsic(x.d, y.d)};        \
  }
#define SHARE4V_TERNARY(name, intrinsic)                                                                \
  inline Lanes name(Lanes x, Lanes y, Lanes z) {                                                        \
    return {intrinsic(x.a, y.a, z.a), intrinsic(x.b, y.b, z.b), intrinsic(x.c, y.c, z.c),               \
            intrinsic(x.d, y.d, z.d)};                                                                  \
  }

inline float32x4_t fma_quarter(float32x4_t x, float32x4_t y, float32x4_t z) { return vfmaq_f32(z, x, y); }
inline float32x4_t fnma_quarter(float32x4_t x, float32x4_t y, float32x4_t z) { return vfmsq_f32(z, x, y); }
// Not vmaxq_f32 and vminq_f32: if an operand is NaN, the second must be the result, as on x86.
inline float32x4_t max_quarter(float32x4_t bound, float32x4_t x) { return vbslq_f32(vcgtq_f32(bound, x), bound, x); }
inline float32x4_t min_quarter(float32x4_t bound, float32x4_t x) { return vbslq_f32(vcltq_f32(bound, x), bound, x); }
inline float32x4_t pow2_quarter(float32x4_t n) {
  return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
}

SHARE4V_BINARY(add, vaddq_f32)
SHARE4V_BINARY(sub, vsubq_f32)
SHARE4V_BINARY(mul, vmulq_f32)
SHARE4V_BINARY(div, vdivq_f32)
SHARE4V_BINARY(max, max_quarter)
SHARE4V_BINARY(min, min_quarter)
SHARE4V_TERNARY(fma, fma_quarter)
SHARE4V_TERNARY(fnma, fnma_quarter)
SHARE4V_UNARY(abs, vabsq_f32)
SHARE4V_UNARY(round, vrndnq_f32)
SHARE4V_UNARY(pow2, pow2_quarter)
#undef SHARE4V_UNARY
#undef SHARE4V_BINARY
#undef SHARE4V_TERNARY

inline Lanes set1(float x) {
  const float32x4_t all = vdupq_n_f32(x);
  return {all, all, all, all};
}
inline Lanes load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
inline Lanes load(const Half* p) {
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(p);
  const float16x8_t low = vreinterpretq_f16_u16(vld1q_u16(bits)), high = vreinterpretq_f16_u16(vld1q_u16(bits + 8));
  return {vcvt_f32_f16(vget_low_f16(low)), vcvt_high_f32_f16(low), vcvt_f32_f16(vget_low_f16(high)),
          vcvt_high_f32_f16(high)};
}
// Converts four vectors of integers.
inline Lanes to_lanes(int32x4_t a, int32x4_t b, int32x4_t c, int32x4_t d) {
  return {vcvtq_f32_s32(a), vcvtq_f32_s32(b), vcvtq_f32_s32(c), vcvtq_f32_s32(d)};
}
inline Lanes load(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
  return to_lanes(vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)),
                  vmovl_high_s16(high));
}
inline void store(float* p, Lanes x) {
  vst1q_f32(p, x.a);
  vst1q_f32(p + 4, x.b);
  vst1q_f32(p + 8, x.c);
  vst1q_f32(p + 12, x.d);
}
inline void store(Half* p, Lanes x) {
  uint16_t* bits = reinterpret_cast<uint16_t*>(p);
  vst1q_u16(bits, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.a), x.b)));
  vst1q_u16(bits + 8, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x.c), x.d)));
}
// x where a < b, else y.
inline Lanes select_less(Lanes a, Lanes b, Lanes x, Lanes y) {
  return {vbslq_f32(vcltq_f32(a.a, b.a), x.a, y.a), vbslq_f32(vcltq_f32(a.b, b.b), x.b, y.b),
          vbslq_f32(vcltq_f32(a.c, b.c), x.c, y.c), vbslq_f32(vcltq_f32(a.d, b.d), x.d, y.d)};
}
// The lower halves of eight integers: one instruction, where narrowing takes one for each operand.
inline int16x8_t even_halves(int32x4_t a, int32x4_t b) {
  return vuzp1q_s16(vreinterpretq_s16_s32(a), vreinterpretq_s16_s32(b));
}
inline int8x16_t to_int8(Lanes x) {
  const int16x8_t low = even_halves(vcvtnq_s32_f32(x.a), vcvtnq_s32_f32(x.b));
  const int16x8_t high = even_halves(vcvtnq_s32_f32(x.c), vcvtnq_s32_f32(x.d));
  return vuzp1q_s8(vreinterpretq_s8_s16(low), vreinterpretq_s8_s16(high));
}
inline void store_int8(int8_t* p, Lanes x) { vst1q_s8(p, to_int8(x)); }

}  // namespace SHARE4V_ISA
}  // namespace share4v
