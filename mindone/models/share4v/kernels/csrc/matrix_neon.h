// The tile of integer products in NEON: with SDOT, which multiplies four quads by one of the input's, or by widening
// multiplications. Both read the panels as format.h describes them: a vector holds a quad of four outputs.
#pragma once

#include "matrix_int.h"

#if defined(SHARE4V_NEON)
namespace share4v {
namespace SHARE4V_ISA {

inline int8x16_t load_weights(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }

#if defined(__ARM_FEATURE_DOTPROD)

// Adds the products of quad kQuad of 16 inputs with the quads at `at`.
template <int kQuad, int R, int P>
SHARE4V_INLINE void add_int8_quad(const uint8_t* at, int64_t stride, const int8x16_t (&x)[R],
                                  PanelSums<R, P>& sums) {
  SHARE4V_UNROLL
  for (int p = 0; p < P; p++) {
    SHARE4V_UNROLL
    for (int v = 0; v < 4; v++) {
      const int8x16_t weights = load_weights(at + p * stride + kQuad * 64 + v * 16);
      SHARE4V_UNROLL
      for (int r = 0; r < R; r++) sums[r][p][v] = vdotq_laneq_s32(sums[r][p][v], weights, x[r], kQuad);
    }
  }
}

template <int R, int P>
SHARE4V_INLINE void add_int8_group(const uint8_t* at, int64_t stride, const int8_t* inputs, int64_t value_stride,
                                   PanelSums<R, P>& sums) {
  SHARE4V_UNROLL
  for (int half = 0; half < 2; half++) {
    int8x16_t x[R];
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) x[r] = vld1q_s8(inputs + r * value_stride + half * 16);
    add_int8_quad<0, R, P>(at + half * 256, stride, x, sums);
    add_int8_quad<1, R, P>(at + half * 256, stride, x, sums);
    add_int8_quad<2, R, P>(at + half * 256, stride, x, sums);
    add_int8_quad<3, R, P>(at + half * 256, stride, x, sums);
  }
}

// Adds the products of the inputs' quads kQuad and kQuad + 4 with the two 4-bit quads at `at`, whose values are 0 .. 15.
template <int kQuad, int R, int P>
SHARE4V_INLINE void add_int4_quads(const uint8_t* at, int64_t stride, const int8x16_t (&x)[2][R],
                                   PanelSums<R, P>& sums) {
  SHARE4V_UNROLL
  for (int p = 0; p < P; p++) {
    SHARE4V_UNROLL
    for (int v = 0; v < 4; v++) {
      const uint8x16_t both = vld1q_u8(at + p * stride + kQuad * 64 + v * 16);
      const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
      const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
      SHARE4V_UNROLL
      for (int r = 0; r < R; r++) {
        sums[r][p][v] = vdotq_laneq_s32(sums[r][p][v], first, x[0][r], kQuad);
        sums[r][p][v] = vdotq_laneq_s32(sums[r][p][v], second, x[1][r], kQuad);
      }
    }
  }
}

template <int R, int P>
SHARE4V_INLINE void add_int4_group(const uint8_t* at, int64_t stride, const int8_t* inputs, int64_t value_stride,
                                   PanelSums<R, P>& sums) {
  int8x16_t x[2][R];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    x[0][r] = vld1q_s8(inputs + r * value_stride);
    x[1][r] = vld1q_s8(inputs + r * value_stride + 16);
  }
  add_int4_quads<0, R, P>(at, stride, x, sums);
  add_int4_quads<1, R, P>(at, stride, x, sums);
  add_int4_quads<2, R, P>(at, stride, x, sums);
  add_int4_quads<3, R, P>(at, stride, x, sums);
}

#else

// Reads a quad of inputs into all four places of a vector.
inline int8x16_t quad_at(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(bits));
}

// Adds the pairs of 16-bit sums of outputs 0, 1 and of outputs 2, 3 to the 32-bit sums of four outputs.
inline int32x4_t add_pairs(int32x4_t sums, int16x8_t low, int16x8_t high) {
  return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}

