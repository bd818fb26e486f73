// Attention over the key/value cache. A row's scores are sums over d = 0 .. D - 1 and its output sums over its slots in
// order, whatever rows are computed beside it, so that its bits depend on itself and the cache alone.
#pragma once

#include <algorithm>

#include "format.h"
#include "lanes.h"
#include "memory.h"

namespace share4v {
namespace SHARE4V_ISA {

#if defined(__AVX512F__)
constexpr int kManyPanels = 2, kOnePanels = 8, kManyValues = 4, kOneValues = 8;
#else
constexpr int kManyPanels = 1, kOnePanels = 4, kManyValues = 1, kOneValues = 4;
#endif
constexpr int kQueryRows = 4;      // queries of one tile
constexpr int64_t kBlockRows = 8;  // rows of a text that share what is read of its cache

// One text's and head's part of the cache.
template <class T>
struct Head {
  T* keys;
  T* values;
  float* key_scales;  // int8 alone
  float* value_scales;
  int64_t size;  // D
  int64_t width; // Dv
};

template <class T>
Head<T> head_of(const Cache& cache, uint8_t* base, int64_t layer, int64_t text, int64_t head) {
  const int64_t index = (layer * cache.texts + text) * cache.kv_heads + head, slots = cache.slots;
  const int64_t all = static_cast<int64_t>(cache.layers) * cache.texts * cache.kv_heads * slots;
  const int64_t width = ceil_div(cache.head_dim, kLanes) * kLanes;
  Head<T> it = {};
  it.keys = reinterpret_cast<T*>(base + cache.keys) + index * slots * cache.head_dim;
  it.values = reinterpret_cast<T*>(base + cache.values) + index * slots * width;
  if (sizeof(T) == 1) {
    it.key_scales = reinterpret_cast<float*>(base + cache.scales) + index * slots;
    it.value_scales = it.key_scales + all;
  }
  it.size = cache.head_dim;
  it.width = width;
  return it;
}

// A key beyond the type's range becomes NaN: as an infinity it could leave a score of -infinity, which nobody would see.
template <class T>
inline void store_key(const float* key, int64_t count, T* keys) {
  T part[kLanes];
  store(part, load_part(key, count));
  const Lanes held = load(part);
  store(part, fma(held, zero(), held));
  for (int64_t d = 0; d < std::min(kLanes, count); d++) keys[d * kLanes] = part[d];
}

// Rounds a head's key or value to int8; what is not finite gives the scale NaN, so that no answer hides it.
inline float int8_scale(const float* x, int64_t size) {
  Lanes most = zero(), poison = zero();
  for (int64_t i = 0; i < size; i += kLanes) {
    const Lanes part = load_part(x + i, size - i);
    most = max(most, abs(part));
    poison = fma(part, zero(), poison);
  }
  return highest(most) / 127.0f + sum(poison);
}

template <class T>
void write_row(const Head<T>& head, int64_t slot, const float* key, const float* value) {
  T* keys = head.keys + slot / kLanes * head.size * kLanes + slot % kLanes;
  T* values = head.values + slot * head.width;
  if constexpr (sizeof(T) == 1) {
    const float scales[2] = {int8_scale(key, head.size), int8_scale(value, head.size)};
    head.key_scales[slot] = scales[0];
    head.value_scales[slot] = scales[1];
    for (int64_t i = 0; i < head.size; i += kLanes) {
      const int64_t n = std::min(kLanes, head.size - i);
      const float* sources[2] = {key + i, value + i};
      int8_t rounded[2][kLanes];
      for (int which = 0; which < 2; which++) {
        const float inverse = scales[which] > 0 ? 1.0f / scales[which] : 0.0f;
        store_int8(rounded[which], mul(load_part(sources[which], n), set1(inverse <= 3.0e38f ? inverse : 0.0f)));
      }
      for (int64_t d = 0; d < n; d++) keys[(i + d) * kLanes] = rounded[0][d];
      std::memcpy(values + i, rounded[1], kLanes);
    }
  } else {
    for (int64_t i = 0; i < head.size; i += kLanes) store_key(key + i, head.size - i, keys + i * kLanes);
    for (int64_t i = 0; i < head.size; i += kLanes) store(values + i, load_part(value + i, head.size - i));
  }
}

template <class T, int R, int P>
inline void score_tile(const float* queries, const Head<T>& head, int64_t panel, float* scores, int64_t stride) {
  Lanes sums[R][P];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) sums[r][p] = zero();
  }
  const T* keys = head.keys + panel * head.size * kLanes;
  for (int64_t d = 0; d < head.size; d++) {
    Lanes key[P];
    SHARE4V_UNROLL
    for (int p = 0; p < P; p++) key[p] = load(keys + (p * head.size + d) * kLanes);
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const Lanes query = set1(queries[r * head.size + d]);
      SHARE4V_UNROLL
      for (int p = 0; p < P; p++) sums[r][p] = fma(query, key[p], sums[r][p]);
    }
  }
  SHARE4V_UNROLL
  for (int p = 0; p < P; p++) {
    const int64_t slot = (panel + p) * kLanes;
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      if constexpr (sizeof(T) == 1) sums[r][p] = mul(sums[r][p], load(head.key_scales + slot));
      store(scores + r * stride + slot, sums[r][p]);
    }
  }
}

