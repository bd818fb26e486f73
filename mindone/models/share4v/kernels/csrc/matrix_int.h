// Products with int8 and int4 weights: inputs are rounded to int8 by groups of 32, a group's products are summed as
// integers (exactly, so in any order), and the groups' sums are added as float32 in order. Bits depend on a row alone.
#pragma once

#include <algorithm>

#include "format.h"
#include "lanes.h"

namespace share4v {
namespace SHARE4V_ISA {

// One rounded row: K int8 values, a scale a group, and the groups' sums (which undo the offset of unsigned weights).
struct Rounded {
  int8_t* values;
  float* scales;
  int32_t* sums;
  int64_t value_stride;
  int64_t group_stride;
};

// A group that holds anything but finite numbers gets the scale NaN, so that no result hides it.
inline void round_group(const float* x, int8_t* values, float* scale, int32_t* sum) {
  const Lanes a = load(x), b = load(x + kLanes);
  const float size = highest(max(abs(a), abs(b)));
  const float poison = share4v::SHARE4V_ISA::sum(fma(a, zero(), mul(b, zero())));
  const float inverse = size > 0 ? 127.0f / size : 0.0f;
  // A group so small that 127 / size overflows is as good as zero.
  const Lanes factor = set1(inverse <= 3.0e38f ? inverse : 0.0f);
  store_int8(values, mul(a, factor));
  store_int8(values + kLanes, mul(b, factor));
  *scale = size / 127.0f + poison;
  int32_t total = 0;
  for (int64_t i = 0; i < kGroup; i++) total += values[i];
  *sum = total;
}

#if defined(__AVX512VNNI__)

template <int P>
struct IntTile {
  __m512i sums[P];
};

inline int32_t four(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return bits;
}

constexpr int kIntRows = 6;
template <int R>
constexpr int int_panels() {
  return R <= 3 ? 4 : 2;
}

// c[r][p] (+)= groups of x[r] times groups of panel p, for R rows and P panels. Distances are in elements.
template <bool kNibbles, int R, int P>
inline void int_tile(const Rounded& x, const uint8_t* w, int64_t panel, const Half* scales, int64_t scale_panel,
                     int64_t groups, float* c, int64_t cs, bool fresh) {
  constexpr int64_t group_bytes = kNibbles ? 256 : 512;
  const __m512i low = _mm512_set1_epi8(15), flip = _mm512_set1_epi8(-128);
  Lanes totals[R][P];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) totals[r][p] = fresh ? zero() : load(c + r * cs + p * kLanes);
  }
  for (int64_t g = 0; g < groups; g++) {
    __m512i sums[R][P];
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const __m512i start = _mm512_set1_epi32((kNibbles ? -8 : -128) * x.sums[r * x.group_stride + g]);
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) sums[r][p] = start;
    }
    const uint8_t* at = w + g * group_bytes;
    const int8_t* inputs = x.values + g * kGroup;
    if constexpr (kNibbles) {
      SHARE4V_UNROLL
      for (int q = 0; q < 4; q++) {
        __m512i first[P], second[P];
        SHARE4V_UNROLL
        for (int p = 0; p < P; p++) {
          const __m512i both = _mm512_loadu_si512(at + p * panel + q * 64);
          first[p] = _mm512_and_si512(both, low);
          second[p] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        }
        SHARE4V_UNROLL
        for (int r = 0; r < R; r++) {
          const __m512i a = _mm512_set1_epi32(four(inputs + r * x.value_stride + q * 4));
          const __m512i b = _mm512_set1_epi32(four(inputs + r * x.value_stride + q * 4 + 16));
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
        for (int p = 0; p < P; p++) weights[p] = _mm512_xor_si512(_mm512_loadu_si512(at + p * panel + q * 64), flip);
        SHARE4V_UNROLL
        for (int r = 0; r < R; r++) {
          const __m512i a = _mm512_set1_epi32(four(inputs + r * x.value_stride + q * 4));
          SHARE4V_UNROLL
          for (int p = 0; p < P; p++) sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], weights[p], a);
        }
      }
    }
    Lanes factor[P];
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) factor[p] = load(scales + p * scale_panel + g * kLanes);
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
    for (int p = 0; p < P; p++) store(c + r * cs + p * kLanes, totals[r][p]);
  }
}

#elif defined(__AVX2__)

constexpr int kIntRows = 4;
template <int R>
constexpr int int_panels() {
  return R == 1 ? 2 : 1;
}

inline __m256i four(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return _mm256_set1_epi32(bits);
}

