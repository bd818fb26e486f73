// A whole transformer layer as one operator: LLaMA's (RMSNorm, rotary embedding, gated SiLU) or CLIP's (LayerNorm, GELU).
#pragma once

#include "attention.h"
#include "product.h"
#include "rows.h"

namespace share4v {
namespace SHARE4V_ISA {

constexpr int64_t kMostRows = 256;  // of one pass, where rows do not need each other: enough to be bound by arithmetic
constexpr int64_t kChunk = 1024;    // columns that a thread makes ready at a time; a multiple of 32

// What one pass over up to kMostRows busy rows works with. Every method is called by all threads together.
struct Pass {
  const uint8_t* base;
  const Block& block;
  const Cache& cache;
  uint8_t* cache_base;
  const float* x;    // [all rows, H]
  const float* cos;  // [all rows, D]
  const float* sin;
  float* y;              // [all rows, H]
  const int64_t* index;  // [count] rows of x that are busy
  const Row* rows;       // [count]
  int64_t count;
  const RowBlock* blocks;
  int64_t block_count;
  Inputs inputs[4];  // of each matrix
  float* wide;       // [count, wide_stride]: query+key+value, then (gate+)up
  int64_t wide_stride;
  float* narrow;  // [count, narrow_stride]: attention's output, then each residual's addend
  int64_t narrow_stride;

  int64_t hidden() const { return block.norms[0].size; }

  void normalise(const Norm& norm, const Matrix& matrix, const Inputs& into, const float* from) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) {
      float* room = reinterpret_cast<float*>(thread_room((hidden() + kLanes) * 4));
      norm_row(base, norm, from + index[i] * hidden(), room);
      put(into, matrix, i, 0, hidden(), room);
    }
  }

  void rotate_all() {
    const int64_t size = block.head_dim, heads = block.heads + (block.rotary ? block.kv_heads : 0);
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count * heads; i++) {
      const int64_t r = i / heads, h = i % heads;
      float* head = wide + r * wide_stride + h * size;
      if (block.rotary) rotate(head, cos + index[r] * size, sin + index[r] * size, size);
      if (h < block.heads) scale_row(head, scale, size);
    }
  }

  template <class T>
  void attend_as() {
    const int64_t size = block.head_dim, group = block.heads / block.kv_heads;
    const float* keys = wide + block.heads * size;
    write_all<T>(cache, cache_base, block.cache_layer, rows, count, keys, keys + block.kv_heads * size, wide_stride);
    attend_all<T>(cache, cache_base, block.cache_layer, rows, blocks, block_count, group, wide, wide_stride, narrow,
                  narrow_stride);
  }

  void attend() {
    switch (static_cast<Type>(cache.type)) {
      case Type::kFloat32: return attend_as<float>();
      case Type::kFloat16: return attend_as<Half>();
      default: return attend_as<int8_t>();
    }
  }

  void ready(const float* from, int64_t stride, int64_t columns, const Matrix& matrix, const Inputs& into) {
    const int64_t chunks = ceil_div(columns, kChunk);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count * chunks; i++) {
      const int64_t r = i / chunks, begin = i % chunks * kChunk, end = std::min(columns, begin + kChunk);
      put(into, matrix, r, begin, end, from + r * stride + begin);
    }
  }

  void gate(const Matrix& matrix, const Inputs& into) {
    const int64_t columns = matrix.columns, chunks = ceil_div(columns, kChunk);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count * chunks; i++) {
      const int64_t r = i / chunks, begin = i % chunks * kChunk, end = std::min(columns, begin + kChunk);
      float* row = wide + r * wide_stride;
      gated_silu(row + begin, row + columns + begin, end - begin);
      put(into, matrix, r, begin, end, row + begin);
    }
  }

  void add_to(const float* residual, const Matrix& matrix, const Inputs& from) {
    product(base, matrix, from, count, narrow, narrow_stride, [&](int64_t r, int64_t first, int64_t end) {
      float* row = narrow + r * narrow_stride;
      const int64_t at = index[r] * hidden() + first;
      add_bias(base, matrix, row, first, end);
      add_row(residual + at, row + first, y + at, end - first);
    });
  }

  void run() {
    const Matrix* m = block.matrices;
    const Activation activation = static_cast<Activation>(block.activation);
    normalise(block.norms[0], m[0], inputs[0], x);
    product(base, m[0], inputs[0], count, wide, wide_stride, [&](int64_t r, int64_t first, int64_t end) {
      add_bias(base, m[0], wide + r * wide_stride, first, end);
    });
    rotate_all();
    attend();
    ready(narrow, narrow_stride, m[1].columns, m[1], inputs[1]);
    add_to(x, m[1], inputs[1]);
    normalise(block.norms[1], m[2], inputs[2], y);
    product(base, m[2], inputs[2], count, wide, wide_stride, [&](int64_t r, int64_t first, int64_t end) {
      float* row = wide + r * wide_stride;
      add_bias(base, m[2], row, first, end);
      activate(activation, row + first, end - first);
    });
    if (activation == Activation::kGatedSilu) {
      gate(m[3], inputs[3]);
    } else {
      ready(wide, wide_stride, m[3].columns, m[3], inputs[3]);
    }
    add_to(y, m[3], inputs[3]);
  }
};

inline int64_t padded(int64_t columns) { return ceil_div(columns, kLanes) * kLanes + kLanes; }

