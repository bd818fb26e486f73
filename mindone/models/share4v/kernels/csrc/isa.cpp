// Compiled once for each instruction set, with its compiler flags and with SHARE4V_ISA defined as its name. Everything
// is in a namespace of that name, so that the linker never merges functions of different instruction sets.
#include "error_feedback.h"
#include "kernels.h"
#include "layer.h"
#include "pack.h"
#include "peak.h"

#define SHARE4V_STRINGIFY_(name) #name
#define SHARE4V_STRINGIFY(name) SHARE4V_STRINGIFY_(name)
#define SHARE4V_CONCAT_(name, suffix) name##suffix
#define SHARE4V_CONCAT(name, suffix) SHARE4V_CONCAT_(name, suffix)

namespace share4v {
namespace SHARE4V_ISA {
namespace {

void run_attention(const AttentionCall& call) {
  const Cache& cache = *call.header;
  const int64_t size = cache.head_dim, query_stride = call.heads * size, key_stride = cache.kv_heads * size;
  Arena arena;
  RowBlock* blocks = arena.allocate<RowBlock>(call.count);
  AttentionPass pass;
  pass.header = call.header;
  pass.cache = call.cache;
  pass.layer = call.layer;
  pass.rows = call.rows;
  pass.count = call.count;
  pass.blocks = blocks;
  pass.block_count = make_blocks(call.rows, call.count, blocks);
  pass.group = call.heads / cache.kv_heads;
  pass.queries = {call.queries, query_stride};
  pass.keys = {call.keys, key_stride};
  pass.values = {call.values, key_stride};
  pass.out = {call.out, query_stride};
#pragma omp parallel num_threads(thread_count())
  {
    const FlushDenormals flush;
    run_attention_pass(pass);
  }
}

void run_norm(const Norm& norm, const uint8_t* base, int64_t count, const float* x, float* y) {
#pragma omp parallel for num_threads(thread_count()) schedule(static)
  for (int64_t i = 0; i < count; i++) normalize_row(base, norm, x + i * norm.size, y + i * norm.size);
}

void run_rotary(int64_t count, int64_t size, const float* cos, const float* sin, float* x) {
  for (int64_t i = 0; i < count; i++) rotate(x + i * size, cos + i * size, sin + i * size, size);
}

void run_rotate_rows(const float* rotation, int64_t size, int64_t count, const float* x, float* y) {
#pragma omp parallel for num_threads(thread_count()) schedule(static)
  for (int64_t i = 0; i < count; i++) rotate_row(rotation, size, x + i * size, y + i * size);
}

void run_activation(Activation activation, int64_t count, float* x, const float* up) {
  if (activation == Activation::kGatedSilu) return gated_silu(x, up, count);
  activate(activation, x, count);
}

Kernels make_table() {
  Kernels table;
  table.name = SHARE4V_STRINGIFY(SHARE4V_ISA);
  table.layer = run_layer;
  table.linear = run_linear;
  table.embedding = run_embedding;
  table.pack = run_pack;
  table.round = run_round;
  table.refine = run_refine;
  table.unpack = run_unpack;
  table.attention = run_attention;
  table.norm = run_norm;
  table.rotary = run_rotary;
  table.rotate_rows = run_rotate_rows;
  table.activation = run_activation;
  table.peak = run_peak;
  table.bandwidth = run_bandwidth;
  return table;
}

}  // namespace
}  // namespace SHARE4V_ISA

const Kernels& SHARE4V_CONCAT(SHARE4V_ISA, _kernels)() {
  static const Kernels table = SHARE4V_ISA::make_table();
  return table;
}

}  // namespace share4v
