// Products with float32, float16 and bfloat16 weights. Each output is one chain of fused multiply-adds over the columns,
// in an order that depends on the type alone, whatever the tile size and wherever the columns are split. The bits of a
// row therefore depend only on that row.
#pragma once

#include <algorithm>

#include "format.h"
#include "lanes.h"
#include "matrix_bf16.h"

namespace share4v {
namespace SHARE4V_ISA {

#if defined(__AVX512F__)
constexpr int kFloatRows = 12;  // rows of a tile: 24 sums, 2 weights and 1 input use 27 of 32 registers
#else
constexpr int kFloatRows = 6;   // rows of a tile: 12 sums, 2 weights and 1 input use 15 of 16 registers; of NEON's, 29 of 32
#endif
constexpr int64_t kDepthBytes = 2048;  // of a row's inputs in a block: a tile's inputs stay in the L1 cache

// Inputs of a product: items of type X, which is float, or two columns of bfloat16. In one of two layouts. For few rows:
// row-major. For many rows: blocks of kFloatRows rows by kDepth items, item by item within a block, so that a tile reads
// contiguous memory.
template <class X>
struct FloatInputs {
  static constexpr int64_t kDepth = kDepthBytes / static_cast<int64_t>(sizeof(X));

  X* data;
  int64_t stride;  // of the rows in the row-major layout; 0 selects the blocked layout
  int64_t rows;    // of all blocks, a multiple of kFloatRows
  int64_t items;   // of a row

  // Returns the block that begins at (row, item).
  X* block(int64_t row, int64_t item) const { return data + item * rows + row * std::min(kDepth, items - item); }
};

// The inputs of one tile. The layout is a template parameter so that offsets in a block are compile-time constants.
template <bool kBlocked, class X>
struct TileInputs {
  const X* data;
  int64_t stride;  // of the rows; unused if kBlocked

  X at(int64_t row, int64_t item) const {
    return kBlocked ? data[row + item * kFloatRows] : data[row * stride + item];
  }
};

// `count` panels of a float matrix, `depth` items of each. The stride is in elements, of which an item has 16.
template <class W>
struct FloatPanels {
  const W* data;
  int64_t stride;
  int64_t count;
  int64_t depth;

  FloatPanels from(int64_t panel) const { return {data + panel * stride, stride, count - panel, depth}; }
};

// What a step of a tile multiplies: of an item of float there is one step, of bfloat16 as many as matrix_bf16.h says.
inline Lanes weights_of(const float* w, int) { return load(w); }
inline Lanes weights_of(const Half* w, int) { return load(w); }
inline Lanes input_of(float x, int) { return set1(x); }
template <class X>
constexpr int steps_of() {
  return 1;
}
template <>
constexpr int steps_of<PairInput>() {
  return kPairSteps;
}

// Adds the products of one step of item k to sums.
template <int kStep, int R, int P, bool kBlocked, class X, class W>
SHARE4V_INLINE void add_step(const TileInputs<kBlocked, X>& x, int64_t k, const FloatPanels<W>& w, Lanes (&sums)[R][P]) {
  decltype(weights_of(w.data, kStep)) weights[P];
  SHARE4V_UNROLL
  for (int p = 0; p < P; p++) weights[p] = weights_of(w.data + p * w.stride + k * kLanes, kStep);
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    const auto input = input_of(x.at(r, k), kStep);
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) sums[r][p] = fma(input, weights[p], sums[r][p]);
  }
}

