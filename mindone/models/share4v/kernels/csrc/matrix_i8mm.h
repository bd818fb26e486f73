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

// The outputs of a tile while its spans are added up, as SMMLA leaves them: vector o of a pair of rows has outputs 2 o and
// 2 o + 1 of the first row, then those of the second. So they are brought into rows once and not after each span.
template <int kPairs>
struct TileOutputs {
  float32x4_t values[kPairs][4];

  void clear() {
    SHARE4V_UNROLL
    for (int i = 0; i < kPairs; i++) {
      SHARE4V_UNROLL
      for (int o = 0; o < 4; o++) values[i][o] = vdupq_n_f32(0.0f);
    }
  }

  // c is a half of a panel of `rows` rows, 2 * kPairs or one less.
  void read(int64_t rows, FloatRows c) {
    SHARE4V_UNROLL
    for (int i = 0; i < kPairs; i++) {
      const float *first = c.row(0), *second = has_both(i, rows) ? c.row(1) : first;
      SHARE4V_UNROLL
      for (int h = 0; h < 2; h++) {
        const float64x2_t a = vreinterpretq_f64_f32(vld1q_f32(first + 4 * h));
        const float64x2_t b = vreinterpretq_f64_f32(vld1q_f32(second + 4 * h));
        values[i][2 * h] = vreinterpretq_f32_f64(vzip1q_f64(a, b));
        values[i][2 * h + 1] = vreinterpretq_f32_f64(vzip2q_f64(a, b));
      }
      c = next_pair(c);
    }
  }

  void write(int64_t rows, FloatRows c) const {
    SHARE4V_UNROLL
    for (int i = 0; i < kPairs; i++) {
      float64x2_t two[4];
      SHARE4V_UNROLL
      for (int o = 0; o < 4; o++) two[o] = vreinterpretq_f64_f32(values[i][o]);
      float *first = c.row(0), *second = c.row(1);
      asm("" : "+r"(second));  // as an address, from which one instruction stores two
      vst1q_f32(first, vreinterpretq_f32_f64(vzip1q_f64(two[0], two[1])));
      vst1q_f32(first + 4, vreinterpretq_f32_f64(vzip1q_f64(two[2], two[3])));
      if (!has_both(i, rows)) break;
      vst1q_f32(second, vreinterpretq_f32_f64(vzip2q_f64(two[0], two[1])));
      vst1q_f32(second + 4, vreinterpretq_f32_f64(vzip2q_f64(two[2], two[3])));
      c = next_pair(c);
    }
  }

  // Returns the rows from the third on. GCC would otherwise keep the addresses of all rows, and spill them.
  static FloatRows next_pair(FloatRows c) {
    c = c.from(2, 0);
    asm("" : "+r"(c.data));
    return c;
  }
  static bool has_both(int pair, int64_t rows) { return pair + 1 < kPairs || 2 * pair + 1 < rows; }
};

// Adds the sums of a span times the scales of its weights, which begin at `factor`, and of the inputs of each row.
template <int kPairs>
SHARE4V_INLINE void add_scaled(const int32x4_t (&sums)[kPairs][4], const Half* factor, const float* scales,
                               TileOutputs<kPairs>* outputs) {
  asm("" : "+r"(outputs));  // or GCC would keep them in registers, which it then spills, and store them as well
  const float16x8_t half = vreinterpretq_f16_u16(vld1q_u16(reinterpret_cast<const uint16_t*>(factor)));
  const float64x2_t low = vreinterpretq_f64_f32(vcvt_f32_f16(vget_low_f16(half)));
  const float64x2_t high = vreinterpretq_f64_f32(vcvt_high_f32_f16(half));
  const float32x4_t factors[4] = {
      vreinterpretq_f32_f64(vzip1q_f64(low, low)), vreinterpretq_f32_f64(vzip2q_f64(low, low)),
      vreinterpretq_f32_f64(vzip1q_f64(high, high)), vreinterpretq_f32_f64(vzip2q_f64(high, high))};
  float32x4_t four;  // scales of two pairs of rows
  SHARE4V_UNROLL
  for (int i = 0; i < kPairs; i++) {
    if (i % 2 == 0) four = vld1q_f32(scales + i * 2);
    const float32x4_t scale = i % 2 ? vzip2q_f32(four, four) : vzip1q_f32(four, four);
    SHARE4V_UNROLL
    for (int o = 0; o < 4; o += 2) {  // two at a time, which one instruction reads, and one stores
      float32x4_t* at = &outputs->values[i][o];
      float32x4_t output = at[0], next = at[1];
      asm("" : "+w"(output), "+w"(next));
      output = vfmaq_f32(output, vcvtq_f32_s32(sums[i][o]), vmulq_f32(factors[o], scale));
      next = vfmaq_f32(next, vcvtq_f32_s32(sums[i][o + 1]), vmulq_f32(factors[o + 1], scale));
      at[0] = output;
      at[1] = next;
    }
  }
}

// Multiplies the first 2 * kPairs rows of a block by 8 outputs, a half of a panel in SMMLA's order. Not inlined: where it
// is, GCC spills sums.
template <int kPairs>
[[gnu::noinline]] inline void mmla_tile(const QuantizedInputs& x, const IntPanels& w, int half,
                                        TileOutputs<kPairs>* outputs) {
  const uint8_t* at = w.data + half * 64;
  const int8_t* values = x.values;
  for (int64_t begin = 0, end; begin < w.groups; begin = end) {
    end = span_end(x, w, begin);
    int32x4_t sums[kPairs][4];  // of two rows and two outputs
    SHARE4V_UNROLL
    for (int i = 0; i < kPairs; i++) {
      SHARE4V_UNROLL
      for (int o = 0; o < 4; o++) sums[i][o] = vdupq_n_s32(0);
    }
    for (int64_t g = end - begin; g > 0; g--, at += kInt8GroupBytes, values += kGroup * kInputRows) {
      SHARE4V_UNROLL
      for (int e = 0; e < kGroup / kInputItem; e++)
        add_eighths<kPairs>(at + e * 128, values + e * kInputRows * kInputItem, sums);
      asm("" : "+r"(at), "+r"(values));  // or GCC would compute after the loop where it ended
    }
    add_scaled<kPairs>(sums, w.scales + (begin >> w.shift) * kLanes + half * 8,
                       x.scales + (begin >> x.shift) * kInputRows, outputs);
  }
}

// Multiplies `rows` rows, at most 2 * kPairs, of a block by all panels of w, whose weights are in SMMLA's order. A row that
// is missing is allocated, and its outputs are dropped.
template <int kPairs = kTilePairs>
void block_rows(int64_t rows, const QuantizedInputs& x, const IntPanels& w, FloatRows c, bool overwrite) {
  if constexpr (kPairs > 1) {
    if (rows <= 2 * (kPairs - 1)) return block_rows<kPairs - 1>(rows, x, w, c, overwrite);
  }
  for (int64_t p = 0; p < w.count; p++) {
    const IntPanels panel = w.from(p);
    for (int half = 0; half < 2; half++) {
      const FloatRows to = c.from(0, p * kLanes + half * 8);
      TileOutputs<kPairs> outputs;
      if (overwrite) {
        outputs.clear();
      } else {
        outputs.read(rows, to);
      }
      mmla_tile<kPairs>(x, panel, half, &outputs);
      outputs.write(rows, to);
    }
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
#endif
