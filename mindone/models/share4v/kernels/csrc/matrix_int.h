// Products with int8 and int4 weights. Inputs are quantized to int8 in groups of 32, or in super-blocks of 256. The
// products of a span, the inputs and weights that share their scales, are summed as integers, exactly, so their order
// does not matter; the spans' sums are added in float32, in order. The bits of a row therefore depend only on that row.
#pragma once

#include <algorithm>

#include "format.h"
#include "lanes.h"

namespace share4v {
namespace SHARE4V_ISA {

// Kinds with SDOT or SMMLA store the values of many rows in blocks of kInputRows rows, in the order in which a tile reads
// them: kInputItem consecutive values of each row take turns. In other kinds kInputRows is 0.
#if defined(__ARM_FEATURE_MATMUL_INT8) && defined(SHARE4V_NEON)
constexpr int kInputRows = 12, kInputItem = 8;
#elif defined(__ARM_FEATURE_DOTPROD) && defined(SHARE4V_NEON)
constexpr int kInputRows = 6, kInputItem = 4;
#else
constexpr int kInputRows = 0, kInputItem = 0;
#endif

// Input rows, quantized to int8. With K columns and G groups:
struct QuantizedInputs {
  int8_t* values;  // [rows][K], or in blocks [rows / kInputRows][K / kInputItem][kInputRows][kInputItem]
  float* scales;   // [rows][G >> shift], or in blocks [rows / kInputRows][G >> shift][kInputRows]
  int32_t* sums;   // [rows][G] sums of the values in a group, which undo the offset of weights stored as unsigned;
                   // nullptr if the values are in blocks, which are multiplied by int8 weights only
  int64_t value_stride;  // from row to row of values; blocks begin at multiples of kInputRows rows
  int64_t group_stride;  // from row to row of scales and of sums
  int64_t shift;          // 2^shift groups share a scale: 1 or 8; a division would cost as much as a group