// Multiplies R rows by the first P panels: c[r][p] = sum over k of x[r][k] * w[p][k]. With `overwrite` false the sums
// continue from the values in c.
template <int R, int P, bool kBlocked, class X, class W>
inline void float_tile(TileInputs<kBlocked, X> x, FloatPanels<W> w, FloatRows c, bool overwrite) {
  Lanes sums[R][P];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) sums[r][p] = overwrite ? zero() : load(c.row(r) + p * kLanes);
  }
  for (int64_t k = 0; k < w.depth; k++) {
    add_step<0>(x, k, w, sums);
    if constexpr (steps_of<X>() > 1) add_step<1>(x, k, w, sums);
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
template <int R, bool kBlocked, class X, class W>
void float_row_tiles(TileInputs<kBlocked, X> x, FloatPanels<W> w, FloatRows c, bool overwrite) {
  constexpr int P = float_panels<R>();
  int64_t p = 0;
  for (; p + P <= w.count; p += P) float_tile<R, P>(x, w.from(p), c.from(0, p * kLanes), overwrite);
  for (; p < w.count; p++) float_tile<R, 1>(x, w.from(p), c.from(0, p * kLanes), overwrite);
}

// Multiplies `rows` rows, at most R, by all panels of w.
template <bool kBlocked, class X, class W, int R = kFloatRows>
void float_rows(int64_t rows, TileInputs<kBlocked, X> x, FloatPanels<W> w, FloatRows c, bool overwrite) {
  if constexpr (R > 1) {
    if (rows < R) return float_rows<kBlocked, X, W, R - 1>(rows, x, w, c, overwrite);
  }
  float_row_tiles<R>(x, w, c, overwrite);
}

// Converts float16 panels to float32, into `scratch`; others are returned as they are.
template <class W>
FloatPanels<W> expanded(FloatPanels<W> w, float*) {
  return w;
}

inline FloatPanels<float> expanded(FloatPanels<Half> w, float* scratch) {
  for (int64_t p = 0; p < w.count; p++)
    for (int64_t k = 0; k < w.depth; k++)
      store(scratch + (p * w.depth + k) * kLanes, load(w.data + p * w.stride + k * kLanes));
  return {scratch, w.depth * kLanes, w.count, w.depth};
}

// Asks for part `part` of `parts` of weights that will be multiplied soon, to be brought into the L2 cache.
template <class W>
void prefetch_panels(FloatPanels<W> w, int64_t part, int64_t parts) {
  constexpr int64_t kLine = 64;
  const int64_t lines = w.depth * kLanes * static_cast<int64_t>(sizeof(W)) / kLine;
  for (int64_t p = 0; p < w.count; p++) {
    const char* at = reinterpret_cast<const char*>(w.data + p * w.stride);
    for (int64_t i = lines * part / parts; i < lines * (part + 1) / parts; i++) __builtin_prefetch(at + i * kLine, 0, 2);
  }
}

// c [rows, w.count * 16] = x [rows, K] times the panels w, which have all K columns. `scratch` has room for
// w.count * kDepth * 16 floats.
template <class X, class W>
void float_product(int64_t rows, const FloatInputs<X>& x, FloatPanels<W> w, FloatRows c, float* scratch) {
  if (x.stride) return float_rows<false>(rows, TileInputs<false, X>{x.data, x.stride}, w, c, true);
  for (int64_t k = 0; k < w.depth; k += x.kDepth) {
    const int64_t depth = std::min(x.kDepth, w.depth - k);
    const auto block = expanded(FloatPanels<W>{w.data + k * kLanes, w.stride, w.count, depth}, scratch);
    const int64_t ahead = std::min(x.kDepth, w.depth - k - depth), tiles = ceil_div(rows, kFloatRows);
    const FloatPanels<W> next = {w.data + (k + depth) * kLanes, w.stride, w.count, ahead};
    for (int64_t r = 0; r < rows; r += kFloatRows) {
      prefetch_panels(next, r / kFloatRows, tiles);
      float_rows<true>(std::min<int64_t>(kFloatRows, rows - r), TileInputs<true, X>{x.block(r, k), 0}, block,
                       c.from(r, 0), k == 0);
    }
  }
}

// Stores the items begin .. end - 1 of an input row.
template <class X>
void store_items(const FloatInputs<X>& x, int64_t row, int64_t begin, int64_t end, const X* items) {
  if (x.stride) {
    std::memcpy(x.data + row * x.stride + begin, items, static_cast<size_t>(end - begin) * sizeof(X));
    return;
  }
  const int64_t first = row / kFloatRows * kFloatRows;
  for (int64_t k = begin; k < end;) {
    const int64_t block = k / x.kDepth * x.kDepth, stop = std::min(end, block + x.kDepth);
    X* to = x.block(first, block) + (k - block) * kFloatRows + row % kFloatRows;
    for (; k < stop; k++, to += kFloatRows) *to = items[k - begin];
  }
}

// Stores columns begin .. end - 1 of an input row, rounded to bfloat16; `begin` is even. The rest of the last group of
// 32 columns becomes zero.
inline void store_pairs(const FloatInputs<PairInput>& x, int64_t row, int64_t begin, int64_t end, const float* values) {
  constexpr int64_t kStep = 8 * kGroup;
  for (int64_t k = begin; k < end; k += kStep) {
    const int64_t count = std::min(kStep, end - k), groups = ceil_div(count, kGroup);
    float padded[kStep];
    const float* from = values + (k - begin);
    if (count < groups * kGroup) {
      std::memset(padded, 0, sizeof padded);
      std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(float));
      from = padded;
    }
    PairInput items[kStep / 2];
    round_pairs(from, groups, items);
    store_items(x, row, k / 2, k / 2 + groups * kGroup / 2, items);
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