template <class T, int R, int P>
void score_rows(const float* queries, const Head<T>& head, int64_t first, int64_t end, float* scores, int64_t stride) {
  int64_t panel = first;
  for (; panel + P <= end; panel += P) score_tile<T, R, P>(queries, head, panel, scores, stride);
  for (; panel < end; panel++) score_tile<T, R, 1>(queries, head, panel, scores, stride);
}

// Scores of slots begin .. end - 1 become e^(score - largest); returns one over their sum. Slots outside become 0.
template <class T>
float softmax_row(const Head<T>& head, float* scores, int64_t begin, int64_t end) {
  const int64_t first = begin / kLanes * kLanes, last = ceil_div(end, kLanes) * kLanes;
  for (int64_t s = first; s < begin; s++) scores[s] = -INFINITY;
  for (int64_t s = end; s < last; s++) scores[s] = -INFINITY;
  Lanes most = set1(-INFINITY);
  for (int64_t s = first; s < last; s += kLanes) most = max(most, load(scores + s));
  const Lanes largest = set1(highest(most));
  Lanes total = zero();
  for (int64_t s = first; s < last; s += kLanes) {
    store(scores + s, exp(sub(load(scores + s), largest)));
    for (int64_t i = s; i < begin; i++) scores[i] = 0.0f;
    for (int64_t i = std::max(s, end); i < s + kLanes; i++) scores[i] = 0.0f;
    total = add(total, load(scores + s));
  }
  if constexpr (sizeof(T) == 1)
    for (int64_t s = begin; s < end; s++) scores[s] *= head.value_scales[s];
  return 1.0f / sum(total);
}

template <class T, int R, int J>
inline void value_tile(const float* weights, int64_t stride, const Head<T>& head, int64_t column, int64_t begin,
                       int64_t end, float* out) {
  Lanes sums[R][J];
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int j = 0; j < J; j++) sums[r][j] = load(out + r * head.width + column + j * kLanes);
  }
  for (int64_t s = begin; s < end; s++) {
    const T* row = head.values + s * head.width + column;
    Lanes value[J];
    SHARE4V_UNROLL
    for (int j = 0; j < J; j++) value[j] = load(row + j * kLanes);
    SHARE4V_UNROLL
    for (int r = 0; r < R; r++) {
      const Lanes weight = set1(weights[r * stride + s]);
      SHARE4V_UNROLL
      for (int j = 0; j < J; j++) sums[r][j] = fma(weight, value[j], sums[r][j]);
    }
  }
  SHARE4V_UNROLL
  for (int r = 0; r < R; r++) {
    SHARE4V_UNROLL
    for (int j = 0; j < J; j++) store(out + r * head.width + column + j * kLanes, sums[r][j]);
  }
}

template <class T, int R, int J>
void value_rows(const float* weights, int64_t stride, const Head<T>& head, int64_t begin, int64_t end, float* out) {
  int64_t column = 0;
  for (; column + J * kLanes <= head.width; column += J * kLanes)
    value_tile<T, R, J>(weights, stride, head, column, begin, end, out);
  for (; column < head.width; column += kLanes) value_tile<T, R, 1>(weights, stride, head, column, begin, end, out);
}