  bool in_blocks() const { return kInputRows && !sums; }
  // Returns the inputs from (row, group) on. In blocks, a row is a multiple of kInputRows.
  QuantizedInputs from(int64_t row, int64_t group) const {
    const int64_t rows = in_blocks() ? kInputRows : 1;
    return {values + row * value_stride + group * kGroup * rows,
            scales + row * group_stride + (group >> shift) * rows,
            in_blocks() ? nullptr : sums + row * group_stride + group, value_stride, group_stride, shift};
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
  int64_t shift;        // 2^shift groups share a scale: 1 or 8; a division would cost as much as a group
  const int8_t* pairs; // of int4 super: scale and offset of each group's rows, [G][16][2]; nullptr for other types

  IntPanels from(int64_t panel) const {
    const int8_t* from_pairs = pairs ? pairs + panel * scale_stride * static_cast<int64_t>(sizeof(Half)) : nullptr;
    return {data + panel * stride, stride, scales + panel * scale_stride, scale_stride,
            count - panel,         groups, shift,                         from_pairs};
  }
};

constexpr int64_t kInt8GroupBytes = 512;  // of one panel
constexpr int64_t kInt4GroupBytes = 256;
constexpr int64_t kPairBytes = 32;  // of one group's pairs of scale and offset

// The largest magnitude of some values, and what its scale must be added to: 0, or NaN if any value is not finite.
struct Magnitude {
  float largest, poison;
};

#if defined(SHARE4V_NEON)

// FMAX, unlike max() of lanes.h, keeps a NaN, so that one maximum answers both questions.
inline Magnitude magnitude_of(const float* x, int64_t count) {
  Lanes size = zero();
#pragma GCC unroll 2
  for (int64_t i = 0; i < count; i += kLanes) {
    const Lanes part = abs(load(x + i));
    size = {vmaxq_f32(size.a, part.a), vmaxq_f32(size.b, part.b), vmaxq_f32(size.c, part.c), vmaxq_f32(size.d, part.d)};
  }
  const float largest = vmaxvq_f32(vmaxq_f32(vmaxq_f32(size.a, size.b), vmaxq_f32(size.c, size.d)));
  return {largest, largest - largest};
}

inline int32_t sum_of_group(const int8_t* values) {
  return vaddlvq_s8(vld1q_s8(values)) + vaddlvq_s8(vld1q_s8(values + 16));
}

#else

inline Magnitude magnitude_of(const float* x, int64_t count) {
  Lanes size = zero(), finite = zero();  // finite: 0 if all values are finite, else NaN
  for (int64_t i = 0; i < count; i += kLanes) {
    const Lanes a = load(x + i);
    size = max(size, abs(a));
    finite = fma(a, zero(), finite);
  }
  return {max_lane(size), share4v::SHARE4V_ISA::sum(finite)};
}

inline int32_t sum_of_group(const int8_t* values) {
#if defined(__AVX2__)
  const __m256i ones = _mm256_set1_epi8(1), bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  const __m256i words = _mm256_madd_epi16(_mm256_maddubs_epi16(ones, bytes), _mm256_set1_epi16(1));
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
#else
  int32_t total = 0;
  for (int64_t i = 0; i < kGroup; i++) total += values[i];
  return total;
#endif
}

#endif

// Returns the factor that brings `count` values to -127 .. 127, and sets the scale that undoes it. If any value is not
// finite, the scale becomes NaN, and with it every output of the row.
inline Lanes rounding_factor(const float* x, int64_t count, float* scale) {
  const Magnitude size = magnitude_of(x, count);
  const float inverse = size.largest > 0 ? 127.0f / size.largest : 0.0f;
  *scale = size.largest / 127.0f + size.poison;
  // If 127 / largest overflows, the values are so small that they count as zero.
  return set1(inverse <= 3.0e38f ? inverse : 0.0f);
}

// Quantizes `groups` groups of 32 values with one scale.
inline void quantize_groups(const float* x, int64_t groups, int8_t* values, float* scale, int32_t* sums) {
  const Lanes factor = rounding_factor(x, groups * kGroup, scale);
  for (int64_t i = 0; i < groups * kGroup; i += kLanes) store_int8(values + i, mul(load(x + i), factor));
  for (int64_t g = 0; g < groups; g++) sums[g] = sum_of_group(values + g * kGroup);
}

// The kinds of panels that a tile multiplies.
enum class Packing { kInt8, kInt4, kInt4Super };

constexpr int64_t group_bytes_of(Packing packing) { return packing == Packing::kInt8 ? 512 : 256; }

// The first group after the span that begins at group `begin`.
SHARE4V_INLINE int64_t span_end(const QuantizedInputs& x, const IntPanels& w, int64_t begin) {
  return std::min(w.groups, begin + (int64_t{1} << std::min(x.shift, w.shift)));
}

SHARE4V_INLINE int32_t sum_of(const QuantizedInputs& x, int64_t row, int64_t begin, int64_t end) {
  int32_t total = 0;
  for (int64_t g = begin; g < end; g++) total += x.sums[row * x.group_stride + g];
  return total;
}

// Two 16-bit factors as the bits of one int32: a dot product with (s, z) adds z * total - 8 * s * total, which is what
// the offset of a group's weights, and their storage as q instead of q - 8, contribute. A total is at most 32 * 127.
inline int32_t offset_factors(int32_t total) {
  const uint32_t low = static_cast<uint16_t>(-8 * total), high = static_cast<uint16_t>(total);
  return static_cast<int32_t>(low | high << 16);
}

#if defined(__AVX512VNNI__) || defined(SHARE4V_NEON)

// The integer sums of a tile: of R rows and P panels, with 16 outputs each. In NEON, vector v has the outputs
// 4 v .. 4 v + 3 of a panel.
#if defined(SHARE4V_NEON)
template <int R, int P>
using PanelSums = int32x4_t[R][P][4];
#else
template <int R, int P>
using PanelSums = __m512i[R][P];
#endif

// Each adds the products of R rows with a group's weights of P panels. `at` and `inputs` point to the group; int4 weights
// are read as q, 0 .. 15. Those of a super-block are multiplied by their scales, and their offsets are added.
template <int R, int P>
inline void add_int8_group(const uint8_t* at, int64_t stride, const int8_t* inputs, int64_t value_stride,
                           PanelSums<R, P>& sums);
template <int R, int P>
inline void add_int4_group(const uint8_t* at, int64_t stride, const int8_t* inputs, int64_t value_stride,
                           PanelSums<R, P>& sums);
template <int R, int P>
inline void add_super_group(const QuantizedInputs& x, const IntPanels& w, int64_t g, PanelSums<R, P>& sums);

// As these, for group g of either kind of weights.
template <Packing kPacking, int R, int P>
SHARE4V_INLINE void add_group(const QuantizedInputs& x, const IntPanels& w, int64_t g, PanelSums<R, P>& sums) {
  const uint8_t* at = w.data + g * group_bytes_of(kPacking);
  const int8_t* inputs = x.values + g * kGroup;
  if constexpr (kPacking == Packing::kInt4Super) {
    add_super_group<R, P>(x, w, g, sums);
  } else if constexpr (kPacking == Packing::kInt4) {
    add_int4_group<R, P>(at, w.stride, inputs, x.value_stride, sums);
  } else {
    add_int8_group<R, P>(at, w.stride, inputs, x.value_stride, sums);
  }
}

#endif

#if defined(__AVX512VNNI__)

// Reads a quad: four int8 values, as the bits of one int32.
inline int32_t quad_at(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return bits;
}

constexpr int kIntRows = 6;
constexpr int kInt4SuperRows = 8;  // of a tile of int4 super
template <Packing kPacking, int R>
constexpr int int_panels() {
  if (kPacking == Packing::kInt4Super) return R == 1 ? 4 : R == 4 ? 1 : 2;
  return R <= 3 ? 4 : 2;
}

// Whether a tile of R rows expands the weights of int4 super to bytes before it multiplies. That takes a multiplication
// for every 64 weights, and the sums of a super-block then need no scale; for few rows it is less work to scale the sums
// of each group.
constexpr bool expands_super(int R) { return R >= 5; }

template <int R, int P>
SHARE4V_INLINE void add_int4_group(const uint8_t* at, int64_t stride, const int8_t* inputs, int64_t value_stride,
                                   PanelSums<R, P>& sums) {
  const __m512i low = _mm512_set1_epi8(15);
  SHARE4V_UNROLL
  for (int q = 0; q < 4; q++) {
    __m512i first[P], second[P];
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) {
      const __m512i both = _mm512_loadu_si512(at + p * stride + q * 64);
      first[p] = _mm512_and_si512(both, low);
      second[p] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const __m512i a = _mm512_set1_epi32(quad_at(inputs + r * value_stride + q * 4));
      const __m512i b = _mm512_set1_epi32(quad_at(inputs + r * value_stride + q * 4 + 16));
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++)
        sums[r][p] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[r][p], first[p], a), second[p], b);
    }
  }
}

