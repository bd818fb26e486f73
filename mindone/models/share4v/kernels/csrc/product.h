// One interface to the products: inputs made ready for a matrix's type, and a matrix's panels shared out over threads.
#pragma once

#include "matrix_float.h"
#include "matrix_int.h"
#include "matrix_tiles.h"
#include "memory.h"
#include "threads.h"

namespace share4v {
namespace SHARE4V_ISA {

constexpr int64_t kUnitPanels = 8;       // what a thread takes at a time: 128 outputs
constexpr int64_t kIntDepth = 64;        // groups of one block of expanded int4 weights
constexpr int64_t kTileBlock = 32;       // rows of one block of the many-row integer kernels

inline bool is_integer(const Matrix& m) {
  return m.type == static_cast<int32_t>(Type::kInt8) || m.type == static_cast<int32_t>(Type::kInt4);
}
inline int64_t panels_of(const Matrix& m) { return ceil_div(m.rows, kLanes); }
inline int64_t groups_of(const Matrix& m) { return ceil_div(m.columns, kGroup); }

// The rows that go into a product: as floats, or rounded where the matrix is of integers.
struct Inputs {
  FloatInputs floats = {};
  Rounded rounded = {};
};

// Strides are no multiple of 4096 bytes: rows that were would share one set of the first-level cache.
inline Inputs make_inputs(Arena& arena, const Matrix& m, int64_t rows) {
  Inputs inputs;
  const int64_t width = groups_of(m) * kGroup, whole = ceil_div(rows, kTileBlock) * kTileBlock;
  if (!is_integer(m)) {
    FloatInputs& f = inputs.floats;
    f.stride = rows > kFloatRows ? 0 : width + kLanes;
    f.rows = ceil_div(rows, kFloatRows) * kFloatRows;
    f.columns = m.columns;
    f.data = arena.take<float>(f.rows * (width + kLanes));
    return inputs;
  }
  Rounded& r = inputs.rounded;
  r.value_stride = width + 64;
  r.group_stride = groups_of(m) + 1;
  r.values = arena.take<int8_t>(whole * r.value_stride);
  r.scales = arena.take<float>(whole * r.group_stride);
  r.sums = arena.take<int32_t>(whole * r.group_stride);
  return inputs;
}

// Hands columns begin .. end of row `row` over, begin being a multiple of 32; `x` points to column begin.
inline void put(const Inputs& inputs, const Matrix& m, int64_t row, int64_t begin, int64_t end, const float* x) {
  if (!is_integer(m)) {
    put_floats(inputs.floats, row, begin, end, x);
    return;
  }
  const Rounded& r = inputs.rounded;
  for (int64_t k = begin; k < end; k += kGroup) {
    const int64_t g = k / kGroup, n = std::min(kGroup, end - k);
    const float* group = x + (k - begin);
    float padded[kGroup] = {};
    if (n < kGroup) {
      std::memcpy(padded, group, static_cast<size_t>(n) * sizeof(float));
      group = padded;
    }
    round_group(group, r.values + row * r.value_stride + k, r.scales + row * r.group_stride + g,
                r.sums + row * r.group_stride + g);
  }
}

// int4 -> int8 in int8's own layout: the integers are the same, so the bits of the result are.
inline void expand(const uint8_t* nibbles, int64_t bytes, uint8_t* out) {
  for (int64_t at = 0; at < bytes; at += 256, out += 512)
    for (int q = 0; q < 4; q++)
      for (int i = 0; i < 64; i++) {
        const uint8_t both = nibbles[at + q * 64 + i];
        out[q * 64 + i] = static_cast<uint8_t>((both & 15) - 8);
        out[(q + 4) * 64 + i] = static_cast<uint8_t>((both >> 4) - 8);
      }
}

inline void many_rows(int64_t rows, const Rounded& x, const uint8_t* w, int64_t panel, const Half* scales,
                      int64_t scale_panel, int64_t panels, int64_t groups, float* c, int64_t cs, bool fresh) {
#if defined(__AMX_INT8__)
  const Tiles tiles;
  for (int64_t r = 0; r < rows; r += kTileBlock) {
    const int64_t count = std::min(kTileBlock, rows - r);
    const Rounded part = from(x, r, 0);
    int64_t p = 0;
    for (; p + 2 <= panels; p += 2)
      tile_pair(count, part, w + p * panel, panel, scales + p * scale_panel, scale_panel, groups, c + r * cs + p * kLanes,
                cs, fresh);
    for (int64_t i = 0; p < panels && i < count; i += kIntRows)
      int_rows<false>(std::min<int64_t>(kIntRows, count - i), from(part, i, 0), w + p * panel, panel,
                      scales + p * scale_panel, scale_panel, 1, groups, c + (r + i) * cs + p * kLanes, cs, fresh);
  }
#else
  for (int64_t r = 0; r < rows; r += kIntRows)
    int_rows<false>(std::min<int64_t>(kIntRows, rows - r), from(x, r, 0), w, panel, scales, scale_panel, panels, groups,
                    c + r * cs, cs, fresh);
#endif
}

#if defined(__AMX_INT8__)
constexpr int64_t kFewRows = 12;
#else
constexpr int64_t kFewRows = 2 * kIntRows;
#endif

inline void int_product(int64_t rows, const Rounded& x, const Matrix& m, const uint8_t* data, const Half* scales,
                        int64_t panels, float* c, int64_t cs, uint8_t* room) {
  const bool nibbles = m.type == static_cast<int32_t>(Type::kInt4);
  const int64_t groups = groups_of(m), scale_panel = groups * kLanes, panel = groups * (nibbles ? 256 : 512);
  if (rows <= kFewRows || (!nibbles && rows < kTileBlock)) {
    for (int64_t r = 0; r < rows; r += kIntRows) {
      const int64_t count = std::min<int64_t>(kIntRows, rows - r);
      const auto run = nibbles ? int_rows<true> : int_rows<false>;
      run(count, from(x, r, 0), data, panel, scales, scale_panel, panels, groups, c + r * cs, cs, true);
    }
    return;
  }
  for (int64_t g = 0; g < groups; g += kIntDepth) {
    const int64_t depth = std::min(kIntDepth, groups - g);
    const uint8_t* block = data + g * 512;
    int64_t block_panel = panel;
    if (nibbles) {
      block_panel = depth * 512;
      for (int64_t p = 0; p < panels; p++) expand(data + p * panel + g * 256, depth * 256, room + p * block_panel);
      block = room;
    }
    many_rows(rows, from(x, 0, g), block, block_panel, scales + g * kLanes, scale_panel, panels, depth, c, cs, g == 0);
  }
}

// c [rows, N * 16] = inputs times the matrix; `finish(row, first, end)` is then called for the outputs just made, by the
// thread that made them. To be called by all threads of a parallel region; returns when all are done.
template <class Finish>
void product(const uint8_t* base, const Matrix& m, const Inputs& inputs, int64_t rows, float* c, int64_t cs,
             Finish finish) {
  const int64_t panels = panels_of(m), units = ceil_div(panels, kUnitPanels), groups = groups_of(m);
  constexpr int64_t room_bytes = kUnitPanels * std::max(kFloatDepth * kLanes * 4, kIntDepth * 512);
  uint8_t* room = thread_room(room_bytes);
#pragma omp for schedule(dynamic, 1)
  for (int64_t unit = 0; unit < units; unit++) {
    const int64_t first = unit * kUnitPanels, count = std::min(kUnitPanels, panels - first);
    float* out = c + first * kLanes;
    const uint8_t* data = base + m.data;
    switch (static_cast<Type>(m.type)) {
      case Type::kFloat32:
        float_product(rows, inputs.floats,
                      reinterpret_cast<const float*>(data) + first * m.columns * kLanes, m.columns, count, out, cs,
                      reinterpret_cast<float*>(room));
        break;
      case Type::kFloat16:
        float_product(rows, inputs.floats,
                      reinterpret_cast<const Half*>(data) + first * m.columns * kLanes, m.columns, count, out, cs,
                      reinterpret_cast<float*>(room));
        break;
      default:
        int_product(rows, inputs.rounded, m,
                    data + first * groups * (m.type == static_cast<int32_t>(Type::kInt4) ? 256 : 512),
                    reinterpret_cast<const Half*>(base + m.scales) + first * groups * kLanes, count, out, cs, room);
    }
    const int64_t end = std::min(m.rows, (first + count) * kLanes);
    for (int64_t r = 0; r < rows; r++) finish(r, first * kLanes, end);
  }
}

// Adds the matrix's bias, if it has one, to outputs first .. end of a row that begins at c.
inline void add_bias(const uint8_t* base, const Matrix& m, float* c, int64_t first, int64_t end) {
  if (!m.bias) return;
  const float* bias = reinterpret_cast<const float*>(base + m.bias);
  for (int64_t n = first; n < end; n += kLanes)
    store_part(c + n, add(load_part(c + n, end - n), load_part(bias + n, end - n)), end - n);
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
