// One interface to all products: stores input rows in the format that a matrix's type needs, and distributes the panels
// of the matrix over the threads.
#pragma once

#include "matrix_amx.h"
#include "matrix_float.h"
#include "matrix_i8mm.h"
#include "matrix_int.h"
#include "matrix_neon.h"
#include "memory.h"
#include "threads.h"

namespace share4v {
namespace SHARE4V_ISA {

constexpr int64_t kUnitPanels = 8;       // panels of one work unit of a thread: 128 outputs
// Groups of integer weights that many rows are multiplied by before the next ones: whole super-blocks, and of a unit's
// panels so few that they stay in the L2 cache, expanded or not.
constexpr int64_t kBlockGroups = 64;
constexpr int64_t kRowBlock = 32;        // rows of one block of the many-row integer kernels

inline bool is_bfloat16(const Matrix& m) { return m.type == static_cast<int32_t>(Type::kBfloat16); }
inline bool is_integer(const Matrix& m) {
  return m.type != static_cast<int32_t>(Type::kFloat32) && m.type != static_cast<int32_t>(Type::kFloat16) &&
         !is_bfloat16(m);
}
inline Packing packing_of(const Matrix& m) {
  if (m.type == static_cast<int32_t>(Type::kInt4Super)) return Packing::kInt4Super;
  return m.type == static_cast<int32_t>(Type::kInt4) ? Packing::kInt4 : Packing::kInt8;
}
inline int64_t panels_of(const Matrix& m) { return ceil_div(m.rows, kLanes); }
inline int64_t groups_of(const Matrix& m) { return ceil_div(m.columns, kGroup); }
inline int64_t supers_of(const Matrix& m) { return ceil_div(m.columns, kSuper); }
// The logarithms of how many groups of inputs, or of weights, share a scale: 0 or 3.
inline int64_t input_shift(const Matrix& m) { return m.input_group ? kSuperShift : 0; }
inline int64_t weight_shift(const Matrix& m) {
  const Type type = static_cast<Type>(m.type);
  return type == Type::kInt8Super || type == Type::kInt4Super ? kSuperShift : 0;
}
inline int64_t weight_span(const Matrix& m) { return int64_t{1} << weight_shift(m); }
// Scales (float16) of a panel, with the pairs of int4 super, which are as large as one scale each.
inline int64_t scale_stride_of(const Matrix& m) {
  const int64_t scales = ceil_div(groups_of(m), weight_span(m));
  return (scales + (packing_of(m) == Packing::kInt4Super ? groups_of(m) : 0)) * kLanes;
}

// Whether many rows are multiplied by int4 weights that were expanded to int8. AVX2 multiplies them as they are stored: it
// adds the products of a group in 16 bits, which takes half as many instructions as int8.
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
constexpr bool kExpandsInt4 = false;
#else
constexpr bool kExpandsInt4 = true;
#endif

// Up to so many rows, weights are multiplied as they are stored, in one block.
#if defined(__AMX_INT8__)
constexpr int64_t kFewRows = 12;
#else
constexpr int64_t kFewRows = 2 * kIntRows;
#endif

// Whether rows are so few that weights are multiplied as they are stored, by tiles that read rows one by one.
inline bool are_few(Packing packing, int64_t rows) {
  return rows <= kFewRows || (packing == Packing::kInt8 && rows < kRowBlock);
}

// The input rows of a product. Which member is used depends on the type of the matrix.
struct Inputs {
  FloatInputs<float> floats = {};
  FloatInputs<PairInput> pairs = {};
  QuantizedInputs quantized = {};
};

template <class X>
FloatInputs<X> allocate_items(Arena& arena, int64_t rows, int64_t items) {
  FloatInputs<X> inputs;
  const int64_t width = items + kLanes;
  inputs.stride = rows > kFloatRows ? 0 : width;
  inputs.rows = ceil_div(rows, kFloatRows) * kFloatRows;
  inputs.items = items;
  inputs.data = arena.allocate<X>(inputs.rows * width);
  return inputs;
}

// As allocate_items; AMX tiles read all rows of a block, row by row.
inline FloatInputs<PairInput> allocate_pairs(Arena& arena, int64_t rows, int64_t pairs) {
#if defined(__AMX_BF16__)
  FloatInputs<PairInput> inputs;
  inputs.stride = pairs + kLanes;
  inputs.rows = ceil_div(rows, kRowBlock) * kRowBlock;
  inputs.items = pairs;
  inputs.data = arena.allocate<PairInput>(inputs.rows * inputs.stride);
  return inputs;
#else
  return allocate_items<PairInput>(arena, rows, pairs);
#endif
}

inline void bf16_product(int64_t rows, const FloatInputs<PairInput>& x, FloatPanels<Pair> w, FloatRows c) {
#if defined(__AMX_BF16__)
  tile_product(rows, x, w, c);
#else
  float_product(rows, x, w, c, nullptr);
#endif
}

// Allocates inputs for `rows` rows. Strides are not multiples of 4096 bytes: all rows would then compete for one set of
// the L1 cache.
inline Inputs allocate_inputs(Arena& arena, const Matrix& m, int64_t rows) {
  Inputs inputs;
  const int64_t width = groups_of(m) * kGroup, padded_rows = ceil_div(rows, kRowBlock) * kRowBlock;
  if (is_bfloat16(m)) {
    inputs.pairs = allocate_pairs(arena, rows, width / 2);
    return inputs;
  }
  if (!is_integer(m)) {
    inputs.floats = allocate_items<float>(arena, rows, m.columns);
    return inputs;
  }
  QuantizedInputs& q = inputs.quantized;
  q.value_stride = width + 64;
  q.group_stride = groups_of(m) + 1;
  q.shift = input_shift(m);
  q.values = arena.allocate<int8_t>((padded_rows + kInputRows) * q.value_stride);
  q.scales = arena.allocate<float>((padded_rows + kInputRows) * q.group_stride);
  if (!kInputRows || are_few(packing_of(m), rows)) q.sums = arena.allocate<int32_t>(padded_rows * q.group_stride);
  return inputs;
}

// Quantizes `groups` groups that begin at group g of a row, with one scale.
inline void store_groups(const QuantizedInputs& q, int64_t row, int64_t g, int64_t groups, const float* x) {
  if (!q.in_blocks()) {
    const QuantizedInputs to = q.from(row, g);
    return quantize_groups(x, groups, to.values, to.scales, to.sums);
  }
#if defined(SHARE4V_NEON) && defined(__ARM_FEATURE_DOTPROD)
  const int64_t place = row % kInputRows;
  const QuantizedInputs block = q.from(row - place, g);
  quantize_items(x, groups, block.values + place * kInputItem, block.scales + place);
#endif
}

// Stores columns begin .. end - 1 of an input row; `begin` is a multiple of 256 and x points to column `begin`.
inline void store_inputs(const Inputs& inputs, const Matrix& m, int64_t row, int64_t begin, int64_t end,
                         const float* x) {
  if (is_bfloat16(m)) return store_pairs(inputs.pairs, row, begin, end, x);
  if (!is_integer(m)) return store_items(inputs.floats, row, begin, end, x);
  const QuantizedInputs& q = inputs.quantized;
  const int64_t step = kGroup << q.shift;
  for (int64_t k = begin; k < end; k += step) {
    const int64_t n = std::min(step, end - k), groups = ceil_div(n, kGroup);
    const float* values = x + (k - begin);
    float padded[kSuper];
    if (n < groups * kGroup) {
      std::memset(padded, 0, sizeof padded);
      std::memcpy(padded, values, static_cast<size_t>(n) * sizeof(float));
      values = padded;
    }
    store_groups(q, row, k / kGroup, groups, values);
  }
}

// Expands a group's int4 weights into the layout of int8. The integers are the same, and so are the bits of the result.
inline void expand_int4_group(const uint8_t* packed, uint8_t* out) {
  for (int q = 0; q < 4; q++)
    for (int i = 0; i < 64; i++) {
      const uint8_t both = packed[q * 64 + i];
      out[q * 64 + i] = static_cast<uint8_t>((both & 15) - 8);
      out[(q + 4) * 64 + i] = static_cast<uint8_t>((both >> 4) - 8);
    }
}

// The bytes that two 4-bit weights, in bits 0 .. 3 and 8 .. 11 of `codes`, are expanded to.
inline uint16_t expand_two(uint16_t codes, uint16_t scale, uint16_t offset) {
  const uint16_t even = static_cast<uint16_t>((codes & 15) * scale + offset);
  const uint16_t odd = static_cast<uint16_t>((codes >> 8 & 15) * scale + offset);
  return static_cast<uint16_t>((even & 255) | odd << 8);
}

// As expand_int4_group, with the group's pairs of scale and offset. Two bytes at a time: an output's four bytes are two
// 16-bit numbers, for which there are vector multiplications.
inline void expand_super_group(const uint8_t* packed, const int8_t* pairs, uint8_t* out) {
  constexpr int kWords = 2 * kLanes;  // of a quad
  uint16_t scales[kWords], offsets[kWords];
  for (int i = 0; i < kWords; i++) {
    const int scale = pairs[i / 2 * 2];
    scales[i] = static_cast<uint16_t>(scale);
    offsets[i] = static_cast<uint16_t>(pairs[i / 2 * 2 + 1] - 8 * scale);
  }
  for (int q = 0; q < 4; q++) {
    uint16_t both[kWords], low[kWords], high[kWords];
    std::memcpy(both, packed + q * sizeof both, sizeof both);
#pragma omp simd
    for (int i = 0; i < kWords; i++) {
      low[i] = expand_two(both[i], scales[i], offsets[i]);
      high[i] = expand_two(static_cast<uint16_t>(both[i] >> 4), scales[i], offsets[i]);
    }
    std::memcpy(out + q * sizeof low, low, sizeof low);
    std::memcpy(out + (q + 4) * sizeof high, high, sizeof high);
  }
}

// Expands the groups first .. first + count - 1 of a panel of int4 weights.
inline void expand_panel(Packing packing, const IntPanels& panel, int64_t first, int64_t count, uint8_t* out) {
  for (int64_t g = first; g < first + count; g++, out += kInt8GroupBytes) {
    const uint8_t* packed = panel.data + g * kInt4GroupBytes;
    if (packing == Packing::kInt4Super) {
      expand_super_group(packed, panel.pairs + g * kPairBytes, out);
    } else {
      expand_int4_group(packed, out);
    }
  }
}

// Brings the groups first .. first + count - 1 of a panel into the order in which many rows are multiplied by them.
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool kReordersInt8 = true;
inline void reorder_panel(Packing packing, const IntPanels& panel, int64_t first, int64_t count, uint8_t* out) {
  if (packing == Packing::kInt8) return pair_quads(panel.data + first * kInt8GroupBytes, count, out);
  expand_panel(packing, panel, first, count, out);
  pair_quads(out, count, out);
}
#else
constexpr bool kReordersInt8 = false;
constexpr auto reorder_panel = expand_panel;
#endif

// Multiplies many rows by int8 panels, with AMX or SMMLA where they exist.
inline void int8_many_rows(int64_t rows, const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
#if defined(__AMX_INT8__)
  const bool is_deep = x.shift && w.shift;  // spans of several groups
  const Tiles tiles(is_deep ? 2 : 1);
  const auto multiply = is_deep ? tile_pair<2> : tile_pair<1>;
  for (int64_t r = 0; r < rows; r += kRowBlock) {
    const int64_t count = std::min(kRowBlock, rows - r);
    const QuantizedInputs part = x.from(r, 0);
    int64_t p = 0;
    for (; p + 2 <= w.count; p += 2) multiply(count, part, w.from(p), c.from(r, p * kLanes), overwrite);
    for (int64_t i = 0; p < w.count && i < count; i += kIntRows)
      int_rows<Packing::kInt8>(std::min<int64_t>(kIntRows, count - i), part.from(i, 0), w.from(p), c.from(r + i, p * kLanes),
                      overwrite);
  }
#elif defined(SHARE4V_NEON) && defined(__ARM_FEATURE_DOTPROD)
  for (int64_t r = 0; r < rows; r += kInputRows)
    block_rows(std::min<int64_t>(kInputRows, rows - r), x.from(r, 0), w, c.from(r, 0), overwrite);
#else
  for (int64_t r = 0; r < rows; r += kIntRows)
    int_rows<Packing::kInt8>(std::min<int64_t>(kIntRows, rows - r), x.from(r, 0), w, c.from(r, 0), overwrite);
#endif
}

// Multiplies rows by weights as they are stored.
inline void stored_product(int64_t rows, const QuantizedInputs& x, Packing packing, IntPanels w, FloatRows c,
                           bool overwrite) {
  const bool is_super = packing == Packing::kInt4Super;
  const int64_t step = is_super ? kInt4SuperRows : kIntRows;
  const auto multiply = packing == Packing::kInt8   ? int_rows<Packing::kInt8>
                        : packing == Packing::kInt4 ? int_rows<Packing::kInt4>
                                                    : int_rows<Packing::kInt4Super, kInt4SuperRows>;
  for (int64_t r = 0; r < rows; r += step) multiply(std::min(step, rows - r), x.from(r, 0), w, c.from(r, 0), overwrite);
}

// c [rows, w.count * 16] = x [rows, K] times the panels w of an int4 or int8 matrix.
inline void int_product(int64_t rows, const QuantizedInputs& x, Packing packing, IntPanels w, FloatRows c,
                        uint8_t* scratch) {
  const bool int8 = packing == Packing::kInt8;
  if (are_few(packing, rows)) return stored_product(rows, x, packing, w, c, true);
  for (int64_t g = 0; g < w.groups; g += kBlockGroups) {
    IntPanels block = w;
    block.groups = std::min(kBlockGroups, w.groups - g);
    block.scales += (g >> w.shift) * kLanes;
    if (!int8 && !kExpandsInt4) {
      block.data += g * kInt4GroupBytes;
      if (block.pairs) block.pairs += g * kPairBytes;
      stored_product(rows, x.from(0, g), packing, block, c, g == 0);
      continue;
    }
    block.pairs = nullptr;
    if (int8 && !kReordersInt8) {
      block.data += g * kInt8GroupBytes;
    } else {
      block.data = scratch;
      block.stride = block.groups * kInt8GroupBytes;
      for (int64_t p = 0; p < w.count; p++)
        reorder_panel(packing, w.from(p), g, block.groups, scratch + p * block.stride);
    }
    int8_many_rows(rows, x.from(0, g), block, c, g == 0);
  }
}

// `depth` is the number of items of a row: its columns, or pairs of them.
template <class W>
FloatPanels<W> float_panels_at(const uint8_t* base, const Matrix& m, int64_t depth, int64_t first, int64_t count) {
  const int64_t stride = depth * kLanes;
  return {reinterpret_cast<const W*>(base + m.data) + first * stride, stride, count, depth};
}

inline IntPanels int_panels_at(const uint8_t* base, const Matrix& m, int64_t first, int64_t count) {
  IntPanels w;
  w.groups = groups_of(m);
  w.count = count;
  w.shift = weight_shift(m);
  w.stride = w.groups * group_bytes_of(packing_of(m));
  w.scale_stride = scale_stride_of(m);
  w.data = base + m.data + first * w.stride;
  w.scales = reinterpret_cast<const Half*>(base + m.scales) + first * w.scale_stride;
  const bool has_pairs = packing_of(m) == Packing::kInt4Super;
  w.pairs = has_pairs ? reinterpret_cast<const int8_t*>(w.scales + supers_of(m) * kLanes) : nullptr;
  return w;
}

// c [rows, N * 16] = inputs times the matrix. When a thread has computed a unit of outputs, it calls
// `finish(row, first, end)` for each of its rows. All threads of a parallel region call this function together; it
// returns when all outputs are done.
template <class Finish>
void product(const uint8_t* base, const Matrix& m, const Inputs& inputs, int64_t rows, FloatRows c, Finish finish) {
  const int64_t panels = panels_of(m), units = ceil_div(panels, kUnitPanels);
  constexpr int64_t kPanelBytes = std::max(kDepthBytes * kLanes, kBlockGroups * kInt8GroupBytes);
  constexpr int64_t kHalfQuad = 64;  // mmla_tile ends with a pointer so far behind the last weights, and reads none
  uint8_t* scratch = thread_scratch(kUnitPanels * kPanelBytes + kHalfQuad);
#pragma omp for schedule(dynamic, 1)
  for (int64_t unit = 0; unit < units; unit++) {
    if (!scratch) continue;
    const int64_t first = unit * kUnitPanels, count = std::min(kUnitPanels, panels - first);
    const FloatRows out = c.from(0, first * kLanes);
    switch (static_cast<Type>(m.type)) {
      case Type::kFloat32:
        float_product(rows, inputs.floats, float_panels_at<float>(base, m, m.columns, first, count), out,
                      reinterpret_cast<float*>(scratch));
        break;
      case Type::kFloat16:
        float_product(rows, inputs.floats, float_panels_at<Half>(base, m, m.columns, first, count), out,
                      reinterpret_cast<float*>(scratch));
        break;
      case Type::kBfloat16:
        bf16_product(rows, inputs.pairs, float_panels_at<Pair>(base, m, groups_of(m) * kGroup / 2, first, count), out);
        break;
      default:
        int_product(rows, inputs.quantized, packing_of(m), int_panels_at(base, m, first, count), out, scratch);
    }
    const int64_t end = std::min(m.rows, (first + count) * kLanes);
    for (int64_t r = 0; r < rows; r++) finish(r, first * kLanes, end);
  }
}

// Adds the matrix's bias, if any, to the outputs first .. end - 1 of the row that begins at c.
inline void add_bias(const uint8_t* base, const Matrix& m, float* c, int64_t first, int64_t end) {
  if (!m.bias) return;
  const float* bias = reinterpret_cast<const float*>(base + m.bias);
  for (int64_t n = first; n < end; n += kLanes)
    store_part(c + n, add(load_part(c + n, end - n), load_part(bias + n, end - n)), end - n);
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