// The weights are flipped to unsigned by adding 128.
template <int R, int P>
SHARE4V_INLINE void add_int8_group(const uint8_t* at, int64_t stride, const int8_t* inputs, int64_t value_stride,
                                   PanelSums<R, P>& sums) {
  const __m512i flip = _mm512_set1_epi8(-128);
  SHARE4V_UNROLL
  for (int q = 0; q < 8; q++) {
    __m512i weights[P];
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) weights[p] = _mm512_xor_si512(_mm512_loadu_si512(at + p * stride + q * 64), flip);
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const __m512i a = _mm512_set1_epi32(quad_at(inputs + r * value_stride + q * 4));
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) sums[r][p] = _mm512_dpbusd_epi32(sums[r][p], weights[p], a);
    }
  }
}

template <int R, int P>
SHARE4V_INLINE void add_super_group(const QuantizedInputs& x, const IntPanels& w, int64_t g, PanelSums<R, P>& sums) {
  PanelSums<R, P> products;
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) products[r][p] = _mm512_setzero_si512();
  }
  add_int4_group<R, P>(w.data + g * kInt4GroupBytes, w.stride, x.values + g * kGroup, x.value_stride, products);
  __m512i pairs[P], scales[P];
  SHARE4V_UNROLL
  for (int p = 0; p < P; p++) {
    const int8_t* at = w.pairs + p * w.scale_stride * static_cast<int64_t>(sizeof(Half)) + g * kPairBytes;
    pairs[p] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    scales[p] = _mm512_srai_epi32(_mm512_slli_epi32(pairs[p], 16), 16);
  }
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    const __m512i factors = _mm512_set1_epi32(offset_factors(x.sums[r * x.group_stride + g]));
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) {
      sums[r][p] = _mm512_add_epi32(sums[r][p], _mm512_mullo_epi32(products[r][p], scales[p]));
      sums[r][p] = _mm512_dpwssd_epi32(sums[r][p], pairs[p], factors);
    }
  }
}

