// The operators: a whole transformer layer, of LLaMA (RMSNorm, rotary embedding, gated SiLU) or CLIP (LayerNorm, GELU);
// a linear layer; an embedding table.
#pragma once

#include "attention.h"
#include "kernels.h"
#include "product.h"
#include "row_operations.h"

namespace share4v {
namespace SHARE4V_ISA {

constexpr int64_t kPassRows = 256;  // rows of one pass: enough for arithmetic, not memory bandwidth, to be the limit
constexpr int64_t kChunk = 1024;    // columns that a thread prepares at a time; a multiple of 256

// Row stride of an intermediate result: the tail of a row can be stored as a full vector, and strides are no multiples
// of 4096 bytes (see allocate_inputs).
inline int64_t padded_stride(int64_t columns) { return ceil_div(columns, kLanes) * kLanes + kLanes; }

// One pass of the layer over at most kPassRows active rows, and the intermediate results. All threads of a parallel
// region call each method together. H = hidden size.
struct Pass {
  const LayerCall& call;
  const Block& block;
  const int64_t* index;  // [count] the active rows' numbers in the call
  const Row* rows;       // [count]
  int64_t count;
  const RowBlock* blocks;
  int64_t block_count;
  Inputs inputs[4];  // of each matrix
  FloatRows wide;    // [count, *] query+key+value, then (gate+)up
  FloatRows narrow;  // [count, *] the output of attention, then what is added to each residual

  // Divides the rows into blocks (row_blocks has room for row_count) and allocates the intermediate results.
  Pass(const LayerCall& layer_call, const int64_t* row_index, const Row* active_rows, int64_t row_count,
       RowBlock* row_blocks, Arena& arena)
      : call(layer_call),
        block(*layer_call.block),
        index(row_index),
        rows(active_rows),
        count(row_count),
        blocks(row_blocks),
        block_count(make_blocks(active_rows, row_count, row_blocks)) {
    const Matrix* m = block.matrices;
    wide.stride = padded_stride(std::max(m[0].rows, m[2].rows));
    wide.data = arena.allocate<float>(count * wide.stride);
    narrow.stride = padded_stride(std::max(hidden(), m[1].columns));
    narrow.data = arena.allocate<float>(count * narrow.stride);
    for (int i = 0; i < 4; i++) inputs[i] = allocate_inputs(arena, m[i], count);
  }

  int64_t hidden() const { return block.norms[0].size; }

  // y = x times the block's rotation.
  void rotate_rows() {
    const float* rotation = reinterpret_cast<const float*>(call.weights + block.rotation);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++)
      rotate_row(rotation, hidden(), call.x + index[i] * hidden(), call.y + index[i] * hidden());
  }

