// Products with int8 and int4 weights. Inputs are quantized to int8 in groups of 32. The products within a group are
// summed as integers, exactly, so their order does not matter; the groups' sums are added in float32, in order. The
// bits of a row therefore depend only on that row.
#pragma once

#include <algorithm>

#include "format.h"
#include "lanes.h"

namespace share4v {
namespace SHARE4V_ISA {

// Input rows, quantized to int8. With K columns and G groups:
struct QuantizedInputs {
  int8_t* values;  // [rows][K]
  float* scales;   // [rows][G]
  int32_t* sums;   // [rows][G] sums of the values in a group, which undo the offset of weights stored as unsigned
  int64_t value_stride;  // from row to row of values
  int64_t group_stride;  // from row to row of scales and of sums

  QuantizedInputs from(int64_t row, int64_t group) const {
    return {values + row * value_stride + group * kGroup, scales + row * group_stride + group,
            sums + row * group_stride + group, value_stride, group_stride};
  }
};

// `count` panels of an integer matrix, `groups` groups of each.
struct IntPanels {
  const uint8_t* data;
  int64_t stride;  // bytes from panel to panel
  const Half* scales;
  int64_t scale_stride;  // scales from panel to panel
  int64_t count;
  int64_t groups;

  IntPanels from(int64_t panel) const {
    return {data + panel * stride, stride, scales + panel * scale_stride, scale_stride, count - panel, groups};
  }
};

constexpr int64_t kInt8GroupBytes = 512;  // of one panel
constexpr int64_t kInt4GroupBytes = 256;

// Quantizes 32 values. If any of them is not finite, the scale becomes NaN, and with it every output of the row.
inline void quantize_group(const float* x, int8_t* values, float* scale, int32_t* sum) {
  const Lanes a = load(x), b = load(x + kLanes);
  const float largest = max_lane(max(abs(a), abs(b)));
  // 0 if all values are finite, else NaN.
  const float poison = share4v::SHARE4V_ISA::sum(fma(a, zero(), mul(b, zero())));
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  // If 127 / largest overflows, the values are so small that they count as zero.
  const Lanes factor = set1(inverse <= 3.0e38f ? inverse : 0.0f);
  store_int8(values, mul(a, factor));
  store_int8(values + kLanes, mul(b, factor));
  *scale = largest / 127.0f + poison;
  int32_t total = 0;
  for (int64_t i = 0; i < kGroup; i++) total += values[i];
  *sum = total;
}

#if defined(__AVX512VNNI__)

// Reads a quad: four int8 values, as the bits of one int32.
inline int32_t quad_at(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return bits;
}

constexpr int kIntRows = 6;
template <int R>
constexpr int int_panels() {
  return R <= 3 ? 4 : 2;
}

// Multiplies R rows by the first P panels: c[r][p] = sum over g of x[r][g] * w[p][g]. With `overwrite` false the sums
// continue from the values in c. AVX-512 VNNI multiplies unsigned by signed bytes, so weights are stored or flipped to
// unsigned (plus 8 or 128), and the sums of the inputs subtract the offset.
template <bool kInt4, int R, int P>
inline void int_tile(const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  constexpr int64_t group_bytes = kInt4 ? kInt4GroupBytes : kInt8GroupBytes;
  const __m512i low = _mm512_set1_epi8(15), flip = _mm512_set1_epi8(-128);
  Lanes totals[R][P];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) totals[r][p] = overwrite ? zero() : load(c.row(r) + p * kLanes);
  }
  for (int64_t g = 0; g < w.groups; g++) {
    __m512i sums[R][P];
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const __m512i start = _mm512_set1_epi32((kInt4 ? -8 : -128) * x.sums[r * x.group_stride + g]);
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) sums[r][p] = start;
    }
    const uint8_t* at = w.data + g * group_bytes;
    const int8_t* inputs = x.values + g * kGroup;
    if constexpr (kInt4) {
      SHARE4V_UNROLL
      for (int q = 0; q < 4; q++) {
        __m512i first[P], second[P];
        SHARE4V_UNROLL
        for (int p = 0; p < P; p++) {
          const __m512i both = _mm512_loadu_si512(at + p * w.stride + q * 64);
          first[p] = _mm512_and_si512(both, low);
          second[p] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        }
        SHARE4V_UNROLL
        for (int r = 0; r < R; r++) {
          const __m512i a = _mm512_set1_epi32(quad_at(inputs + r * x.value_stride + q * 4));
          const __m512i b = _mm512_set1_epi32(quad_at(inputs + r * x.value_stride + q * 4 + 16));
          SHARE4V_UNROLL
          for (int p = 0; p < P; p++)
            sums[r][p] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[r][p], first[p], a), second[p], b);
        }
      }
    } else {
      SHARE4V_UNROLL
      for (int q = 0; q < 8; q++) {
        __m512i weights[P];
        SHARE4V_UNROLL
        for (int p = 0; p < P; p++) weights[p] = _mm512_xor_si512(_mm512_loadu_si512(at + p * w.stride + q * 64), flip);
        SHARE4V_UNROLL
        for (int r = 0; r < R; r++) {
          const __m512i a = _mm512_set1_epi32(quad_at(inputs + r * x.value_stride + q * 4));
          SHARE4V_UNROLL
          for (int p = 0; p < P; p++) sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], weights[p], a);
        }
      }
    }
    Lanes factor[P];
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) factor[p] = load(w.scales + p * w.scale_stride + g * kLanes);
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const Lanes scale = set1(x.scales[r * x.group_stride + g]);
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++)
        totals[r][p] = fma(Lanes{_mm512_cvtepi32_ps(sums[r][p])}, mul(factor[p], scale), totals[r][p]);
    }
  }
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) store(c.row(r) + p * kLanes, totals[r][p]);
  }
}