// As add_super_group, but expands the weights first, to s * (q - 8) + z + 128, unsigned: two bytes with one 16-bit
// multiplication and addition, since all of them are 1 .. 255, so that nothing is carried from one byte to the other.
template <int R, int P>
SHARE4V_INLINE void add_expanded_group(const QuantizedInputs& x, const IntPanels& w, int64_t g, PanelSums<R, P>& sums) {
  const uint8_t* at = w.data + g * kInt4GroupBytes;
  const int8_t* inputs = x.values + g * kGroup;
  const __m512i low = _mm512_set1_epi8(15);
  // With (s, z), z - 8 * s in both bytes of a 16-bit number; and 128 in both.
  const __m512i factors = _mm512_set1_epi32(static_cast<int32_t>(0x0101u << 16 | (0x10000u - 8 * 0x0101u)));
  const __m512i flips = _mm512_set1_epi32(128 * 0x0101);
  // Copies the lower 16 bits of each lane to its upper ones.
  const __m512i lower_twice = _mm512_set4_epi32(0x0d0c0d0c, 0x09080908, 0x05040504, 0x01000100);
  __m512i scales[P], offsets[P];
  SHARE4V_UNROLL
  for (int p = 0; p < P; p++) {
    const int8_t* from = w.pairs + p * w.scale_stride * static_cast<int64_t>(sizeof(Half)) + g * kPairBytes;
    const __m512i pairs = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    scales[p] = _mm512_shuffle_epi8(pairs, lower_twice);
    offsets[p] = _mm512_shuffle_epi8(_mm512_dpwssd_epi32(flips, pairs, factors), lower_twice);
  }
  SHARE4V_UNROLL
  for (int q = 0; q < 4; q++) {
    __m512i first[P], second[P];
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) {
      const __m512i both = _mm512_loadu_si512(at + p * w.stride + q * 64);
      const __m512i high = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
      first[p] = _mm512_add_epi16(_mm512_mullo_epi16(_mm512_and_si512(both, low), scales[p]), offsets[p]);
      second[p] = _mm512_add_epi16(_mm512_mullo_epi16(high, scales[p]), offsets[p]);
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
}

// What a tile of R rows adds to each weight, so that it is unsigned.
constexpr int32_t weight_offset(Packing packing, int R) {
  if (packing == Packing::kInt4) return 8;
  return packing == Packing::kInt8 || expands_super(R) ? 128 : 0;
}

// Asks for the line that is `offset` bytes behind `base` to be brought into the L1 cache. It may be behind the array, to
// which no pointer is made. Always inlined: GCC 12 drops calls of a function that only prefetches.
SHARE4V_INLINE void prefetch_line(const void* base, int64_t offset) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(offset)));
}

// While five to eight rows are multiplied by a group of int4 super, the processor does not look far enough ahead, so its
// weights are fetched so many groups before. For fewer rows, and for int8, that gained nothing.
constexpr int64_t kGroupsAhead = 8;

// Asks for group `g` of P panels, or if they end before it, of the P panels after them.
template <int P>
SHARE4V_INLINE void prefetch_group(const IntPanels& w, int64_t g) {
  constexpr int64_t kLine = 64;
  const int64_t panels = g < w.groups ? 0 : P, group = g < w.groups ? g : g - w.groups;
  SHARE4V_UNROLL
  for (int64_t p = 0; p < P; p++) {
    SHARE4V_UNROLL
    for (int64_t i = 0; i < kInt4GroupBytes; i += kLine)
      prefetch_line(w.data, (panels + p) * w.stride + group * kInt4GroupBytes + i);
    prefetch_line(w.pairs, (panels + p) * w.scale_stride * static_cast<int64_t>(sizeof(Half)) + group * kPairBytes);
  }
}