  // Stores norm(x) as the inputs of a matrix; x has all rows of the call, [R, H].
  void normalize(const Norm& norm, const Matrix& matrix, const Inputs& into, const float* x) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) {
      float* normal = reinterpret_cast<float*>(thread_scratch((hidden() + kLanes) * 4));
      if (!normal) continue;
      normalize_row(call.weights, norm, x + index[i] * hidden(), normal);
      store_inputs(into, matrix, i, 0, hidden(), normal);
    }
  }

  // Rotates queries and keys in `wide`, and scales the queries by 1 / sqrt(D).
  void rotate_and_scale() {
    const int64_t size = block.head_dim, heads = block.heads + (block.rotary ? block.kv_heads : 0);
    const float scale = 1.0f / std::sqrt(static_cast<float>(size));
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count * heads; i++) {
      const int64_t r = i / heads, h = i % heads;
      float* head = wide.row(r) + h * size;
      if (block.rotary) rotate(head, call.cos + index[r] * size, call.sin + index[r] * size, size);
      if (h < block.heads) scale_row(head, scale, size);
    }
  }

  // Writes keys and values into the cache, then attention from `wide` to `narrow`.
  void attend() {
    const int64_t key_column = block.heads * block.head_dim;
    AttentionPass attention;
    attention.header = call.cache_header;
    attention.cache = call.cache;
    attention.layer = block.cache_layer;
    attention.rows = rows;
    attention.count = count;
    attention.blocks = blocks;
    attention.block_count = block_count;
    attention.group = block.heads / block.kv_heads;
    attention.queries = wide;
    attention.keys = wide.from(0, key_column);
    attention.values = wide.from(0, key_column + block.kv_heads * block.head_dim);
    attention.out = narrow;
    run_attention_pass(attention);
  }

  // Stores columns begin .. end - 1 of a row as inputs of a matrix; x points to column `begin` and may be transformed.
  void store_chunk(const Matrix& matrix, const Inputs& into, int64_t row, int64_t begin, int64_t end, float* x) {
    if (matrix.hadamard) hadamard(x, end - begin, matrix.hadamard);
    store_inputs(into, matrix, row, begin, end, x);
  }

  // Stores the first columns of x [count, *] as the inputs of a matrix.
  void prepare_inputs(FloatRows x, const Matrix& matrix, const Inputs& into) {
    const int64_t columns = matrix.columns, chunks = ceil_div(columns, kChunk);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count * chunks; i++) {
      const int64_t r = i / chunks, begin = i % chunks * kChunk, end = std::min(columns, begin + kChunk);
      store_chunk(matrix, into, r, begin, end, x.row(r) + begin);
    }
  }

  // Stores gated_silu(gate, up) as the inputs of a matrix; `wide` holds gate and up side by side.
  void prepare_gated_inputs(const Matrix& matrix, const Inputs& into) {
    const int64_t columns = matrix.columns, chunks = ceil_div(columns, kChunk);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count * chunks; i++) {
      const int64_t r = i / chunks, begin = i % chunks * kChunk, end = std::min(columns, begin + kChunk);
      float* row = wide.row(r);
      gated_silu(row + begin, row + columns + begin, end - begin);
      store_chunk(matrix, into, r, begin, end, row + begin);
    }
  }

  // y = residual + inputs times the matrix + bias, where residual and y have all rows of the call, [R, H].
  void project_and_add(const float* residual, const Matrix& matrix, const Inputs& from) {
    product(call.weights, matrix, from, count, narrow, [&](int64_t r, int64_t first, int64_t end) {
      float* row = narrow.row(r);
      const int64_t at = index[r] * hidden() + first;
      add_bias(call.weights, matrix, row, first, end);
      add_row(residual + at, row + first, call.y + at, end - first);
    });
  }

  void run() {
    const Matrix* m = block.matrices;
    const Activation activation = static_cast<Activation>(block.activation);
    const float* x = block.rotation ? call.y : call.x;
    if (block.rotation) rotate_rows();
    normalize(block.norms[0], m[0], inputs[0], x);
    product(call.weights, m[0], inputs[0], count, wide, [&](int64_t r, int64_t first, int64_t end) {
      add_bias(call.weights, m[0], wide.row(r), first, end);
    });
    rotate_and_scale();
    attend();
    prepare_inputs(narrow, m[1], inputs[1]);
    project_and_add(x, m[1], inputs[1]);
    normalize(block.norms[1], m[2], inputs[2], call.y);
    product(call.weights, m[2], inputs[2], count, wide, [&](int64_t r, int64_t first, int64_t end) {
      float* row = wide.row(r);
      add_bias(call.weights, m[2], row, first, end);
      activate(activation, row + first, end - first);
    });
    if (activation == Activation::kGatedSilu) {
      prepare_gated_inputs(m[3], inputs[3]);
    } else {
      prepare_inputs(wide, m[3], inputs[3]);
    }
    project_and_add(call.y, m[3], inputs[3]);
  }
};

// Returns the end of the pass that begins at row `first`. It has kPassRows rows, or more if a row of the pass attends
// to the slot of a later row, whose key must then be written in the same pass (all rows of an image, for example).
// `seen` has room for one number per sequence.
inline int64_t pass_end(const Row* rows, int64_t first, int64_t count, int32_t* seen, int64_t sequences) {
  std::memset(seen, 0, static_cast<size_t>(sequences) * sizeof(int32_t));
  int64_t end = std::min(count, first + kPassRows);
  for (int64_t r = first, counted = first; r < count; r++) {
    if (r >= end && rows[r].slot < seen[rows[r].sequence]) end = r + 1;
    for (; counted < end && counted <= r; counted++) {
      int32_t& last = seen[rows[counted].sequence];
      last = std::max(last, rows[counted].end);
    }
  }
  return end;
}

