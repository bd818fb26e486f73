// The library's C interface: MindSpore's custom operators, and functions for packing, benchmarks and tests.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "kernels.h"
#include "threads.h"

#if defined(SHARE4V_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace share4v {
namespace {

#if defined(SHARE4V_X86)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
// A Linux process must request permission before it uses AMX tiles.
bool has_amx() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool amx_tile = d >> 24 & 1, amx_int8 = d >> 25 & 1;
  if (!amx_tile || !amx_int8) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

struct InstructionSet {
  const char* name;
  bool (*is_supported)();
  const Kernels& (*kernels)();
};

bool always() { return true; }

// Fastest first.
const InstructionSet instruction_sets[] = {
#if defined(SHARE4V_X86)
    {"amx", has_amx, amx_kernels},
    {"avx512", has_avx512, avx512_kernels},
    {"avx2", has_avx2, avx2_kernels},
#endif
    {"portable", always, portable_kernels},
};

const Kernels* fastest() {
  for (const InstructionSet& set : instruction_sets)
    if (set.is_supported()) return &set.kernels();
  return nullptr;
}

const Kernels*& selected() {
  static const Kernels* kernels = fastest();
  return kernels;
}

bool is_block(const void* data, int64_t bytes) {
  const Block* block = static_cast<const Block*>(data);
  return bytes >= kHeaderBytes && !std::memcmp(block->magic, kBlockMagic, sizeof kBlockMagic) && block->bytes <= bytes;
}

bool is_cache(const void* data, int64_t bytes) {
  const Cache* cache = static_cast<const Cache*>(data);
  return bytes >= kHeaderBytes && !std::memcmp(cache->magic, kCacheMagic, sizeof kCacheMagic) && cache->bytes <= bytes;
}

bool is_valid(const Row& row, const Cache& cache) {
  if (row.slot < 0) return true;  // inactive
  return row.sequence >= 0 && row.sequence < cache.sequences && row.slot < cache.slots &&
         row.begin >= 0 && row.begin < row.end && row.end <= cache.slots;
}

// The arguments of an operator as MindSpore passes them: the inputs, then the output.
struct Arguments {
  void** params;
  int* ndims;
  int64_t** shapes;
  const char** dtypes;

