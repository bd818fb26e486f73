// Operations on one row: norms, activations, rotary embedding. The bits of a row depend only on that row.
#pragma once

#include <algorithm>

#include "format.h"
#include "lanes.h"
#include "memory.h"

namespace share4v {
namespace SHARE4V_ISA {

// RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016).
inline void normalize_row(const uint8_t* base, const Norm& norm, const float* x, float* y) {
  const int64_t size = norm.size;
  const float* weight = reinterpret_cast<const float*>(base + norm.weight);
  const float* bias = norm.bias ? reinterpret_cast<const float*>(base + norm.bias) : nullptr;
  float mean = 0.0f;
  if (norm.kind == static_cast<int32_t>(NormKind::kLayer)) {
    Lanes total = zero();
    for (int64_t i = 0; i < size; i += kLanes) total = add(total, load_part(x + i, size - i));
    mean = sum(total) / static_cast<float>(size);
  }
  Lanes squares = zero();
  for (int64_t i = 0; i < size; i += kLanes) {
    const Lanes d = sub(load_part(x + i, size - i, mean), set1(mean));
    squares = fma(d, d, squares);
  }
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + norm.eps);
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t n = size - i;
    const Lanes normal = mul(mul(sub(load_part(x + i, n), set1(mean)), set1(scale)), load_part(weight + i, n));
    store_part(y + i, bias ? add(normal, load_part(bias + i, n)) : normal, n);
  }
}

// Applies, in place, the exact (erf) GELU, or quick GELU, x * sigmoid(1.702 x); other activations leave x unchanged.
inline void activate(Activation activation, float* x, int64_t count) {
  if (activation == Activation::kGelu)
    for (int64_t i = 0; i < count; i++) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678118654752f));
  if (activation == Activation::kQuickGelu)
    for (int64_t i = 0; i < count; i += kLanes)
      store_part(x + i, sigmoid_gate(load_part(x + i, count - i), 1.702f), count - i);
}

// Gated SiLU (Shazeer 2020): gate = gate * sigmoid(gate) * up.
inline void gated_silu(float* gate, const float* up, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t n = count - i;
    store_part(gate + i, mul(sigmoid_gate(load_part(gate + i, n), 1.0f), load_part(up + i, n)), n);
  }
}

// Rotary position embedding (Su et al. 2021) of one head x [D], in place; dimension i pairs with i + D / 2. cos and sin
// are [D].
inline void rotate(float* x, const float* cos, const float* sin, int64_t size) {
  const int64_t half = size / 2;
  for (int64_t i = 0; i < half; i += kLanes) {
    const int64_t n = half - i;
    const Lanes a = load_part(x + i, n), b = load_part(x + half + i, n);
    const Lanes c = load_part(cos + i, n), s = load_part(sin + i, n);
    store_part(x + i, fnma(b, s, mul(a, c)), n);
    store_part(x + half + i, fma(a, s, mul(b, c)), n);
  }
}

inline void scale_row(float* x, float factor, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes)
    store_part(x + i, mul(load_part(x + i, size - i), set1(factor)), size - i);
}

// Multiplies blocks of `size` values, a power of two, by the orthonormal Hadamard matrix, in place (the fast
// Walsh-Hadamard transform).
inline void hadamard(float* x, int64_t count, int64_t size) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (float* block = x; block < x + count; block += size) {
    for (int64_t width = 1; width < size; width *= 2)
      for (int64_t first = 0; first < size; first += 2 * width)
        for (int64_t i = first; i < first + width; i++) {
          const float a = block[i], b = block[i + width];
          block[i] = a + b;
          block[i + width] = a - b;
        }
    for (int64_t i = 0; i < size; i++) block[i] *= scale;
  }
}

// y = x times the rotation that format.h describes.
inline void rotate_row(const float* rotation, int64_t size, const float* x, float* y) {
  const int64_t part = size & -size, parts = size / part;
  for (int64_t i = 0; i < size; i++) y[i] = x[i] * rotation[i];
  hadamard(y, size, part);
  if (parts == 1) return;
  const float* mix = rotation + size;
  float* before = reinterpret_cast<float*>(thread_scratch(size * static_cast<int64_t>(sizeof(float))));
  if (!before) return;
  std::memcpy(before, y, static_cast<size_t>(size) * sizeof(float));
  for (int64_t to = 0; to < parts; to++)
    for (int64_t i = 0; i < part; i++) {
      float total = 0.0f;
      for (int64_t from = 0; from < parts; from++) total += before[from * part + i] * mix[from * parts + to];
      y[to * part + i] = total;
    }
}

// y = a + b
inline void add_row(const float* a, const float* b, float* y, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes)
    store_part(y + i, add(load_part(a + i, size - i), load_part(b + i, size - i)), size - i);
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