void run_layer(const LayerCall& call) {
  const int64_t sequences = call.cache_header->sequences;
  Arena arena;
  int64_t* index = arena.allocate<int64_t>(call.count);
  Row* active = arena.allocate<Row>(call.count);
  int32_t* seen = arena.allocate<int32_t>(sequences);
  int64_t count = 0;
  for (int64_t r = 0; r < call.count; r++) {
    if (call.rows[r].slot < 0) continue;
    index[count] = r;
    active[count++] = call.rows[r];
  }
  RowBlock* blocks = arena.allocate<RowBlock>(count);
  for (int64_t first = 0, end; first < count; first = end) {
    end = pass_end(active, first, count, seen, sequences);
    Arena pass_arena;
    Pass pass(call, index + first, active + first, end - first, blocks, pass_arena);
#pragma omp parallel num_threads(thread_count())
    {
      const FlushDenormals flush;
      pass.run();
    }
  }
}

// y[i] = activation(norm(x[index[i]]) W^T + b); zeros where the index is negative.
void run_linear(const Block& block, const uint8_t* weights, const int32_t* index, int64_t count, const float* x,
                float* y) {
  const Matrix& matrix = block.matrices[0];
  const int64_t columns = matrix.columns;
  Arena arena;
  int64_t* active = arena.allocate<int64_t>(std::min(count, kPassRows));  // rows of y that are computed
  for (int64_t next = 0; next < count;) {
    int64_t rows = 0;
    for (; next < count && rows < kPassRows; next++) {
      if (index[next] >= 0) {
        active[rows++] = next;
      } else {
        std::memset(y + next * matrix.rows, 0, static_cast<size_t>(matrix.rows) * sizeof(float));
      }
    }
    if (!rows) break;
    Arena pass_arena;
    FloatRows c;  // [rows, matrix.rows]
    c.stride = padded_stride(matrix.rows);
    c.data = pass_arena.allocate<float>(rows * c.stride);
    const Inputs inputs = allocate_inputs(pass_arena, matrix, rows);
#pragma omp parallel num_threads(thread_count())
    {
      const FlushDenormals flush;
#pragma omp for schedule(static)
      for (int64_t i = 0; i < rows; i++) {
        const float* row = x + index[active[i]] * columns;
        if (block.norms[0].kind) {
          float* normal = reinterpret_cast<float*>(thread_scratch((columns + kLanes) * 4));
          if (!normal) continue;
          normalize_row(weights, block.norms[0], row, normal);
          row = normal;
        }
        store_inputs(inputs, matrix, i, 0, columns, row);
      }
      product(weights, matrix, inputs, rows, c, [&](int64_t i, int64_t first, int64_t end) {
        float* row = c.row(i);
        add_bias(weights, matrix, row, first, end);
        activate(static_cast<Activation>(block.activation), row + first, end - first);
        std::memcpy(y + active[i] * matrix.rows + first, row + first, static_cast<size_t>(end - first) * sizeof(float));
      });
    }
  }
}

// y[i] = row index[i] of an embedding table.
void run_embedding(const Matrix& matrix, const uint8_t* weights, const int32_t* index, int64_t count, float* y) {
  const int64_t size = matrix.columns;
  for (int64_t i = 0; i < count; i++) {
    const int64_t at = index[i] * size;
    float* to = y + i * size;
    if (matrix.type == static_cast<int32_t>(Type::kFloat32)) {
      std::memcpy(to, reinterpret_cast<const float*>(weights + matrix.data) + at, static_cast<size_t>(size) * 4);
      continue;
    }
    if (is_bfloat16(matrix)) {
      const uint16_t* bits = reinterpret_cast<const uint16_t*>(weights + matrix.data) + at;
      for (int64_t k = 0; k < size; k++) to[k] = from_bfloat16(bits[k]);
      continue;
    }
    const Half* row = reinterpret_cast<const Half*>(weights + matrix.data) + at;
    for (int64_t k = 0; k < size; k += kLanes) {
      Half part[kLanes] = {};
      std::memcpy(part, row + k, static_cast<size_t>(std::min(kLanes, size - k)) * sizeof(Half));
      store_part(to + k, load(part), size - k);
    }
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
