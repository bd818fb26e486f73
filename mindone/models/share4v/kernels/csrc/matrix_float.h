// Products with float32 and float16 weights. An output is one chain of fused multiply-adds over k = 0 .. K - 1, however
// many rows and panels a tile has and wherever K is cut, so that its bits depend on its own row alone.
#pragma once

#include <algorithm>

#include "format.h"
#include "lanes.h"

namespace share4v {
namespace SHARE4V_ISA {

#if defined(__AVX512F__)
constexpr int kFloatRows = 12;  // 24 sums, 2 weights, 1 input: 27 of 32 registers
#else
constexpr int kFloatRows = 6;   // 12 sums, 2 weights, 1 input: 15 of 16 registers
#endif
constexpr int64_t kFloatDepth = 512;  // a tile's inputs stay in the first-level cache

// Where the inputs of a product lie: one after the other in each row, or, for many rows, in blocks of kFloatRows rows by
// kFloatDepth columns, column by column, so that a tile reads one piece of memory from its beginning to its end.
struct FloatInputs {
  float* data;
  int64_t stride;   // of rows that lie one after the other; 0: they lie in blocks
  int64_t rows;     // of all blocks, a multiple of kFloatRows
  int64_t columns;

  float* block(int64_t row, int64_t column) const {  // both the first of a block
    return data + column * rows + row * std::min(kFloatDepth, columns - column);
  }
};

// c[r][p] (+)= x[r][k] * w[p][k] for R rows and P panels. xs and ks are the distances of two rows and of two columns of
// x, `panel` is that of two panels, all in elements.
template <int R, int P, class W>
inline void float_tile(const float* x, int64_t xs, int64_t ks, const W* w, int64_t panel, int64_t depth, float* c,
                       int64_t cs, bool fresh) {
  Lanes sums[R][P];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) sums[r][p] = fresh ? zero() : load(c + r * cs + p * kLanes);
  }
  for (int64_t k = 0; k < depth; k++) {
    Lanes weights[P];
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) weights[p] = load(w + p * panel + k * kLanes);
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const Lanes input = set1(x[r * xs + k * ks]);
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) sums[r][p] = fma(input, weights[p], sums[r][p]);
    }
  }
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) store(c + r * cs + p * kLanes, sums[r][p]);
  }
}

// Panels that one tile of R rows takes at once: enough sums in flight to hide the latency of a multiply-add.
template <int R>
constexpr int float_panels() {
#if defined(__AVX512F__)
  return R <= 2 ? 4 : 2;
#else
  return R == 1 ? 4 : R <= 3 ? 2 : 1;
#endif
}

template <bool kBlocked, int R, class W>
void float_rows(const float* x, int64_t xs, const W* w, int64_t panel, int64_t panels, int64_t depth, float* c,
                int64_t cs, bool fresh) {
  constexpr int P = float_panels<R>();
  const int64_t rs = kBlocked ? 1 : xs, ks = kBlocked ? kFloatRows : 1;
  int64_t p = 0;
  for (; p + P <= panels; p += P)
    float_tile<R, P>(x, rs, ks, w + p * panel, panel, depth, c + p * kLanes, cs, fresh);
  for (; p < panels; p++) float_tile<R, 1>(x, rs, ks, w + p * panel, panel, depth, c + p * kLanes, cs, fresh);
}

template <bool kBlocked, class W, int R = kFloatRows>
void float_rows(int64_t rows, const float* x, int64_t xs, const W* w, int64_t panel, int64_t panels, int64_t depth,
                float* c, int64_t cs, bool fresh) {
  if constexpr (R > 1) {
    if (rows < R) return float_rows<kBlocked, W, R - 1>(rows, x, xs, w, panel, panels, depth, c, cs, fresh);
  }
  float_rows<kBlocked, R>(x, xs, w, panel, panels, depth, c, cs, fresh);
}

inline const float* widened(const float* w, int64_t, int64_t, float*, int64_t*) { return w; }

inline const float* widened(const Half* w, int64_t panels, int64_t depth, float* room, int64_t* panel) {
  for (int64_t p = 0; p < panels; p++)
    for (int64_t k = 0; k < depth; k++) store(room + (p * depth + k) * kLanes, load(w + p * *panel + k * kLanes));
  *panel = depth * kLanes;
  return room;
}

// c [rows, panels * 16] = x [rows, K] times some panels of a matrix. `room` holds panels * kFloatDepth * 16 floats.
template <class W>
void float_product(int64_t rows, const FloatInputs& x, const W* w, int64_t columns, int64_t panels, float* c,
                   int64_t cs, float* room) {
  const int64_t full = columns * kLanes;
  if (x.stride) return float_rows<false, W>(rows, x.data, x.stride, w, full, panels, columns, c, cs, true);
  for (int64_t k = 0; k < columns; k += kFloatDepth) {
    const int64_t depth = std::min(kFloatDepth, columns - k);
    int64_t panel = full;
    const float* block = widened(w + k * kLanes, panels, depth, room, &panel);
    for (int64_t r = 0; r < rows; r += kFloatRows)
      float_rows<true, float>(std::min<int64_t>(kFloatRows, rows - r), x.block(r, k), 0, block, panel, panels, depth,
                              c + r * cs, cs, k == 0);
  }
}

// Writes columns begin .. end - 1 of a row.
inline void put_floats(const FloatInputs& x, int64_t row, int64_t begin, int64_t end, const float* values) {
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