// `count` rows of one text, all heads of one group. queries [rows, heads * D] and out likewise have the given strides.
template <class T>
void attend_block(const Head<T>& head, const Row* rows, int64_t count, int64_t group, const float* queries,
                  int64_t query_stride, float* out, int64_t out_stride) {
  int64_t first = INT64_MAX, end = 0;
  for (int64_t r = 0; r < count; r++) {
    first = std::min<int64_t>(first, rows[r].begin / kLanes);
    end = std::max(end, ceil_div(rows[r].end, kLanes));
  }
  const int64_t all = count * group, stride = end * kLanes + kLanes;
  float* scores = reinterpret_cast<float*>(thread_room(all * (stride + head.size + head.width) * 4));
  float* packed = scores + all * stride;
  float* sums = packed + all * head.size;
  for (int64_t i = 0; i < all; i++) {
    std::memcpy(packed + i * head.size, queries + i / group * query_stride + i % group * head.size,
                static_cast<size_t>(head.size) * sizeof(float));
    std::memset(sums + i * head.width, 0, static_cast<size_t>(head.width) * sizeof(float));
  }
  int64_t i = 0;
  for (; i + kQueryRows <= all; i += kQueryRows)
    score_rows<T, kQueryRows, kManyPanels>(packed + i * head.size, head, first, end, scores + i * stride, stride);
  for (; i < all; i++)
    score_rows<T, 1, kOnePanels>(packed + i * head.size, head, first, end, scores + i * stride, stride);
  for (i = 0; i < all;) {
    const int64_t step = i + kQueryRows <= all ? kQueryRows : 1;
    float inverse[kQueryRows];
    int64_t low = 0, high = INT64_MAX;  // what all rows of the tile see
    for (int64_t r = 0; r < step; r++) {
      const Row& row = rows[(i + r) / group];
      inverse[r] = softmax_row(head, scores + (i + r) * stride, row.begin, row.end);
      low = std::max<int64_t>(low, row.begin);
      high = std::min<int64_t>(high, row.end);
    }
    high = std::max(low, high);
    const auto alone = [&](int64_t r, int64_t from, int64_t to) {
      if (from < to)
        value_rows<T, 1, kOneValues>(scores + (i + r) * stride, stride, head, from, to, sums + (i + r) * head.width);
    };
    if (step == 1) {
      alone(0, rows[i / group].begin, rows[i / group].end);
    } else {
      for (int64_t r = 0; r < step; r++) {
        const Row& row = rows[(i + r) / group];
        alone(r, row.begin, std::min<int64_t>(low, row.end));
      }
      value_rows<T, kQueryRows, kManyValues>(scores + i * stride, stride, head, low, high, sums + i * head.width);
      for (int64_t r = 0; r < step; r++) {
        const Row& row = rows[(i + r) / group];
        alone(r, std::max<int64_t>(high, row.begin), row.end);
      }
    }
    for (int64_t r = 0; r < step; r++) {
      float* to = out + (i + r) / group * out_stride + (i + r) % group * head.size;
      const float* from = sums + (i + r) * head.width;
      for (int64_t d = 0; d < head.size; d += kLanes)
        store_part(to + d, mul(load(from + d), set1(inverse[r])), head.size - d);
    }
    i += step;
  }
}

// Rows of one text that stand side by side in a call.
struct RowBlock {
  int64_t first;
  int64_t count;
};

template <class T>
void write_all(const Cache& cache, uint8_t* base, int64_t layer, const Row* rows, int64_t count, const float* keys,
               const float* values, int64_t stride) {
#pragma omp for schedule(static)
  for (int64_t i = 0; i < count * cache.kv_heads; i++) {
    const int64_t r = i / cache.kv_heads, h = i % cache.kv_heads, at = r * stride + h * cache.head_dim;
    write_row(head_of<T>(cache, base, layer, rows[r].text, h), rows[r].slot, keys + at, values + at);
  }
}

template <class T>
void attend_all(const Cache& cache, uint8_t* base, int64_t layer, const Row* rows, const RowBlock* blocks,
                int64_t block_count, int64_t group, const float* queries, int64_t query_stride, float* out,
                int64_t out_stride) {
#pragma omp for schedule(dynamic, 1)
  for (int64_t i = 0; i < block_count * cache.kv_heads; i++) {
    const RowBlock& block = blocks[i / cache.kv_heads];
    const int64_t h = i % cache.kv_heads, column = h * group * cache.head_dim;
    attend_block(head_of<T>(cache, base, layer, rows[block.first].text, h), rows + block.first, block.count, group,
                 queries + block.first * query_stride + column, query_stride, out + block.first * out_stride + column,
                 out_stride);
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