// Multiplies R rows by the first P panels: c[r][p] = sum over g of x[r][g] * w[p][g]. With `overwrite` false the sums
// continue from the values in c. AVX-512 VNNI multiplies unsigned by signed bytes, so weights are stored or flipped to
// unsigned (plus 8 or 128), and the sums of the inputs subtract the offset.
template <Packing kPacking, int R, int P>
inline void int_tile(const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  Lanes totals[R][P];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) totals[r][p] = overwrite ? zero() : load(c.row(r) + p * kLanes);
  }
  for (int64_t begin = 0, end; begin < w.groups; begin = end) {
    end = span_end(x, w, begin);
    PanelSums<R, P> sums;
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      constexpr int32_t kOffset = weight_offset(kPacking, R);
      const __m512i start = _mm512_set1_epi32(kOffset ? -kOffset * sum_of(x, r, begin, end) : 0);
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) sums[r][p] = start;
    }
    for (int64_t g = begin; g < end; g++) {
      if constexpr (kPacking == Packing::kInt4Super && expands_super(R)) {
        prefetch_group<P>(w, g + kGroupsAhead);
        add_expanded_group<R, P>(x, w, g, sums);
      } else {
        add_group<kPacking, R, P>(x, w, g, sums);
      }
    }
    Lanes factor[P];
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) factor[p] = load(w.scales + p * w.scale_stride + (begin >> w.shift) * kLanes);
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const Lanes scale = set1(x.scales[r * x.group_stride + (begin >> x.shift)]);
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
template <Packing kPacking, int R>
constexpr int int_panels() {
  return R == 1 ? 2 : 1;
}

// Broadcasts a quad, four int8 values.
inline __m256i quad_at(const int8_t* p) {
  int32_t bits;
  std::memcpy(&bits, p, 4);
  return _mm256_set1_epi32(bits);
}

// Makes GCC add to a sum here. It would otherwise compute many products first, and store them until they are added.
#define SHARE4V_ADD_NOW(sum) asm("" : "+x"(sum))

inline __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Sets sums to the 16-bit sums of products of R rows with both halves of P panels of a group's int4 weights, unsigned. A
// sum of 8 products, each at most 2 * 15 * 127, fits into 16 bits.
template <int R, int P>
SHARE4V_INLINE void multiply_int4_group(const uint8_t* at, int64_t stride, const int8_t* inputs, int64_t value_stride,
                                        __m256i (&sums)[2][R][P]) {
  const __m256i low = _mm256_set1_epi8(15);
  SHARE4V_UNROLL
  for (int q = 0; q < 4; q++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) {
      __m256i first[2], second[2];
      SHARE4V_UNROLL
      for (int h = 0; h < 2; h++) {
        const __m256i both = load_256(at + p * stride + q * 64 + h * 32);
        first[h] = _mm256_and_si256(both, low);
        second[h] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
      }
      SHARE4V_UNROLL
      for (int r = 0; r < R; r++) {
        const __m256i a = quad_at(inputs + r * value_stride + q * 4), b = quad_at(inputs + r * value_stride + q * 4 + 16);
        SHARE4V_UNROLL
        for (int h = 0; h < 2; h++) {
          const __m256i products = _mm256_maddubs_epi16(first[h], a);
          sums[h][r][p] = q ? _mm256_add_epi16(sums[h][r][p], products) : products;
          sums[h][r][p] = _mm256_add_epi16(sums[h][r][p], _mm256_maddubs_epi16(second[h], b));
          SHARE4V_ADD_NOW(sums[h][r][p]);
        }
      }
    }
  }
}

