// int8 products of many rows with ARM's SMMLA, which multiplies two rows of eight inputs by the weights of two outputs:
// the same integer sums as the vector kernels, so the same bits.
#pragma once

#include "matrix_neon.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
namespace share4v {
namespace SHARE4V_ISA {

constexpr int kTilePairs = kInputRows / 2;  // of a tile: its 24 sums, 4 weights and 2 inputs use 30 of 32 registers

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

// c = or += sums * factor * scale of the row, for 8 outputs.
SHARE4V_INLINE void add_eight(int64x2_t a, int64x2_t b, float32x4_t low, float32x4_t high, float scale, float* c,
                              bool is_first) {
  const float32x4_t before_low = is_first ? vdupq_n_f32(0.0f) : vld1q_f32(c);
  const float32x4_t before_high = is_first ? vdupq_n_f32(0.0f) : vld1q_f32(c + 4);
  vst1q_f32(c, vfmaq_f32(before_low, vcvtq_f32_s32(vreinterpretq_s32_s64(a)), vmulq_n_f32(low, scale)));
  vst1q_f32(c + 4, vfmaq_f32(before_high, vcvtq_f32_s32(vreinterpretq_s32_s64(b)), vmulq_n_f32(high, scale)));
}

// Adds the products of eight inputs of two rows with those of two outputs. Not vmmlaq_s32: with it, GCC 12 copies sums
// from register to register in the loop.
SHARE4V_INLINE void add_four_products(int32x4_t& sums, int8x16_t inputs, int8x16_t weights) {
  asm("smmla %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(inputs), "w"(weights));
}

// Adds the products of eight inputs of each row with the weights of 8 outputs.
template <int kPairs>
SHARE4V_INLINE void add_eighths(const uint8_t* at, const int8_t* values, int32x4_t (&sums)[kPairs][4]) {
  int8x16_t weights[4];
  SHARE4V_UNROLL
  for (int o = 0; o < 4; o++) weights[o] = load_weights(at + o * 16);
  SHARE4V_UNROLL
  for (int i = 0; i < kPairs; i += 2) {  // two inputs are loaded by one instruction
    const int8x16_t first = vld1q_s8(values + i * 16), second = vld1q_s8(values + i * 16 + 16);
    SHARE4V_UNROLL
    for (int o = 0; o < 4; o++) add_four_products(sums[i][o], first, weights[o]);
    if (i + 1 == kPairs) break;
    SHARE4V_UNROLL
    for (int o = 0; o < 4; o++) add_four_products(sums[i + 1][o], second, weights[o]);
  }
}

// Multiplies the first `rows` rows of a block, 2 * kPairs or one less, by 8 outputs: a half of a panel in SMMLA's order. A
// row that is missing is allocated, and its sums are dropped. Not inlined: where it is, GCC spills sums.
template <int kPairs>
[[gnu::noinline]] inline void mmla_tile(int64_t rows, QuantizedInputs x, IntPanels w, int half, FloatRows c,
                                        bool overwrite) {
  for (int64_t begin = 0, end; begin < w.groups; begin = end) {
    end = span_end(x, w, begin);
    int32x4_t sums[kPairs][4];  // of two rows and two outputs
    SHARE4V_UNROLL
    for (int i = 0; i < kPairs; i++) {
      SHARE4V_UNROLL
      for (int o = 0; o < 4; o++) sums[i][o] = vdupq_n_s32(0);
    }
    const uint8_t* at = w.data + begin * kInt8GroupBytes + half * 64;
    const int8_t* values = x.from(0, begin).values;
    const uint8_t* const stop = at + (end - begin) * kInt8GroupBytes;
    for (; at < stop; at += 256, values += 2 * kInputRows * kInputItem) {
      add_eighths<kPairs>(at, values, sums);
      add_eighths<kPairs>(at + 128, values + kInputRows * kInputItem, sums);
    }
    const Lanes factor = load(w.scales + (begin >> w.shift) * kLanes);
    const float32x4_t low = half ? factor.c : factor.a, high = half ? factor.d : factor.b;
    const float* scales = x.scales + (begin >> x.shift);
    const bool is_first = overwrite && begin == 0;
    SHARE4V_UNROLL
    for (int i = 0; i < kPairs; i++) {
      const int64_t r = 2 * i;
      int64x2_t two[4];
      SHARE4V_UNROLL
      for (int o = 0; o < 4; o++) two[o] = vreinterpretq_s64_s32(sums[i][o]);
      add_eight(vzip1q_s64(two[0], two[1]), vzip1q_s64(two[2], two[3]), low, high, scales[r * x.group_stride],
                c.row(r) + half * 8, is_first);
      if (i + 1 < kPairs || r + 1 < rows)
        add_eight(vzip2q_s64(two[0], two[1]), vzip2q_s64(two[2], two[3]), low, high, scales[(r + 1) * x.group_stride],
                  c.row(r + 1) + half * 8, is_first);
    }
  }
}

// Multiplies `rows` rows, at most 2 * kPairs, of a block by all panels of w, whose weights are in SMMLA's order.
template <int kPairs = kTilePairs>
void block_rows(int64_t rows, const QuantizedInputs& x, const IntPanels& w, FloatRows c, bool overwrite) {
  if constexpr (kPairs > 1) {
    if (rows <= 2 * (kPairs - 1)) return block_rows<kPairs - 1>(rows, x, w, c, overwrite);
  }
  for (int64_t p = 0; p < w.count; p++) {
    for (int half = 0; half < 2; half++)
      mmla_tile<kPairs>(rows, x, w.from(p), half, c.from(0, p * kLanes), overwrite);
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
#endif
