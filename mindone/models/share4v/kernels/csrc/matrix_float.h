// Products with float32 and float16 weights. Each output is one chain of fused multiply-adds over k = 0 .. K - 1, in
// this order, whatever the tile size and wherever K is split. The bits of a row therefore depend only on that row.
#pragma once

#include <algorithm>

#include "format.h"
#include "lanes.h"

namespace share4v {
namespace SHARE4V_ISA {

#if defined(__AVX512F__)
constexpr int kFloatRows = 12;  // rows of a tile: 24 sums, 2 weights and 1 input use 27 of 32 registers
#else
constexpr int kFloatRows = 6;   // rows of a tile: 12 sums, 2 weights and 1 input use 15 of 16 registers; of NEON's, 29 of 32
#endif
constexpr int64_t kFloatDepth = 512;  // columns of a block: a tile's inputs stay in the L1 cache

// Inputs of a product, in one of two layouts. For few rows: row-major. For many rows: blocks of kFloatRows rows by
// kFloatDepth columns, column-major within a block, so that a tile reads contiguous memory.
struct FloatInputs {
  float* data;
  int64_t stride;   // of the rows in the row-major layout; 0 selects the blocked layout
  int64_t rows;     // of all blocks, a multiple of kFloatRows
  int64_t columns;

  // Returns the block that begins at (row, column).
  float* block(int64_t row, int64_t column) const {
    return data + column * rows + row * std::min(kFloatDepth, columns - column);
  }
};

// The inputs of one tile. The layout is a template parameter so that offsets in a block are compile-time constants.
template <bool kBlocked>
struct TileInputs {
  const float* data;
  int64_t stride;  // of the rows; unused if kBlocked

  float at(int64_t row, int64_t column) const {
    return kBlocked ? data[row + column * kFloatRows] : data[row * stride + column];
  }
};

// `count` panels of a float matrix, `depth` columns of each. The stride is in elements.
template <class W>
struct FloatPanels {
  const W* data;
  int64_t stride;
  int64_t count;
  int64_t depth;

  FloatPanels from(int64_t panel) const { return {data + panel * stride, stride, count - panel, depth}; }
};

// Multiplies R rows by the first P panels: c[r][p] = sum over k of x[r][k] * w[p][k]. With `overwrite` false the sums
// continue from the values in c.
template <int R, int P, bool kBlocked, class W>
inline void float_tile(TileInputs<kBlocked> x, FloatPanels<W> w, FloatRows c, bool overwrite) {
  Lanes sums[R][P];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) sums[r][p] = overwrite ? zero() : load(c.row(r) + p * kLanes);
  }
  for (int64_t k = 0; k < w.depth; k++) {
    Lanes weights[P];
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) weights[p] = load(w.data + p * w.stride + k * kLanes);
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const Lanes input = set1(x.at(r, k));
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) sums[r][p] = fma(input, weights[p], sums[r][p]);
    }
  }
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) store(c.row(r) + p * kLanes, sums[r][p]);
  }
}

// Panels of a tile of R rows: enough independent sums to hide the latency of a multiply-add.
template <int R>
constexpr int float_panels() {
#if defined(__AVX512F__)
  return R <= 2 ? 4 : 2;
#elif defined(SHARE4V_NEON)
  return R == 1 ? 2 : 1;
#else
  return R == 1 ? 4 : R <= 3 ? 2 : 1;
#endif
}

// Multiplies R rows by all panels of w.
template <int R, bool kBlocked, class W>
void float_row_tiles(TileInputs<kBlocked> x, FloatPanels<W> w, FloatRows c, bool overwrite) {
  constexpr int P = float_panels<R>();
  int64_t p = 0;
  for (; p + P <= w.count; p += P) float_tile<R, P>(x, w.from(p), c.from(0, p * kLanes), overwrite);
  for (; p < w.count; p++) float_tile<R, 1>(x, w.from(p), c.from(0, p * kLanes), overwrite);
}

// Multiplies `rows` rows, at most R, by all panels of w.
template <bool kBlocked, class W, int R = kFloatRows>
void float_rows(int64_t rows, TileInputs<kBlocked> x, FloatPanels<W> w, FloatRows c, bool overwrite) {
  if constexpr (R > 1) {
    if (rows < R) return float_rows<kBlocked, W, R - 1>(rows, x, w, c, overwrite);
  }
  float_row_tiles<R>(x, w, c, overwrite);
}

// Converts panels to float32: float16 panels are converted into `scratch`, float32 panels are returned as they are.
inline FloatPanels<float> to_float32(FloatPanels<float> w, float*) { return w; }

inline FloatPanels<float> to_float32(FloatPanels<Half> w, float* scratch) {
  for (int64_t p = 0; p < w.count; p++)
    for (int64_t k = 0; k < w.depth; k++)
      store(scratch + (p * w.depth + k) * kLanes, load(w.data + p * w.stride + k * kLanes));
  return {scratch, w.depth * kLanes, w.count, w.depth};
}

// c [rows, w.count * 16] = x [rows, K] times the panels w, which have all K columns. `scratch` has room for
// w.count * kFloatDepth * 16 floats.
template <class W>
void float_product(int64_t rows, const FloatInputs& x, FloatPanels<W> w, FloatRows c, float* scratch) {
  if (x.stride) return float_rows<false, W>(rows, {x.data, x.stride}, w, c, true);
  for (int64_t k = 0; k < w.depth; k += kFloatDepth) {
    const int64_t depth = std::min(kFloatDepth, w.depth - k);
    const FloatPanels<float> block = to_float32(FloatPanels<W>{w.data + k * kLanes, w.stride, w.count, depth}, scratch);
    for (int64_t r = 0; r < rows; r += kFloatRows)
      float_rows<true, float>(std::min<int64_t>(kFloatRows, rows - r), {x.block(r, k), 0}, block, c.from(r, 0), k == 0);
  }
}

// Stores columns begin .. end - 1 of an input row.
inline void store_floats(const FloatInputs& x, int64_t row, int64_t begin, int64_t end, const float* values) {
  if (x.stride) {
    std::memcpy(x.data + row * x.stride + begin, values, static_cast<size_t>(end - begin) * sizeof(float));
    return;
  }
  const int64_t first = row / kFloatRows * kFloatRows;
  for (int64_t k = begin; k < end;) {
    const int64_t block = k / kFloatDepth * kFloatDepth, stop = std::min(end, block + kFloatDepth);
    float* to = x.block(first, block) + (k - block) * kFloatRows + row % kFloatRows;
    for (; k < stop; k++, to += kFloatRows) *to = values[k - begin];
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