// Adds the products of R rows with both halves of P panels of a group's int8 weights to sums.
template <int R, int P>
SHARE4V_INLINE void add_int8_group(const uint8_t* at, int64_t stride, const int8_t* inputs, int64_t value_stride,
                           __m256i (&sums)[2][R][P]) {
  const __m256i ones = _mm256_set1_epi16(1);
  SHARE4V_UNROLL
  for (int q = 0; q < 8; q++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) {
      __m256i weights[2], sizes[2];
      SHARE4V_UNROLL
      for (int h = 0; h < 2; h++) {
        weights[h] = load_256(at + p * stride + q * 64 + h * 32);
        sizes[h] = _mm256_abs_epi8(weights[h]);
      }
      SHARE4V_UNROLL
      for (int r = 0; r < R; r++) {
        const __m256i input = quad_at(inputs + r * value_stride + q * 4);
        SHARE4V_UNROLL
        for (int h = 0; h < 2; h++) {
          const __m256i products = _mm256_maddubs_epi16(sizes[h], _mm256_sign_epi8(input, weights[h]));
          sums[h][r][p] = _mm256_add_epi32(sums[h][r][p], _mm256_madd_epi16(products, ones));
          SHARE4V_ADD_NOW(sums[h][r][p]);
        }
      }
    }
  }
}

// Adds the products of group g of int4 weights with both halves of P panels to 32-bit sums.
template <Packing kPacking, int R, int P>
SHARE4V_INLINE void add_int4_group(const QuantizedInputs& x, const IntPanels& w, int64_t g, __m256i (&sums)[2][R][P]) {
  __m256i products[2][R][P];
  multiply_int4_group<R, P>(w.data + g * kInt4GroupBytes, w.stride, x.values + g * kGroup, x.value_stride, products);
  if constexpr (kPacking == Packing::kInt4) {  // a group is a span
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const __m256i offset = _mm256_set1_epi32(-8 * x.sums[r * x.group_stride + g]);
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) {
        SHARE4V_UNROLL
        for (int h = 0; h < 2; h++) {
          const __m256i sum = _mm256_madd_epi16(products[h][r][p], _mm256_set1_epi16(1));
          sums[h][r][p] = _mm256_add_epi32(sums[h][r][p], _mm256_add_epi32(sum, offset));
        }
      }
    }
    return;
  }
  // In each lane, its scale s in both 16-bit halves, and its offset z - 8 * s in the lower one, with 0 in the upper one.
  __m256i scales[2][P], offsets[2][P];
  SHARE4V_UNROLL
  for (int p = 0; p < P; p++) {
    SHARE4V_UNROLL
    for (int h = 0; h < 2; h++) {
      const int8_t* from = w.pairs + p * w.scale_stride * static_cast<int64_t>(sizeof(Half)) + g * kPairBytes + h * 16;
      const __m256i pairs = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
      scales[h][p] = _mm256_blend_epi16(pairs, _mm256_slli_epi32(pairs, 16), 0xaa);
      const __m256i offset = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x1fff8));  // times (-8, 1)
      offsets[h][p] = _mm256_blend_epi16(offset, _mm256_setzero_si256(), 0xaa);
    }
  }
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    const __m256i total = _mm256_set1_epi32(x.sums[r * x.group_stride + g]);
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) {
      SHARE4V_UNROLL
      for (int h = 0; h < 2; h++) {
        const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(products[h][r][p], scales[h][p]),
                                             _mm256_madd_epi16(offsets[h][p], total));
        sums[h][r][p] = _mm256_add_epi32(sums[h][r][p], sum);
      }
    }
  }
}

// Multiplies R rows by the first P panels: c[r][p] = sum over g of x[r][g] * w[p][g]. With `overwrite` false the sums
// continue from the values in c.
template <Packing kPacking, int R, int P>
inline void int_tile(const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  Lanes totals[R][P];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) totals[r][p] = overwrite ? zero() : load(c.row(r) + p * kLanes);
  }
  for (int64_t begin = 0, end; begin < w.groups; begin = end) {
    end = span_end(x, w, begin);
    __m256i sums[2][R][P];
    SHARE4V_UNROLL
    for (int h = 0; h < 2; h++) {
      SHARE4V_UNROLL
      for (int r = 0; r < R; r++) {
        SHARE4V_UNROLL
        for (int p = 0; p < P; p++) sums[h][r][p] = _mm256_setzero_si256();
      }
    }
    if constexpr (kPacking == Packing::kInt8) {
      for (int64_t g = begin; g < end; g++)
        add_int8_group<R, P>(w.data + g * kInt8GroupBytes, w.stride, x.values + g * kGroup, x.value_stride, sums);
    } else {
      for (int64_t g = begin; g < end; g++) {
        add_int4_group<kPacking, R, P>(x, w, g, sums);
        // The 32-bit sums are stored between groups: there are not enough registers for them and a group's 16-bit sums.
        if constexpr (R > 1) asm volatile("" : "+m"(sums));
      }
    }
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) {
      const Lanes factor = load(w.scales + p * w.scale_stride + (begin >> w.shift) * kLanes);
      SHARE4V_UNROLL
      for (int r = 0; r < R; r++) {
        const Lanes value = {_mm256_cvtepi32_ps(sums[0][r][p]), _mm256_cvtepi32_ps(sums[1][r][p])};
        const Lanes scale = set1(x.scales[r * x.group_stride + (begin >> x.shift)]);
        totals[r][p] = fma(value, mul(factor, scale), totals[r][p]);
      }
    }
  }
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) store(c.row(r) + p * kLanes, totals[r][p]);
  }
}

