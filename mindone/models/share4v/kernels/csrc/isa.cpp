// Compiled once for each kind of CPU, with its flags and SHARE4V_ISA as its name.
#include "kernels.h"
#include "layer.h"
#include "limits.h"
#include "pack.h"

#define SHARE4V_TEXT(name) #name
#define SHARE4V_NAME(name) SHARE4V_TEXT(name)
#define SHARE4V_JOIN(name, rest) name##rest
#define SHARE4V_TABLE(name) SHARE4V_JOIN(name, _kernels)

namespace share4v {
namespace SHARE4V_ISA {
namespace {

template <class T>
void attention_as(uint8_t* base, int64_t layer, const Row* rows, int64_t count, int64_t heads, const float* queries,
                  const float* keys, const float* values, float* out) {
  const Cache& cache = *reinterpret_cast<const Cache*>(base);
  const int64_t size = cache.head_dim, stride = cache.kv_heads * size;
  Arena arena;
  RowBlock* blocks = arena.take<RowBlock>(count);
  const int64_t made = make_blocks(rows, count, blocks);
#pragma omp parallel num_threads(thread_count())
  {
    const TinyIsZero flush;
    write_all<T>(cache, base, layer, rows, count, keys, values, stride);
    attend_all<T>(cache, base, layer, rows, blocks, made, heads / cache.kv_heads, queries, heads * size, out,
                  heads * size);
  }
}

void run_attention(uint8_t* base, int64_t layer, const Row* rows, int64_t count, int64_t heads, const float* queries,
                   const float* keys, const float* values, float* out) {
  const int32_t type = reinterpret_cast<const Cache*>(base)->type;
  const auto run = type == static_cast<int32_t>(Type::kFloat32)   ? attention_as<float>
                   : type == static_cast<int32_t>(Type::kFloat16) ? attention_as<Half>
                                                                  : attention_as<int8_t>;
  run(base, layer, rows, count, heads, queries, keys, values, out);
}

void run_norm(const Norm& norm, const uint8_t* base, int64_t count, const float* x, float* y) {
#pragma omp parallel for num_threads(thread_count()) schedule(static)
  for (int64_t i = 0; i < count; i++) norm_row(base, norm, x + i * norm.size, y + i * norm.size);
}

void run_rotary(int64_t count, int64_t size, const float* cos, const float* sin, float* x) {
  for (int64_t i = 0; i < count; i++) rotate(x + i * size, cos + i * size, sin + i * size, size);
}

void run_activation(Activation activation, int64_t count, float* x, const float* up) {
  if (activation == Activation::kGatedSilu) return gated_silu(x, up, count);
  activate(activation, x, count);
}

}  // namespace
}  // namespace SHARE4V_ISA

const Kernels& SHARE4V_TABLE(SHARE4V_ISA)() {
  using namespace SHARE4V_ISA;
  static const Kernels table = {SHARE4V_NAME(SHARE4V_ISA), run_layer, run_linear, run_embedding, run_pack, run_unpack,
                                run_attention, run_norm, run_rotary, run_activation, run_peak, run_bandwidth};
  return table;
}

}  // namespace share4v