#elif defined(__AVX2__)

constexpr int kIntRows = 4;
template <int R>
constexpr int int_panels() {
  return R == 1 ? 2 : 1;
}

// Broadcasts a quad, four int8 values.
inline __m256i quad_at(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return _mm256_set1_epi32(bits);
}

template <bool kInt4, int R, int P>
inline void int_tile(const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  constexpr int64_t group_bytes = kInt4 ? kInt4GroupBytes : kInt8GroupBytes;
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  Lanes totals[R][P];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) totals[r][p] = overwrite ? zero() : load(c.row(r) + p * kLanes);
  }
  for (int64_t g = 0; g < w.groups; g++) {
    __m256i sums[R][P][2];
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) sums[r][p][0] = sums[r][p][1] = _mm256_setzero_si256();
    }
    const uint8_t* at = w.data + g * group_bytes;
    const int8_t* inputs = x.values + g * kGroup;
    if constexpr (kInt4) {
      // Sums of 8 products, each at most 2 * 15 * 127, fit into 16 bits, so a group is widened to 32 bits once.
      SHARE4V_UNROLL
      for (int q = 0; q < 4; q++) {
        SHARE4V_UNROLL
        for (int p = 0; p < P; p++) {
          SHARE4V_UNROLL
          for (int h = 0; h < 2; h++) {
            const __m256i both =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + p * w.stride + q * 64 + h * 32));
            const __m256i first = _mm256_and_si256(both, low);
            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
            SHARE4V_UNROLL
            for (int r = 0; r < R; r++) {
              const int8_t* row = inputs + r * x.value_stride + q * 4;
              const __m256i low_products = _mm256_maddubs_epi16(first, quad_at(row));
              const __m256i high_products = _mm256_maddubs_epi16(second, quad_at(row + 16));
              sums[r][p][h] = _mm256_add_epi16(sums[r][p][h], _mm256_add_epi16(low_products, high_products));
            }
          }
        }
      }
      SHARE4V_UNROLL
      for (int r = 0; r < R; r++) {
        const __m256i start = _mm256_set1_epi32(-8 * x.sums[r * x.group_stride + g]);
        SHARE4V_UNROLL
        for (int p = 0; p < P; p++) {
          SHARE4V_UNROLL
          for (int h = 0; h < 2; h++)
            sums[r][p][h] = _mm256_add_epi32(start, _mm256_madd_epi16(sums[r][p][h], ones));
        }
      }
    } else {
      SHARE4V_UNROLL
      for (int q = 0; q < 8; q++) {
        SHARE4V_UNROLL
        for (int p = 0; p < P; p++) {
          SHARE4V_UNROLL
          for (int h = 0; h < 2; h++) {
            const __m256i weights =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + p * w.stride + q * 64 + h * 32));
            const __m256i size = _mm256_abs_epi8(weights);
            SHARE4V_UNROLL
            for (int r = 0; r < R; r++) {
              const __m256i signed_input = _mm256_sign_epi8(quad_at(inputs + r * x.value_stride + q * 4), weights);
              const __m256i products = _mm256_madd_epi16(_mm256_maddubs_epi16(size, signed_input), ones);
              sums[r][p][h] = _mm256_add_epi32(sums[r][p][h], products);
            }
          }
        }
      }
    }
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) {
      const Lanes factor = load(w.scales + p * w.scale_stride + g * kLanes);
      SHARE4V_UNROLL
      for (int r = 0; r < R; r++) {
        const Lanes value = {_mm256_cvtepi32_ps(sums[r][p][0]), _mm256_cvtepi32_ps(sums[r][p][1])};
        totals[r][p] = fma(value, mul(factor, set1(x.scales[r * x.group_stride + g])), totals[r][p]);
      }
    }
  }
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) store(c.row(r) + p * kLanes, totals[r][p]);
  }
}