// As with SDOT. Two products of int8, each at most 127 * 127, fit into 16 bits; more would not.
template <int R, int P>
SHARE4V_INLINE void add_int8_group(const uint8_t* at, int64_t stride, const int8_t* inputs, int64_t value_stride,
                                   PanelSums<R, P>& sums) {
  for (int r = 0; r < R; r++) {
    for (int p = 0; p < P; p++) {
      int32x4_t low[4], high[4];  // sums of pairs of products of outputs 0, 1 and of outputs 2, 3 of each vector
      SHARE4V_UNROLL
      for (int v = 0; v < 4; v++) low[v] = high[v] = vdupq_n_s32(0);
      SHARE4V_UNROLL
      for (int q = 0; q < 8; q += 2) {
        const int8x16_t x = quad_at(inputs + r * value_stride + q * 4);
        const int8x16_t y = quad_at(inputs + r * value_stride + q * 4 + 4);
        SHARE4V_UNROLL
        for (int v = 0; v < 4; v++) {
          const int8x16_t first = load_weights(at + p * stride + q * 64 + v * 16);
          const int8x16_t second = load_weights(at + p * stride + q * 64 + 64 + v * 16);
          const int16x8_t products = vmull_s8(vget_low_s8(first), vget_low_s8(x));
          low[v] = vpadalq_s16(low[v], vmlal_s8(products, vget_low_s8(second), vget_low_s8(y)));
          high[v] = vpadalq_s16(high[v], vmlal_high_s8(vmull_high_s8(first, x), second, y));
        }
      }
      SHARE4V_UNROLL
      for (int v = 0; v < 4; v++) sums[r][p][v] = vaddq_s32(sums[r][p][v], vpaddq_s32(low[v], high[v]));
    }
  }
}

// As with SDOT. Eight products of a 4-bit weight, each at most 15 * 127, fit into 16 bits.
template <int R, int P>
SHARE4V_INLINE void add_int4_group(const uint8_t* at, int64_t stride, const int8_t* inputs, int64_t value_stride,
                                   PanelSums<R, P>& sums) {
  for (int r = 0; r < R; r++) {
    for (int p = 0; p < P; p++) {
      int16x8_t low[4], high[4];  // sums of products of outputs 0, 1 and of outputs 2, 3 of each vector
      SHARE4V_UNROLL
      for (int v = 0; v < 4; v++) low[v] = high[v] = vdupq_n_s16(0);
      SHARE4V_UNROLL
      for (int q = 0; q < 4; q++) {
        const int8x16_t x = quad_at(inputs + r * value_stride + q * 4);
        const int8x16_t y = quad_at(inputs + r * value_stride + q * 4 + 16);
        SHARE4V_UNROLL
        for (int v = 0; v < 4; v++) {
          const uint8x16_t both = vld1q_u8(at + p * stride + q * 64 + v * 16);
          const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
          const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
          low[v] = vmlal_s8(low[v], vget_low_s8(first), vget_low_s8(x));
          low[v] = vmlal_s8(low[v], vget_low_s8(second), vget_low_s8(y));
          high[v] = vmlal_high_s8(vmlal_high_s8(high[v], first, x), second, y);
        }
      }
      SHARE4V_UNROLL
      for (int v = 0; v < 4; v++) sums[r][p][v] = add_pairs(sums[r][p][v], low[v], high[v]);
    }
  }
}

#endif

// The sum of a group's products of q - 8, at most 32 * 8 * 127, fits into 16 bits.
template <int R, int P>
SHARE4V_INLINE void add_super_group(const QuantizedInputs& x, const IntPanels& w, int64_t g, PanelSums<R, P>& sums) {
  PanelSums<R, P> products;
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    const int32x4_t start = vdupq_n_s32(-8 * x.sums[r * x.group_stride + g]);
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) {
      SHARE4V_UNROLL
      for (int v = 0; v < 4; v++) products[r][p][v] = start;
    }
  }
  add_int4_group<R, P>(w.data + g * kInt4GroupBytes, w.stride, x.values + g * kGroup, x.value_stride, products);
  SHARE4V_UNROLL
  for (int p = 0; p < P; p++) {
    const int8x16x2_t pairs =
        vld2q_s8(w.pairs + p * w.scale_stride * static_cast<int64_t>(sizeof(Half)) + g * kPairBytes);
    const int16x8_t scales[2] = {vmovl_s8(vget_low_s8(pairs.val[0])), vmovl_high_s8(pairs.val[0])};
    const int16x8_t offsets[2] = {vmovl_s8(vget_low_s8(pairs.val[1])), vmovl_high_s8(pairs.val[1])};
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const int16_t total = static_cast<int16_t>(x.sums[r * x.group_stride + g]);
      SHARE4V_UNROLL
      for (int h = 0; h < 2; h++) {
        int32x4_t &low = sums[r][p][2 * h], &high = sums[r][p][2 * h + 1];
        const int16x8_t product = vuzp1q_s16(vreinterpretq_s16_s32(products[r][p][2 * h]),
                                             vreinterpretq_s16_s32(products[r][p][2 * h + 1]));
        low = vmlal_n_s16(vmlal_s16(low, vget_low_s16(product), vget_low_s16(scales[h])), vget_low_s16(offsets[h]),
                          total);
        high = vmlal_high_n_s16(vmlal_high_s16(high, product, scales[h]), offsets[h], total);
      }
    }
  }
}

