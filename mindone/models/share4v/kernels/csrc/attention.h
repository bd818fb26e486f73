// Attention over the key/value cache. A row's scores are sums over d = 0 .. D - 1, and its output is a sum over its
// slots in order, whichever other rows are in the call. The bits of a row depend only on that row and the cache.
#pragma once

#include <algorithm>

#include "format.h"
#include "lanes.h"
#include "memory.h"

namespace share4v {
namespace SHARE4V_ISA {

#if defined(__AVX512F__)
// Tile sizes: panels of scores and vectors of values, for a tile of kQueryRows rows and for one row.
constexpr int kManyPanels = 2, kOnePanels = 8, kManyValues = 4, kOneValues = 8;
#elif defined(SHARE4V_NEON)
constexpr int kManyPanels = 1, kOnePanels = 2, kManyValues = 1, kOneValues = 2;
#else
constexpr int kManyPanels = 1, kOnePanels = 4, kManyValues = 1, kOneValues = 4;
#endif
constexpr int kQueryRows = 4;      // queries of one tile
constexpr int64_t kBlockRows = 8;  // maximum rows of a block, which read the keys and values of their sequence together

// The part of the cache that belongs to one layer, sequence and key/value head.
template <class T>
struct Head {
  T* keys;              // [S / 16][D][16]
  T* values;            // [S][Dv]
  float* key_scales;    // [S], int8 only
  float* value_scales;  // [S], int8 only
  int64_t size;         // D
  int64_t width;        // Dv
};

// The rows first .. first + count - 1 of a call, which belong to one sequence.
struct RowBlock {
  int64_t first;
  int64_t count;
};

// Arguments of attention for one layer. R = rows; queries, keys and values may be columns of one matrix.
struct AttentionPass {
  const Cache* header;  // of the cache
  uint8_t* cache;
  int64_t layer;
  const Row* rows;  // [R]
  int64_t count;    // R
  const RowBlock* blocks;
  int64_t block_count;
  int64_t group;      // query heads per key/value head
  ConstFloatRows queries;  // [R, heads * D]
  ConstFloatRows keys;     // [R, kv_heads * D]
  ConstFloatRows values;   // [R, kv_heads * D]
  FloatRows out;           // [R, heads * D]
};

template <class T>
Head<T> head_of(const AttentionPass& pass, int64_t sequence, int64_t head) {
  const Cache& cache = *pass.header;
  uint8_t* base = pass.cache;
  const int64_t index = (pass.layer * cache.sequences + sequence) * cache.kv_heads + head, slots = cache.slots;
  const int64_t all = static_cast<int64_t>(cache.layers) * cache.sequences * cache.kv_heads * slots;
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

// Stores up to 16 values of a key, 16 elements apart. A value outside the type's range becomes NaN: infinity could lead
// to a score of -infinity, which softmax would hide.
template <class T>
inline void store_key(const float* key, int64_t count, T* keys) {
  T part[kLanes];
  store(part, load_part(key, count));
  const Lanes stored = load(part);
  store(part, fma(stored, zero(), stored));
  for (int64_t d = 0; d < std::min(kLanes, count); d++) keys[d * kLanes] = part[d];
}

// Returns the int8 scale of a key or value; NaN if any element is not finite, so that NaN reaches the output.
inline float int8_scale(const float* x, int64_t size) {
  Lanes largest = zero(), poison = zero();  // poison: 0 if all elements are finite, else NaN
  for (int64_t i = 0; i < size; i += kLanes) {
    const Lanes part = load_part(x + i, size - i);
    largest = max(largest, abs(part));
    poison = fma(part, zero(), poison);
  }
  return max_lane(largest) / 127.0f + sum(poison);
}

// Writes the key and the value [D] of one row into its slot.
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

// Computes the scores of R queries [R, D] for P panels of keys.
template <class T, int R, int P>
inline void score_tile(const float* queries, const Head<T>& head, int64_t panel, FloatRows scores) {
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
      store(scores.row(r) + slot, sums[r][p]);
    }
  }
}

// Computes the scores of R queries [R, D] for the panels first .. end - 1.
template <class T, int R, int P>
void score_rows(const float* queries, const Head<T>& head, int64_t first, int64_t end, FloatRows scores) {
  int64_t panel = first;
  for (; panel + P <= end; panel += P) score_tile<T, R, P>(queries, head, panel, scores);
  for (; panel < end; panel++) score_tile<T, R, 1>(queries, head, panel, scores);
}

// Replaces the scores of the slots begin .. end - 1 by e^(score - largest), and the others of their panels by 0.
// Returns 1 / their sum. For int8, the results are then multiplied by the scales of the values.
template <class T>
float softmax_row(const Head<T>& head, float* scores, int64_t begin, int64_t end) {
  const int64_t first = begin / kLanes * kLanes, last = ceil_div(end, kLanes) * kLanes;
  for (int64_t s = first; s < begin; s++) scores[s] = -INFINITY;
  for (int64_t s = end; s < last; s++) scores[s] = -INFINITY;
  Lanes maximum = set1(-INFINITY);
  for (int64_t s = first; s < last; s += kLanes) maximum = max(maximum, load(scores + s));
  const Lanes largest = set1(max_lane(maximum));
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

// Adds to J vectors of out [R, Dv] the values of the slots begin .. end - 1, times the weights of R rows.
template <class T, int R, int J>
inline void value_tile(ConstFloatRows weights, const Head<T>& head, int64_t column, int64_t begin, int64_t end,
                       float* out) {
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
      const Lanes weight = set1(weights.data[r * weights.stride + s]);
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

// Adds to out [R, Dv] the values of the slots begin .. end - 1, times the weights of R rows.
template <class T, int R, int J>
void value_rows(ConstFloatRows weights, const Head<T>& head, int64_t begin, int64_t end, float* out) {
  int64_t column = 0;
  for (; column + J * kLanes <= head.width; column += J * kLanes)
    value_tile<T, R, J>(weights, head, column, begin, end, out);
  for (; column < head.width; column += kLanes) value_tile<T, R, 1>(weights, head, column, begin, end, out);
}

// Softmax and weighted sums of values for the query heads i .. i + count - 1 of a block, whose scores are known. `sums`
// [count, Dv] is zero on entry. `count` is kQueryRows or 1.
template <class T>
void combine_values(const Head<T>& head, const Row* rows, int64_t group, int64_t i, int64_t count, FloatRows scores,
                    float* sums, FloatRows out) {
  const auto row_of = [&](int64_t r) -> const Row& { return rows[(i + r) / group]; };
  float inverse[kQueryRows];
  int64_t low = 0, high = INT64_MAX;  // all rows attend to the slots low .. high - 1
  for (int64_t r = 0; r < count; r++) {
    const Row& row = row_of(r);
    inverse[r] = softmax_row(head, scores.row(r), row.begin, row.end);
    low = std::max<int64_t>(low, row.begin);
    high = std::min<int64_t>(high, row.end);
  }
  high = std::max(low, high);
  const auto add_one_row = [&](int64_t r, int64_t begin, int64_t end) {
    if (begin < end) value_rows<T, 1, kOneValues>(scores.from(r, 0), head, begin, end, sums + r * head.width);
  };
  if (count == 1) {
    add_one_row(0, row_of(0).begin, row_of(0).end);
  } else {
    for (int64_t r = 0; r < count; r++) add_one_row(r, row_of(r).begin, std::min<int64_t>(low, row_of(r).end));
    value_rows<T, kQueryRows, kManyValues>(scores, head, low, high, sums);
    for (int64_t r = 0; r < count; r++) add_one_row(r, std::max<int64_t>(high, row_of(r).begin), row_of(r).end);
  }
  for (int64_t r = 0; r < count; r++) {
    float* to = out.row((i + r) / group) + (i + r) % group * head.size;
    const float* from = sums + r * head.width;
    for (int64_t d = 0; d < head.size; d += kLanes)
      store_part(to + d, mul(load(from + d), set1(inverse[r])), head.size - d);
  }
}

// Attention of `count` rows of one sequence, for the query heads that share one key/value head: queries and out
// [count, group * D].
template <class T>
void attend_block(const Head<T>& head, const Row* rows, int64_t count, int64_t group, ConstFloatRows queries,
                  FloatRows out) {
  int64_t first = INT64_MAX, end = 0;  // panels that any row attends to
  for (int64_t r = 0; r < count; r++) {
    first = std::min<int64_t>(first, rows[r].begin / kLanes);
    end = std::max(end, ceil_div(rows[r].end, kLanes));
  }
  const int64_t all = count * group, stride = end * kLanes + kLanes;
  float* scratch = reinterpret_cast<float*>(thread_scratch(all * (stride + head.size + head.width) * 4));
  if (!scratch) return;
  const FloatRows scores = {scratch, stride};  // [all, slots]
  float* packed = scratch + all * stride;      // [all, D], the queries without gaps
  float* sums = packed + all * head.size;      // [all, Dv]
  for (int64_t i = 0; i < all; i++) {
    std::memcpy(packed + i * head.size, queries.row(i / group) + i % group * head.size,
                static_cast<size_t>(head.size) * sizeof(float));
    std::memset(sums + i * head.width, 0, static_cast<size_t>(head.width) * sizeof(float));
  }
  int64_t i = 0;
  for (; i + kQueryRows <= all; i += kQueryRows)
    score_rows<T, kQueryRows, kManyPanels>(packed + i * head.size, head, first, end, scores.from(i, 0));
  for (; i < all; i++)
    score_rows<T, 1, kOnePanels>(packed + i * head.size, head, first, end, scores.from(i, 0));
  for (int64_t step, j = 0; j < all; j += step) {
    step = j + kQueryRows <= all ? kQueryRows : 1;
    combine_values(head, rows, group, j, step, scores.from(j, 0), sums + j * head.width, out);
  }
}

// Writes the keys and values of all rows into the cache. All threads of a parallel region call this together.
template <class T>
void write_cache(const AttentionPass& pass) {
  const int64_t kv_heads = pass.header->kv_heads, size = pass.header->head_dim;
#pragma omp for schedule(static)
  for (int64_t i = 0; i < pass.count * kv_heads; i++) {
    const int64_t r = i / kv_heads, h = i % kv_heads, column = h * size;
    write_row(head_of<T>(pass, pass.rows[r].sequence, h), pass.rows[r].slot, pass.keys.row(r) + column,
              pass.values.row(r) + column);
  }
}

// Computes attention of all rows. All threads of a parallel region call this together, after write_cache.
template <class T>
void attend_blocks(const AttentionPass& pass) {
  const int64_t kv_heads = pass.header->kv_heads, size = pass.header->head_dim;
#pragma omp for schedule(dynamic, 1)
  for (int64_t i = 0; i < pass.block_count * kv_heads; i++) {
    // One head after the other: its keys and values stay in the L2 cache for all blocks of a sequence.
    const RowBlock& block = pass.blocks[i % pass.block_count];
    const int64_t h = i / pass.block_count, column = h * pass.group * size;
    const Row* rows = pass.rows + block.first;
    attend_block(head_of<T>(pass, rows->sequence, h), rows, block.count, pass.group,
                 pass.queries.from(block.first, column), pass.out.from(block.first, column));
  }
}

inline void run_attention_pass(const AttentionPass& pass) {
  switch (static_cast<Type>(pass.header->type)) {
    case Type::kFloat32:
      write_cache<float>(pass);
      return attend_blocks<float>(pass);
    case Type::kFloat16:
      write_cache<Half>(pass);
      return attend_blocks<Half>(pass);
    default:
      write_cache<int8_t>(pass);
      return attend_blocks<int8_t>(pass);
  }
}

// Divides rows into blocks: neighbouring rows of one sequence, at most kBlockRows. Returns the number of blocks;
// `blocks` has room for `count`.
inline int64_t make_blocks(const Row* rows, int64_t count, RowBlock* blocks) {
  int64_t made = 0;
  for (int64_t r = 0; r < count; r++) {
    const bool joins = made && rows[r].sequence == rows[r - 1].sequence && blocks[made - 1].count < kBlockRows;
    if (joins) {
      blocks[made - 1].count++;
    } else {
      blocks[made++] = {r, 1};
    }
  }
  return made;
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