#else

constexpr int kIntRows = 1;
template <int R>
constexpr int int_panels() {
  return 1;
}

template <bool kInt4, int R, int P>
inline void int_tile(const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  static_assert(R == 1 && P == 1, "the portable tile is one row by one panel");
  Lanes totals = overwrite ? zero() : load(c.data);
  for (int64_t g = 0; g < w.groups; g++) {
    Lanes values;
    for (int n = 0; n < kLanes; n++) {
      int32_t total = 0;
      for (int i = 0; i < kGroup; i++) {
        const int q = i / 4;
        int weight;
        if (kInt4) {
          const uint8_t both = w.data[g * kInt4GroupBytes + (q % 4) * 64 + n * 4 + i % 4];
          weight = (q < 4 ? both & 15 : both >> 4) - 8;
        } else {
          weight = static_cast<int8_t>(w.data[g * kInt8GroupBytes + q * 64 + n * 4 + i % 4]);
        }
        total += weight * x.values[g * kGroup + i];
      }
      values.f[n] = static_cast<float>(total);
    }
    totals = fma(values, mul(load(w.scales + g * kLanes), set1(x.scales[g])), totals);
  }
  store(c.data, totals);
}

#endif

// Multiplies R rows by all panels of w.
template <bool kInt4, int R>
void int_row_tiles(const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  constexpr int P = int_panels<R>();
  int64_t p = 0;
  for (; p + P <= w.count; p += P) int_tile<kInt4, R, P>(x, w.from(p), c.from(0, p * kLanes), overwrite);
  for (; p < w.count; p++) int_tile<kInt4, R, 1>(x, w.from(p), c.from(0, p * kLanes), overwrite);
}

// Multiplies `rows` rows, at most R, by all panels of w.
template <bool kInt4, int R = kIntRows>
void int_rows(int64_t rows, const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  if constexpr (R > 1) {
    if (rows < R) return int_rows<kInt4, R - 1>(rows, x, w, c, overwrite);
  }
  int_row_tiles<kInt4, R>(x, w, c, overwrite);
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