// Neighbouring rows of one text share what is read of its cache.
inline int64_t make_blocks(const Row* rows, int64_t count, RowBlock* blocks) {
  int64_t made = 0;
  for (int64_t r = 0; r < count; r++) {
    const bool joins = made && rows[r].text == rows[r - 1].text && blocks[made - 1].count < kBlockRows;
    if (joins) {
      blocks[made - 1].count++;
    } else {
      blocks[made++] = {r, 1};
    }
  }
  return made;
}

// Where the pass that begins at `first` ends: after kMostRows rows, and later where rows beyond write keys that it sees.
// `seen` is room for a number a text.
inline int64_t pass_end(const Row* rows, int64_t first, int64_t count, int32_t* seen, int64_t texts) {
  std::memset(seen, 0, static_cast<size_t>(texts) * sizeof(int32_t));
  int64_t end = std::min(count, first + kMostRows);
  for (int64_t r = first, held = first; r < count; r++) {
    if (r >= end && rows[r].slot < seen[rows[r].text]) end = r + 1;
    for (; held < end && held <= r; held++) seen[rows[held].text] = std::max(seen[rows[held].text], rows[held].end);
  }
  return end;
}

void run_layer(const uint8_t* base, uint8_t* cache_base, const Row* rows, int64_t count, const float* x,
               const float* cos, const float* sin, float* y) {
  const Block& block = *reinterpret_cast<const Block*>(base);
  const Cache& cache = *reinterpret_cast<const Cache*>(cache_base);
  Arena arena;
  int64_t* index = arena.take<int64_t>(count);
  Row* busy = arena.take<Row>(count);
  int32_t* seen = arena.take<int32_t>(cache.texts);
  int64_t all = 0;
  for (int64_t r = 0; r < count; r++) {
    if (rows[r].slot < 0) continue;
    index[all] = r;
    busy[all++] = rows[r];
  }
  RowBlock* blocks = arena.take<RowBlock>(all);
  const int64_t wide_stride = padded(std::max(block.matrices[0].rows, block.matrices[2].rows));
  const int64_t narrow_stride = padded(std::max(block.norms[0].size, block.matrices[1].columns));
  for (int64_t first = 0, end; first < all; first = end) {
    end = pass_end(busy, first, all, seen, cache.texts);
    const int64_t taken = end - first;
    Arena pieces;
    Pass pass = {base, block, cache, cache_base, x, cos, sin, y, index + first, busy + first, taken, blocks,
                 make_blocks(busy + first, taken, blocks), {}, pieces.take<float>(taken * wide_stride), wide_stride,
                 pieces.take<float>(taken * narrow_stride), narrow_stride};
    for (int i = 0; i < 4; i++) pass.inputs[i] = make_inputs(pieces, block.matrices[i], taken);
#pragma omp parallel num_threads(thread_count())
    {
      const TinyIsZero flush;
      pass.run();
    }
  }
}

// y[i] = activation(norm(x[index[i]]) W^T + b); zeros where the index is negative.
void run_linear(const uint8_t* base, const int32_t* index, int64_t count, const float* x, float* y) {
  const Block& block = *reinterpret_cast<const Block*>(base);
  const Matrix& matrix = block.matrices[0];
  const int64_t columns = matrix.columns, stride = padded(matrix.rows);
  Arena arena;
  int64_t* busy = arena.take<int64_t>(std::min(count, kMostRows));
  for (int64_t next = 0; next < count;) {
    int64_t taken = 0;
    for (; next < count && taken < kMostRows; next++) {
      if (index[next] >= 0) {
        busy[taken++] = next;
      } else {
        std::memset(y + next * matrix.rows, 0, static_cast<size_t>(matrix.rows) * sizeof(float));
      }
    }
    if (!taken) break;
    Arena pieces;
    float* c = pieces.take<float>(taken * stride);
    const Inputs inputs = make_inputs(pieces, matrix, taken);
#pragma omp parallel num_threads(thread_count())
    {
      const TinyIsZero flush;
#pragma omp for schedule(static)
      for (int64_t i = 0; i < taken; i++) {
        const float* row = x + index[busy[i]] * columns;
        if (block.norms[0].kind) {
          float* room = reinterpret_cast<float*>(thread_room((columns + kLanes) * 4));
          norm_row(base, block.norms[0], row, room);
          row = room;
        }
        put(inputs, matrix, i, 0, columns, row);
      }
      product(base, matrix, inputs, taken, c, stride, [&](int64_t i, int64_t first, int64_t end) {
        add_bias(base, matrix, c + i * stride, first, end);
        activate(static_cast<Activation>(block.activation), c + i * stride + first, end - first);
        std::memcpy(y + busy[i] * matrix.rows + first, c + i * stride + first,
                    static_cast<size_t>(end - first) * sizeof(float));
      });
    }
  }
}

// y[i] = row index[i] of an embedding table.
void run_embedding(const uint8_t* base, const int32_t* index, int64_t count, float* y) {
  const Matrix& matrix = reinterpret_cast<const Block*>(base)->matrices[0];
  const int64_t size = matrix.columns;
  for (int64_t i = 0; i < count; i++) {
    const int64_t at = index[i] * size;
    float* to = y + i * size;
    if (matrix.type == static_cast<int32_t>(Type::kFloat32)) {
      std::memcpy(to, reinterpret_cast<const float*>(base + matrix.data) + at, static_cast<size_t>(size) * 4);
      continue;
    }
    const Half* row = reinterpret_cast<const Half*>(base + matrix.data) + at;
    for (int64_t k = 0; k < size; k += kLanes) {
      Half part[kLanes] = {};
      std::memcpy(part, row + k, static_cast<size_t>(std::min(kLanes, size - k)) * sizeof(Half));
      store_part(to + k, load(part), size - k);
    }
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
