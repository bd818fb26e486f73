// One interface to all products: stores input rows in the format that a matrix's type needs, and distributes the panels
// of the matrix over the threads.
#pragma once

#include "matrix_amx.h"
#include "matrix_float.h"
#include "matrix_int.h"
#include "memory.h"
#include "threads.h"

namespace share4v {
namespace SHARE4V_ISA {

constexpr int64_t kUnitPanels = 8;       // panels of one work unit of a thread: 128 outputs
constexpr int64_t kExpandedGroups = 64;  // groups of int4 weights that are expanded to int8 at a time
constexpr int64_t kRowBlock = 32;        // rows of one block of the many-row integer kernels

inline bool is_int4(const Matrix& m) { return m.type == static_cast<int32_t>(Type::kInt4); }
inline bool is_integer(const Matrix& m) { return m.type == static_cast<int32_t>(Type::kInt8) || is_int4(m); }
inline int64_t panels_of(const Matrix& m) { return ceil_div(m.rows, kLanes); }
inline int64_t groups_of(const Matrix& m) { return ceil_div(m.columns, kGroup); }

// The input rows of a product. Which member is used depends on the type of the matrix.
struct Inputs {
  FloatInputs floats = {};
  QuantizedInputs quantized = {};
};

// Allocates inputs for `rows` rows. Strides are not multiples of 4096 bytes: all rows would then compete for one set of
// the L1 cache.
inline Inputs allocate_inputs(Arena& arena, const Matrix& m, int64_t rows) {
  Inputs inputs;
  const int64_t width = groups_of(m) * kGroup, padded_rows = ceil_div(rows, kRowBlock) * kRowBlock;
  if (!is_integer(m)) {
    FloatInputs& f = inputs.floats;
    f.stride = rows > kFloatRows ? 0 : width + kLanes;
    f.rows = ceil_div(rows, kFloatRows) * kFloatRows;
    f.columns = m.columns;
    f.data = arena.allocate<float>(f.rows * (width + kLanes));
    return inputs;
  }
  QuantizedInputs& q = inputs.quantized;
  q.value_stride = width + 64;
  q.group_stride = groups_of(m) + 1;
  q.values = arena.allocate<int8_t>(padded_rows * q.value_stride);
  q.scales = arena.allocate<float>(padded_rows * q.group_stride);
  q.sums = arena.allocate<int32_t>(padded_rows * q.group_stride);
  return inputs;
}

// Stores columns begin .. end - 1 of an input row; `begin` is a multiple of 32 and x points to column `begin`.
inline void store_inputs(const Inputs& inputs, const Matrix& m, int64_t row, int64_t begin, int64_t end,
                         const float* x) {
  if (!is_integer(m)) {
    store_floats(inputs.floats, row, begin, end, x);
    return;
  }
  const QuantizedInputs& q = inputs.quantized;
  for (int64_t k = begin; k < end; k += kGroup) {
    const int64_t g = k / kGroup, n = std::min(kGroup, end - k);
    const float* group = x + (k - begin);
    float padded[kGroup] = {};
    if (n < kGroup) {
      std::memcpy(padded, group, static_cast<size_t>(n) * sizeof(float));
      group = padded;
    }
    quantize_group(group, q.values + row * q.value_stride + k, q.scales + row * q.group_stride + g,
                   q.sums + row * q.group_stride + g);
  }
}

// Expands int4 weights into the layout of int8. The integers are the same, and so are the bits of the result.
inline void expand_int4(const uint8_t* packed, int64_t bytes, uint8_t* out) {
  for (int64_t at = 0; at < bytes; at += kInt4GroupBytes, out += kInt8GroupBytes)
    for (int q = 0; q < 4; q++)
      for (int i = 0; i < 64; i++) {
        const uint8_t both = packed[at + q * 64 + i];
        out[q * 64 + i] = static_cast<uint8_t>((both & 15) - 8);
        out[(q + 4) * 64 + i] = static_cast<uint8_t>((both >> 4) - 8);
      }
}

// Multiplies many rows by int8 panels, with AMX where it exists.
inline void int8_many_rows(int64_t rows, const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
#if defined(__AMX_INT8__)
  const Tiles tiles;
  for (int64_t r = 0; r < rows; r += kRowBlock) {
    const int64_t count = std::min(kRowBlock, rows - r);
    const QuantizedInputs part = x.from(r, 0);
    int64_t p = 0;
    for (; p + 2 <= w.count; p += 2) tile_pair(count, part, w.from(p), c.from(r, p * kLanes), overwrite);
    for (int64_t i = 0; p < w.count && i < count; i += kIntRows)
      int_rows<false>(std::min<int64_t>(kIntRows, count - i), part.from(i, 0), w.from(p), c.from(r + i, p * kLanes),
                      overwrite);
  }
#else
  for (int64_t r = 0; r < rows; r += kIntRows)
    int_rows<false>(std::min<int64_t>(kIntRows, rows - r), x.from(r, 0), w, c.from(r, 0), overwrite);
#endif
}

// Up to so many rows, int4 weights are read as they are; beyond, expanding them to int8 first is faster.
#if defined(__AMX_INT8__)
constexpr int64_t kFewRows = 12;
#else
constexpr int64_t kFewRows = 2 * kIntRows;
#endif

// c [rows, w.count * 16] = x [rows, K] times the panels w of an int4 or int8 matrix.
inline void int_product(int64_t rows, const QuantizedInputs& x, bool int4, IntPanels w, FloatRows c, uint8_t* scratch) {
  if (rows <= kFewRows || (!int4 && rows < kRowBlock)) {
    const auto multiply = int4 ? int_rows<true> : int_rows<false>;
    for (int64_t r = 0; r < rows; r += kIntRows)
      multiply(std::min<int64_t>(kIntRows, rows - r), x.from(r, 0), w, c.from(r, 0), true);
    return;
  }
  for (int64_t g = 0; g < w.groups; g += kExpandedGroups) {
    IntPanels block = w;
    block.groups = std::min(kExpandedGroups, w.groups - g);
    block.scales += g * kLanes;
    if (int4) {
      block.data = scratch;
      block.stride = block.groups * kInt8GroupBytes;
      for (int64_t p = 0; p < w.count; p++)
        expand_int4(w.data + p * w.stride + g * kInt4GroupBytes, block.groups * kInt4GroupBytes,
                    scratch + p * block.stride);
    } else {
      block.data += g * kInt8GroupBytes;
    }
    int8_many_rows(rows, x.from(0, g), block, c, g == 0);
  }
}

template <class W>
FloatPanels<W> float_panels_at(const uint8_t* base, const Matrix& m, int64_t first, int64_t count) {
  const int64_t stride = m.columns * kLanes;
  return {reinterpret_cast<const W*>(base + m.data) + first * stride, stride, count, m.columns};
}

inline IntPanels int_panels_at(const uint8_t* base, const Matrix& m, int64_t first, int64_t count) {
  IntPanels w;
  w.groups = groups_of(m);
  w.count = count;
  w.stride = w.groups * (is_int4(m) ? kInt4GroupBytes : kInt8GroupBytes);
  w.scale_stride = w.groups * kLanes;
  w.data = base + m.data + first * w.stride;
  w.scales = reinterpret_cast<const Half*>(base + m.scales) + first * w.scale_stride;
  return w;
}

// c [rows, N * 16] = inputs times the matrix. When a thread has computed a unit of outputs, it calls
// `finish(row, first, end)` for each of its rows. All threads of a parallel region call this function together; it
// returns when all outputs are done.
template <class Finish>
void product(const uint8_t* base, const Matrix& m, const Inputs& inputs, int64_t rows, FloatRows c, Finish finish) {
  const int64_t panels = panels_of(m), units = ceil_div(panels, kUnitPanels);
  constexpr int64_t kPanelBytes = std::max(kFloatDepth * kLanes * 4, kExpandedGroups * kInt8GroupBytes);
  uint8_t* scratch = thread_scratch(kUnitPanels * kPanelBytes);
#pragma omp for schedule(dynamic, 1)
  for (int64_t unit = 0; unit < units; unit++) {
    const int64_t first = unit * kUnitPanels, count = std::min(kUnitPanels, panels - first);
    const FloatRows out = c.from(0, first * kLanes);
    switch (static_cast<Type>(m.type)) {
      case Type::kFloat32:
        float_product(rows, inputs.floats, float_panels_at<float>(base, m, first, count), out,
                      reinterpret_cast<float*>(scratch));
        break;
      case Type::kFloat16:
        float_product(rows, inputs.floats, float_panels_at<Half>(base, m, first, count), out,
                      reinterpret_cast<float*>(scratch));
        break;
      default:
        int_product(rows, inputs.quantized, is_int4(m), int_panels_at(base, m, first, count), out, scratch);
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
