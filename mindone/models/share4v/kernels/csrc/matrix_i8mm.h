// int8 products of many rows with ARM's SMMLA, which multiplies two rows of eight inputs by the weights of two outputs:
// the same integer sums as the vector kernels, so the same bits.
#pragma once

#include "matrix_neon.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
namespace share4v {
namespace SHARE4V_ISA {

constexpr int kTilePairs = 6;  // pairs of rows of a tile: its 24 sums, 4 weights and 1 input use 29 of 32 registers

// Brings `groups` groups of a panel of int8 weights into SMMLA's order: the quads 2 j and 2 j + 1 of an output become
// neighbours. `to` may be `from`.
inline void pair_quads(const uint8_t* from, int64_t groups, uint8_t* to) {
  for (int64_t i = 0; i < groups * 4; i++, from += 128, to += 128) {
    uint32x4_t even[4], odd[4];
    SHARE4V_UNROLL
    for (int v = 0; v < 4; v++) {
      even[v] = vreinterpretq_u32_u8(vld1q_u8(from + v * 16));
      odd[v] = vreinterpretq_u32_u8(vld1q_u8(from + v * 16 + 64));
    }
    SHARE4V_UNROLL
    for (int v = 0; v < 4; v++) {
      vst1q_u8(to + v * 32, vreinterpretq_u8_u32(vzip1q_u32(even[v], odd[v])));
      vst1q_u8(to + v * 32 + 16, vreinterpretq_u8_u32(vzip2q_u32(even[v], odd[v])));
    }
  }
}

// Brings kPairs pairs of rows into SMMLA's order: [eighths of 8 inputs][pairs][2][8].
template <int kPairs>
inline void pair_rows(const QuantizedInputs& x, int64_t groups, int8_t* to) {
  for (int64_t k = 0; k < groups * kGroup; k += 16, to += kPairs * 32) {
    SHARE4V_UNROLL
    for (int i = 0; i < kPairs; i++) {
      const int64x2_t a = vreinterpretq_s64_s8(vld1q_s8(x.values + 2 * i * x.value_stride + k));
      const int64x2_t b = vreinterpretq_s64_s8(vld1q_s8(x.values + (2 * i + 1) * x.value_stride + k));
      vst1q_s8(to + i * 16, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
      vst1q_s8(to + (kPairs + i) * 16, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
    }
  }
}

// c[r] = or += sums * factor * scale of the row, for 4 outputs.
SHARE4V_INLINE void add_four(int64x2_t sums, float32x4_t factor, float scale, float* c, bool is_first) {
  const float32x4_t before = is_first ? vdupq_n_f32(0.0f) : vld1q_f32(c);
  vst1q_f32(c, vfmaq_f32(before, vcvtq_f32_s32(vreinterpretq_s32_s64(sums)), vmulq_n_f32(factor, scale)));
}

// Multiplies `rows` rows, 2 * kPairs or one less, by 8 outputs: a half of a panel in SMMLA's order. A row that is
// missing is allocated, and its sums are dropped.
template <int kPairs>
inline void mmla_tile(int64_t rows, const QuantizedInputs& x, const int8_t* inputs, const IntPanels& w, int half,
                      FloatRows c, bool overwrite) {
  for (int64_t begin = 0, end; begin < w.groups; begin = end) {
    end = span_end(x, w, begin);
    int32x4_t sums[kPairs][4];  // of two rows and two outputs
    SHARE4V_UNROLL
    for (int i = 0; i < kPairs; i++) {
      SHARE4V_UNROLL
      for (int o = 0; o < 4; o++) sums[i][o] = vdupq_n_s32(0);
    }
    const uint8_t* at = w.data + begin * kInt8GroupBytes + half * 64;
    const int8_t* values = inputs + begin * kGroup * 2 * kPairs;
    const uint8_t* const stop = at + (end - begin) * kInt8GroupBytes;
    for (; at < stop; at += 128, values += kPairs * 16) {
      int8x16_t weights[4];
      SHARE4V_UNROLL
      for (int o = 0; o < 4; o++) weights[o] = load_weights(at + o * 16);
      SHARE4V_UNROLL
      for (int i = 0; i < kPairs; i++) {
        const int8x16_t pair = vld1q_s8(values + i * 16);
        SHARE4V_UNROLL
        for (int o = 0; o < 4; o++) sums[i][o] = vmmlaq_s32(sums[i][o], pair, weights[o]);
      }
    }
    const Lanes factor = load(w.scales + (begin >> w.shift) * kLanes);
    const float32x4_t factors[2] = {half ? factor.c : factor.a, half ? factor.d : factor.b};
    const bool is_first = overwrite && begin == 0;
    SHARE4V_UNROLL
    for (int i = 0; i < kPairs; i++) {
      SHARE4V_UNROLL
      for (int h = 0; h < 2; h++) {
        const int64x2_t a = vreinterpretq_s64_s32(sums[i][2 * h]), b = vreinterpretq_s64_s32(sums[i][2 * h + 1]);
        const int64_t r = 2 * i, span = begin >> x.shift, column = half * 8 + h * 4;
        add_four(vzip1q_s64(a, b), factors[h], x.scales[r * x.group_stride + span], c.row(r) + column, is_first);
        if (r + 1 < rows)
          add_four(vzip2q_s64(a, b), factors[h], x.scales[(r + 1) * x.group_stride + span], c.row(r + 1) + column,
                   is_first);
      }
    }
  }
}

// Multiplies `rows` rows, at most 2 * kPairs, by all panels of w, whose weights are in SMMLA's order. `scratch` has room
// for the rows' inputs.
template <int kPairs = kTilePairs>
void mmla_rows(int64_t rows, const QuantizedInputs& x, const IntPanels& w, FloatRows c, bool overwrite,
               int8_t* scratch) {
  if constexpr (kPairs > 1) {
    if (rows <= 2 * (kPairs - 1)) return mmla_rows<kPairs - 1>(rows, x, w, c, overwrite, scratch);
  }
  pair_rows<kPairs>(x, w.groups, scratch);
  for (int64_t p = 0; p < w.count; p++) {
    for (int half = 0; half < 2; half++)
      mmla_tile<kPairs>(rows, x, scratch, w.from(p), half, c.from(0, p * kLanes), overwrite);
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
#endif