#undef SHARE4V_ADD_NOW

#elif defined(SHARE4V_NEON)

constexpr int kIntRows = 6;
template <Packing kPacking, int R>
constexpr int int_panels() {
  if (kPacking == Packing::kInt4Super) return R == 1 ? 2 : 1;
  return R == 1 ? 4 : R == 2 ? 2 : 1;
}

// See matrix_neon.h.
template <Packing kPacking, int R, int P>
inline void int_tile(const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite);

#else

constexpr int kIntRows = 1;
template <Packing kPacking, int R>
constexpr int int_panels() {
  return 1;
}

// Returns the integer product of one row and output n of a group.
template <Packing kPacking>
inline int32_t group_product(const QuantizedInputs& x, const IntPanels& w, int64_t g, int64_t n) {
  const uint8_t* at = w.data + g * group_bytes_of(kPacking);
  int32_t total = 0;
  for (int64_t i = 0; i < kGroup; i++) {
    const int64_t q = i / 4, within = n * 4 + i % 4;
    int32_t weight;
    if constexpr (kPacking == Packing::kInt8) {
      weight = static_cast<int8_t>(at[q * 64 + within]);
    } else {
      const uint8_t both = at[q % 4 * 64 + within];
      weight = (q < 4 ? both & 15 : both >> 4) - 8;
    }
    total += weight * x.values[g * kGroup + i];
  }
  if constexpr (kPacking == Packing::kInt4Super) {
    const int8_t* pair = w.pairs + g * kPairBytes + n * 2;
    return pair[0] * total + pair[1] * x.sums[g];
  }
  return total;
}

template <Packing kPacking, int R, int P>
inline void int_tile(const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  static_assert(R == 1 && P == 1, "the portable tile is one row by one panel");
  Lanes totals = overwrite ? zero() : load(c.data);
  for (int64_t begin = 0, end; begin < w.groups; begin = end) {
    end = span_end(x, w, begin);
    Lanes values;
    for (int64_t n = 0; n < kLanes; n++) {
      int32_t total = 0;
      for (int64_t g = begin; g < end; g++) total += group_product<kPacking>(x, w, g, n);
      values.f[n] = static_cast<float>(total);
    }
    totals = fma(values, mul(load(w.scales + (begin >> w.shift) * kLanes), set1(x.scales[begin >> x.shift])), totals);
  }
  store(c.data, totals);
}

#endif

#if !defined(__AVX512VNNI__)
constexpr int kInt4SuperRows = kIntRows;
#endif

// Multiplies R rows by all panels of w.
template <Packing kPacking, int R>
void int_row_tiles(const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  constexpr int P = int_panels<kPacking, R>();
  int64_t p = 0;
  for (; p + P <= w.count; p += P) int_tile<kPacking, R, P>(x, w.from(p), c.from(0, p * kLanes), overwrite);
  for (; p < w.count; p++) int_tile<kPacking, R, 1>(x, w.from(p), c.from(0, p * kLanes), overwrite);
}

// Multiplies `rows` rows, at most R, by all panels of w.
template <Packing kPacking, int R = kIntRows>
void int_rows(int64_t rows, const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  if constexpr (R > 1) {
    if (rows < R) return int_rows<kPacking, R - 1>(rows, x, w, c, overwrite);
  }
  int_row_tiles<kPacking, R>(x, w, c, overwrite);
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