// Rows of a tile. The sums of int8 use 24 of 32 registers; int4 weights need more for what they are read as, and those
// of super-blocks for the products of a group.
template <Packing kPacking>
constexpr int tile_rows() {
  return kPacking == Packing::kInt8 ? kIntRows : kPacking == Packing::kInt4 ? 3 : 2;
}

// Multiplies R rows by the first P panels: c[r][p] = sum over g of x[r][g] * w[p][g]. With `overwrite` false the sums
// continue from the values in c. They are read and written once for each span, because the integer sums need the
// registers.
template <Packing kPacking, int R, int P>
inline void int_tile(const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  if constexpr (R > tile_rows<kPacking>()) {
    constexpr int kFirst = tile_rows<kPacking>();
    int_tile<kPacking, kFirst, P>(x, w, c, overwrite);
    int_tile<kPacking, R - kFirst, P>(x.from(kFirst, 0), w, c.from(kFirst, 0), overwrite);
  } else {
    for (int64_t begin = 0, end; begin < w.groups; begin = end) {
      end = span_end(x, w, begin);
      PanelSums<R, P> sums;
      SHARE4V_UNROLL
      for (int r = 0; r < R; r++) {
        // The offset of int4 weights, which are read as q instead of q - 8.
        const int32_t offset = kPacking == Packing::kInt4 ? -8 * sum_of(x, r, begin, end) : 0;
        SHARE4V_UNROLL
        for (int p = 0; p < P; p++) {
          SHARE4V_UNROLL
          for (int v = 0; v < 4; v++) sums[r][p][v] = vdupq_n_s32(offset);
        }
      }
      for (int64_t g = begin; g < end; g++) add_group<kPacking, R, P>(x, w, g, sums);
      const bool is_first = overwrite && begin == 0;
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) {
        const Lanes factor = load(w.scales + p * w.scale_stride + (begin >> w.shift) * kLanes);
        SHARE4V_UNROLL
        for (int r = 0; r < R; r++) {
          float* at = c.row(r) + p * kLanes;
          const Lanes scale = set1(x.scales[r * x.group_stride + (begin >> x.shift)]);
          const int32x4_t(&v)[4] = sums[r][p];
          store(at, fma(to_lanes(v[0], v[1], v[2], v[3]), mul(factor, scale), is_first ? zero() : load(at)));
        }
      }
    }
  }
}

#if defined(__ARM_FEATURE_DOTPROD)

// As quantize_groups, but the values become every kInputRows-th item from `to` on.
inline void quantize_items(const float* x, int64_t groups, int8_t* to, float* scale) {
  const Lanes factor = rounding_factor(x, groups * kGroup, scale);
  for (int64_t g = 0; g < groups; g++, x += kGroup, to += kGroup * kInputRows) {
    SHARE4V_UNROLL
    for (int i = 0; i < kGroup; i += kLanes) {
      const int8x16_t values = to_int8(mul(load(x + i), factor));
      SHARE4V_UNROLL
      for (int item = 0; item < kLanes / kInputItem; item++) {
        int8_t* at = to + i * kInputRows + item * kInputRows * kInputItem;
        std::memcpy(at, reinterpret_cast<const int8_t*>(&values) + item * kInputItem, kInputItem);
      }
    }
  }
}