template <bool kNibbles, int R, int P>
inline void int_tile(const Rounded& x, const uint8_t* w, int64_t panel, const Half* scales, int64_t scale_panel,
                     int64_t groups, float* c, int64_t cs, bool fresh) {
  constexpr int64_t group_bytes = kNibbles ? 256 : 512;
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
  Lanes totals[R][P];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) totals[r][p] = fresh ? zero() : load(c + r * cs + p * kLanes);
  }
  for (int64_t g = 0; g < groups; g++) {
    __m256i sums[R][P][2];
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) sums[r][p][0] = sums[r][p][1] = _mm256_setzero_si256();
    }
    const uint8_t* at = w + g * group_bytes;
    const int8_t* inputs = x.values + g * kGroup;
    if constexpr (kNibbles) {
      // 8 products of at most 2 * 15 * 127 fit 16 bits, so a group is widened once.
      SHARE4V_UNROLL
      for (int q = 0; q < 4; q++) {
        SHARE4V_UNROLL
        for (int p = 0; p < P; p++) {
          SHARE4V_UNROLL
          for (int h = 0; h < 2; h++) {
            const __m256i both =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + p * panel + q * 64 + h * 32));
            const __m256i first = _mm256_and_si256(both, low);
            const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
            SHARE4V_UNROLL
            for (int r = 0; r < R; r++) {
              const int8_t* row = inputs + r * x.value_stride + q * 4;
              const __m256i products =
                  _mm256_add_epi16(_mm256_maddubs_epi16(first, four(row)), _mm256_maddubs_epi16(second, four(row + 16)));
              sums[r][p][h] = _mm256_add_epi16(sums[r][p][h], products);
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
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + p * panel + q * 64 + h * 32));
            const __m256i size = _mm256_abs_epi8(weights);
            SHARE4V_UNROLL
            for (int r = 0; r < R; r++) {
              const __m256i signed_input = _mm256_sign_epi8(four(inputs + r * x.value_stride + q * 4), weights);
              sums[r][p][h] = _mm256_add_epi32(sums[r][p][h],
                                               _mm256_madd_epi16(_mm256_maddubs_epi16(size, signed_input), ones));
            }
          }
        }
      }
    }
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) {
      const Lanes factor = load(scales + p * scale_panel + g * kLanes);
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
    for (int p = 0; p < P; p++) store(c + r * cs + p * kLanes, totals[r][p]);
  }
}

#else

constexpr int kIntRows = 1;
template <int R>
constexpr int int_panels() {
  return 1;
}

template <bool kNibbles, int R, int P>
inline void int_tile(const Rounded& x, const uint8_t* w, int64_t, const Half* scales, int64_t, int64_t groups, float* c,
                     int64_t, bool fresh) {
  Lanes totals = fresh ? zero() : load(c);
  for (int64_t g = 0; g < groups; g++) {
    Lanes values;
    for (int n = 0; n < kLanes; n++) {
      int32_t total = 0;
      for (int i = 0; i < kGroup; i++) {
        const int q = i / 4;
        int weight;
        if (kNibbles) {
          const uint8_t both = w[g * 256 + (q % 4) * 64 + n * 4 + i % 4];
          weight = (q < 4 ? both & 15 : both >> 4) - 8;
        } else {
          weight = static_cast<int8_t>(w[g * 512 + q * 64 + n * 4 + i % 4]);
        }
        total += weight * x.values[g * kGroup + i];
      }
      values.f[n] = static_cast<float>(total);
    }
    totals = fma(values, mul(load(scales + g * kLanes), set1(x.scales[g])), totals);
  }
  store(c, totals);
}

#endif

inline Rounded from(const Rounded& x, int64_t row, int64_t group) {
  return {x.values + row * x.value_stride + group * kGroup, x.scales + row * x.group_stride + group,
          x.sums + row * x.group_stride + group, x.value_stride, x.group_stride};
}

template <bool kNibbles, int R>
void int_rows(const Rounded& x, const uint8_t* w, int64_t panel, const Half* scales, int64_t scale_panel,
              int64_t panels, int64_t groups, float* c, int64_t cs, bool fresh) {
  constexpr int P = int_panels<R>();
  int64_t p = 0;
  for (; p + P <= panels; p += P)
    int_tile<kNibbles, R, P>(x, w + p * panel, panel, scales + p * scale_panel, scale_panel, groups, c + p * kLanes, cs,
                             fresh);
  for (; p < panels; p++)
    int_tile<kNibbles, R, 1>(x, w + p * panel, panel, scales + p * scale_panel, scale_panel, groups, c + p * kLanes, cs,
                             fresh);
}

template <bool kNibbles, int R = kIntRows>
void int_rows(int64_t rows, const Rounded& x, const uint8_t* w, int64_t panel, const Half* scales, int64_t scale_panel,
              int64_t panels, int64_t groups, float* c, int64_t cs, bool fresh) {
  if constexpr (R > 1) {
    if (rows < R)
      return int_rows<kNibbles, R - 1>(rows, x, w, panel, scales, scale_panel, panels, groups, c, cs, fresh);
  }
  int_rows<kNibbles, R>(x, w, panel, scales, scale_panel, panels, groups, c, cs, fresh);
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