  bool have_dtype(const char* dtype, std::initializer_list<int> which) const {
    for (const int i : which)
      if (std::strcmp(dtypes[i], dtype)) return false;
    return true;
  }
  bool has_shape(int which, std::initializer_list<int64_t> sizes) const {
    if (ndims[which] != static_cast<int>(sizes.size())) return false;
    const int64_t* size = shapes[which];
    for (const int64_t expected : sizes)
      if (*size++ != expected) return false;
    return true;
  }
  template <class T>
  T* data(int which) const {
    return static_cast<T*>(params[which]);
  }
  bool has_rank(int which, int rank) const { return ndims[which] == rank; }
  bool is_block_at(int which) const { return ndims[which] == 1 && is_block(params[which], shapes[which][0]); }
  bool is_cache_at(int which) const { return ndims[which] == 1 && is_cache(params[which], shapes[which][0]); }
};

// Total time spent in operators, for the benchmarks.
std::atomic<int64_t> busy_nanoseconds{0};

class Timer {
 public:
  ~Timer() {
    const auto spent = std::chrono::steady_clock::now() - start_;
    busy_nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// What an operator returns. MindSpore raises an error if it is not 0.
enum Status { kOk = 0, kWrongCount = 1, kWrongType = 2, kWrongBlock = 3, kWrongShape = 4, kWrongRow = 5 };

}  // namespace
}  // namespace share4v

using namespace share4v;

extern "C" {

// x [R, H], block, cache, rows int32 [R, 4], cos and sin [R, D] -> y [R, H]. Inactive rows of y are not written. cos
// and sin are ignored if the block has no rotary embedding.
int share4v_layer(int count, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, void*) {
  if (count != 7) return kWrongCount;
  const Arguments given = {params, ndims, shapes, dtypes};
  if (!given.have_dtype("float32", {0, 4, 5, 6}) || !given.have_dtype("uint8", {1, 2}) ||
      !given.have_dtype("int32", {3}))
    return kWrongType;
  if (!given.is_block_at(1) || !given.is_cache_at(2)) return kWrongBlock;
  const Block& block = *given.data<Block>(1);
  const Cache& cache = *given.data<Cache>(2);
  if (!given.has_rank(0, 2)) return kWrongShape;
  const int64_t rows = shapes[0][0], hidden = block.norms[0].size;
  if (!given.has_shape(0, {rows, hidden}) || !given.has_shape(3, {rows, 4}) || !given.has_shape(6, {rows, hidden}) ||
      cache.head_dim != block.head_dim || cache.kv_heads != block.kv_heads || block.cache_layer >= cache.layers)
    return kWrongShape;
  if (block.rotary && (!given.has_shape(4, {rows, block.head_dim}) || !given.has_shape(5, {rows, block.head_dim})))
    return kWrongShape;
  LayerCall call;
  call.weights = given.data<uint8_t>(1);
  call.cache = given.data<uint8_t>(2);
  call.rows = given.data<Row>(3);
  call.count = rows;
  call.x = given.data<float>(0);
  call.cos = given.data<float>(4);
  call.sin = given.data<float>(5);
  call.y = given.data<float>(6);
  for (int64_t i = 0; i < rows; i++)
    if (!is_valid(call.rows[i], cache)) return kWrongRow;
  const Timer timer;
  selected()->layer(call);
  return kOk;
}

// x [R, K], index int32 [M], block -> y [M, N]. y[i] is computed from x[index[i]]; it is 0 if index[i] is negative.
int share4v_linear(int count, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, void*) {
  if (count != 4) return kWrongCount;
  const Arguments given = {params, ndims, shapes, dtypes};
  if (!given.have_dtype("float32", {0, 3}) || !given.have_dtype("int32", {1}) || !given.have_dtype("uint8", {2}))
    return kWrongType;
  if (!given.is_block_at(2)) return kWrongBlock;
  const Matrix& matrix = given.data<Block>(2)->matrices[0];
  if (!given.has_rank(0, 2) || !given.has_rank(1, 1)) return kWrongShape;
  const int64_t rows = shapes[0][0], outputs = shapes[1][0];
  if (!given.has_shape(0, {rows, matrix.columns}) || !given.has_shape(3, {outputs, matrix.rows})) return kWrongShape;
  const int32_t* index = given.data<int32_t>(1);
  for (int64_t i = 0; i < outputs; i++)
    if (index[i] >= rows) return kWrongRow;
  const Timer timer;
  selected()->linear(given.data<uint8_t>(2), index, outputs, given.data<float>(0), given.data<float>(3));
  return kOk;
}

// ids int32 [R], block of an embedding table -> y [R, H]
int share4v_embedding(int count, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, void*) {
  if (count != 3) return kWrongCount;
  const Arguments given = {params, ndims, shapes, dtypes};
  if (!given.have_dtype("int32", {0}) || !given.have_dtype("uint8", {1}) || !given.have_dtype("float32", {2}))
    return kWrongType;
  if (!given.is_block_at(1)) return kWrongBlock;
  const Matrix& matrix = given.data<Block>(1)->matrices[0];
  if (matrix.type > static_cast<int32_t>(Type::kFloat16)) return kWrongBlock;
  if (!given.has_rank(0, 1) || !given.has_shape(2, {shapes[0][0], matrix.columns})) return kWrongShape;
  const int32_t* index = given.data<int32_t>(0);
  for (int64_t i = 0; i < shapes[0][0]; i++)
    if (index[i] < 0 || index[i] >= matrix.rows) return kWrongRow;
  const Timer timer;
  selected()->embedding(given.data<uint8_t>(1), index, shapes[0][0], given.data<float>(2));
  return kOk;
}

// Returns the name of the number-th instruction set that the library was built for and this CPU supports, fastest
// first; nullptr beyond the last.
const char* share4v_kernels_at(int number) {
  for (const InstructionSet& set : instruction_sets)
    if (set.is_supported() && number-- == 0) return set.name;
  return nullptr;
}
const char* share4v_selected() { return selected()->name; }
int share4v_select(const char* name) {
  for (const InstructionSet& set : instruction_sets) {
    if (std::strcmp(set.name, name) || !set.is_supported()) continue;
    selected() = &set.kernels();
    return kOk;
  }
  return kWrongType;
}
void share4v_set_threads(int count) { set_thread_count(count); }
int share4v_threads() { return thread_count(); }

// For the benchmarks: seconds spent in operators so far, and the machine's peak arithmetic and bandwidth.
double share4v_busy_seconds() { return static_cast<double>(busy_nanoseconds.load()) * 1e-9; }
double share4v_peak() {
  double sink = 0.0;
  return selected()->peak_flops(&sink);
}
double share4v_bandwidth(const uint8_t* data, int64_t bytes) {
  double sink = 0.0;
  return selected()->bandwidth(data, bytes, &sink);
}

// Packs source [rows, columns] of `type` into the rows first .. first + rows - 1 of matrix `number` of a block, whose
// header must have been written. Returns 1 if a weight is not finite or too large for the matrix's type, else 0.
int share4v_pack(uint8_t* block, int number, int64_t first, int64_t rows, const void* source, int type) {
  const Matrix& matrix = reinterpret_cast<const Block*>(block)->matrices[number];
  return selected()->pack(block, matrix, first, rows, source, static_cast<Type>(type));
}
void share4v_unpack(const uint8_t* block, int number, float* out) {
  selected()->unpack(block, reinterpret_cast<const Block*>(block)->matrices[number], out);
}

// The parts of a layer, for the tests.
int share4v_attention(uint8_t* cache, int64_t layer, const Row* rows, int64_t count, int64_t heads,
                      const float* queries, const float* keys, const float* values, float* out) {
  for (int64_t i = 0; i < count; i++)
    if (rows[i].slot < 0 || !is_valid(rows[i], *reinterpret_cast<const Cache*>(cache))) return kWrongRow;
  AttentionCall call;
  call.cache = cache;
  call.layer = layer;
  call.rows = rows;
  call.count = count;
  call.heads = heads;
  call.queries = queries;
  call.keys = keys;
  call.values = values;
  call.out = out;
  selected()->attention(call);
  return kOk;
}
void share4v_norm(int kind, float eps, int64_t size, const float* weight_and_bias, int has_bias, int64_t count,
                  const float* x, float* y) {
  Norm norm = {};
  norm.kind = kind;
  norm.eps = eps;
  norm.size = size;
  norm.bias = has_bias ? size * static_cast<int64_t>(sizeof(float)) : 0;
  selected()->norm(norm, reinterpret_cast<const uint8_t*>(weight_and_bias), count, x, y);
}
void share4v_rotary(int64_t count, int64_t size, const float* cos, const float* sin, float* x) {
  selected()->rotary(count, size, cos, sin, x);
}
void share4v_activation(int activation, int64_t count, float* x, const float* up) {
  selected()->activation(static_cast<Activation>(activation), count, x, up);
}

}  // extern "C"