#if !defined(__ARM_FEATURE_MATMUL_INT8)

// Adds the products of input quad kFirst + kRow of `quads`, which is row kRow's, with a quad of weights of four outputs.
// Not vdotq_laneq_s32: with it, GCC 12 copies sums from register to register in the loop.
template <int kFirst, int kRow, int R>
SHARE4V_INLINE void add_lane(int8x16_t weights, const int8x16_t (&quads)[3], int v, int32x4_t (&sums)[R][4]) {
  constexpr int kQuad = kFirst + kRow;
  if constexpr (kRow < R)
    asm("sdot %0.4s, %1.16b, %2.4b[%3]"
        : "+w"(sums[kRow][v])
        : "w"(weights), "w"(quads[kQuad / 4]), "i"(kQuad % 4));
}

// Adds the products of a quad of inputs of each of R rows, which begin at quad kFirst of `quads`, with a quad of weights
// of 16 outputs.
template <int kFirst, int R>
SHARE4V_INLINE void add_quad(const uint8_t* at, const int8x16_t (&quads)[3], int32x4_t (&sums)[R][4]) {
  int8x16_t weights[4];
  SHARE4V_UNROLL
  for (int v = 0; v < 4; v++) weights[v] = load_weights(at + v * 16);
  SHARE4V_UNROLL
  for (int v = 0; v < 4; v++) {
    add_lane<kFirst, 0>(weights[v], quads, v, sums);
    add_lane<kFirst, 1>(weights[v], quads, v, sums);
    add_lane<kFirst, 2>(weights[v], quads, v, sums);
    add_lane<kFirst, 3>(weights[v], quads, v, sums);
    add_lane<kFirst, 4>(weights[v], quads, v, sums);
    add_lane<kFirst, 5>(weights[v], quads, v, sums);
  }
}

// Multiplies the first R rows of a block by the first panel of w. A tile of six rows has 24 sums, 3 vectors of inputs and
// up to 4 of weights in 31 of 32 registers. Not inlined: where it is, GCC spills sums.
template <int R>
[[gnu::noinline]] inline void block_tile(const QuantizedInputs& x, const IntPanels& w, FloatRows c, bool overwrite) {
  const uint8_t* at = w.data;
  const int8_t* values = x.values;
  for (int64_t begin = 0, end; begin < w.groups; begin = end) {
    end = span_end(x, w, begin);
    int32x4_t sums[R][4];
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      SHARE4V_UNROLL
      for (int v = 0; v < 4; v++) sums[r][v] = vdupq_n_s32(0);
    }
    const uint8_t* const stop = at + (end - begin) * kInt8GroupBytes;
    for (; at < stop; at += kInt8GroupBytes, values += kGroup * kInputRows) {
      SHARE4V_UNROLL
      for (int q = 0; q < 8; q += 2) {
        const int8_t* from = values + q * kInputRows * kInputItem;
        const int8x16_t quads[3] = {vld1q_s8(from), vld1q_s8(from + 16), vld1q_s8(from + 32)};
        add_quad<0, R>(at + q * 64, quads, sums);
        add_quad<kInputRows, R>(at + q * 64 + 64, quads, sums);
      }
    }
    const Lanes factor = load(w.scales + (begin >> w.shift) * kLanes);
    const float* scales = x.scales + (begin >> x.shift) * kInputRows;
    const bool is_first = overwrite && begin == 0;
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      float* at_row = c.row(r);
      const Lanes sum = to_lanes(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
      store(at_row, fma(sum, mul(factor, set1(scales[r])), is_first ? zero() : load(at_row)));
    }
  }
}

// Multiplies `rows` rows, at most R, of a block by all panels of w.
template <int R = kInputRows>
void block_rows(int64_t rows, const QuantizedInputs& x, const IntPanels& w, FloatRows c, bool overwrite) {
  if constexpr (R > 1) {
    if (rows < R) return block_rows<R - 1>(rows, x, w, c, overwrite);
  }
  for (int64_t p = 0; p < w.count; p++) block_tile<R>(x, w.from(p), c.from(0, p * kLanes), overwrite);
}

#endif

#endif

}  // namespace SHARE4V_ISA
}  // namespace share4v
#endif
