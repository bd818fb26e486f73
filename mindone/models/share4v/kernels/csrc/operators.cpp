// The library's C interface: operators, with the arguments of MindSpore's custom operators; packing, benchmarks, tests.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <new>

#include "checks.h"
#include "kernels.h"
#include "memory.h"
#include "threads.h"

#if defined(SHARE4V_X86)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(SHARE4V_AARCH64) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace share4v {
namespace {

#if defined(SHARE4V_X86)
[[maybe_unused]] bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
[[maybe_unused]] bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}
[[maybe_unused]] bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
// A Linux process must request permission before it uses AMX tiles.
[[maybe_unused]] bool has_amx() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool amx_bf16 = d >> 22 & 1, amx_tile = d >> 24 & 1, amx_int8 = d >> 25 & 1;
  if (!amx_bf16 || !amx_tile || !amx_int8) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#elif defined(SHARE4V_AARCH64)
[[maybe_unused]] bool has_neon() { return true; }
// Linux tells programs what a CPU supports by bits of two numbers; the constants are those of its <asm/hwcap.h>, of which
// old systems lack some. Elsewhere only NEON, which every aarch64 CPU has, is used.
[[maybe_unused]] bool has_dotprod() {
#if defined(__linux__)
  constexpr unsigned long needed = 1ul << 20 | 1ul << 8;  // SDOT, and the atomics of ARMv8.1, which the compiler uses too
  return (getauxval(AT_HWCAP) & needed) == needed;
#else
  return false;
#endif
}
[[maybe_unused]] bool has_i8mm() {
#if defined(__linux__)
  constexpr unsigned long int8_matrices = 1ul << 13;
  return has_dotprod() && getauxval(AT_HWCAP2) & int8_matrices;
#else
  return false;
#endif
}
#endif
[[maybe_unused]] bool has_portable() { return true; }

struct InstructionSet {
  const char* name;
  bool (*is_supported)();
  const Kernels& (*kernels)();
};

// Fastest first.
const InstructionSet instruction_sets[] = {
#define SET(name) {#name, has_##name, name##_kernels},
    SHARE4V_INSTRUCTION_SETS
#undef SET
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
  bool read_block_at(int which, Block* block) const {
    return ndims[which] == 1 && read_block(params[which], shapes[which][0], block);
  }
  bool read_cache_at(int which, Cache* cache) const {
    return ndims[which] == 1 && read_cache(params[which], shapes[which][0], cache);
  }
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
enum Status {
  kOk = 0,
  kWrongCount = 1,
  kWrongType = 2,
  kWrongBlock = 3,
  kWrongShape = 4,
  kWrongRow = 5,
  kNotFinite = 6,
  kNoMemory = 7,
  kException = 8,
  kNoThreads = 9
};

// Runs `compute`, which returns a status; an exception, which must not reach the caller in another language, or a
// thread without memory becomes one. If another call runs out of memory at the same time, this one may fail too.
template <class Compute>
int guarded(Compute compute) noexcept {
  if (!can_start_threads()) return kNoThreads;
  const int64_t failures = memory_failures();
  try {
    const int status = compute();
    return memory_failures() == failures ? status : kNoMemory;
  } catch (const std::bad_alloc&) {
    return kNoMemory;
  } catch (...) {
    return kException;
  }
}

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
  Block block;
  Cache cache;
  if (!given.read_block_at(1, &block) || !is_layer(block) || !given.read_cache_at(2, &cache)) return kWrongBlock;
  if (!given.has_rank(0, 2)) return kWrongShape;
  const int64_t rows = shapes[0][0], hidden = block.norms[0].size;
  if (!given.has_shape(0, {rows, hidden}) || !given.has_shape(3, {rows, 4}) || !given.has_shape(6, {rows, hidden}) ||
      cache.head_dim != block.head_dim || cache.kv_heads != block.kv_heads || block.cache_layer >= cache.layers)
    return kWrongShape;
  if (block.rotary && (!given.has_shape(4, {rows, block.head_dim}) || !given.has_shape(5, {rows, block.head_dim})))
    return kWrongShape;
  LayerCall call;
  call.block = &block;
  call.cache_header = &cache;
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
  return guarded([&] {
    selected()->layer(call);
    return kOk;
  });
}

// x [R, K], index int32 [M], block -> y [M, N]. y[i] is computed from x[index[i]]; it is 0 if index[i] is negative.
int share4v_linear(int count, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, void*) {
  if (count != 4) return kWrongCount;
  const Arguments given = {params, ndims, shapes, dtypes};
  if (!given.have_dtype("float32", {0, 3}) || !given.have_dtype("int32", {1}) || !given.have_dtype("uint8", {2}))
    return kWrongType;
  Block block;
  if (!given.read_block_at(2, &block) || !is_linear(block)) return kWrongBlock;
  const Matrix& matrix = block.matrices[0];
  if (!given.has_rank(0, 2) || !given.has_rank(1, 1)) return kWrongShape;
  const int64_t rows = shapes[0][0], outputs = shapes[1][0];
  if (!given.has_shape(0, {rows, matrix.columns}) || !given.has_shape(3, {outputs, matrix.rows})) return kWrongShape;
  const int32_t* index = given.data<int32_t>(1);
  for (int64_t i = 0; i < outputs; i++)
    if (index[i] >= rows) return kWrongRow;
  const Timer timer;
  return guarded([&] {
    selected()->linear(block, given.data<uint8_t>(2), index, outputs, given.data<float>(0), given.data<float>(3));
    return kOk;
  });
}

// ids int32 [R], block of an embedding table -> y [R, H]
int share4v_embedding(int count, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, void*) {
  if (count != 3) return kWrongCount;
  const Arguments given = {params, ndims, shapes, dtypes};
  if (!given.have_dtype("int32", {0}) || !given.have_dtype("uint8", {1}) || !given.have_dtype("float32", {2}))
    return kWrongType;
  Block block;
  if (!given.read_block_at(1, &block) || !is_table(block)) return kWrongBlock;
  const Matrix& matrix = block.matrices[0];
  if (!given.has_rank(0, 1) || !given.has_shape(2, {shapes[0][0], matrix.columns})) return kWrongShape;
  const int32_t* index = given.data<int32_t>(0);
  for (int64_t i = 0; i < shapes[0][0]; i++)
    if (index[i] < 0 || index[i] >= matrix.rows) return kWrongRow;
  const Timer timer;
  return guarded([&] {
    selected()->embedding(matrix, given.data<uint8_t>(1), index, shapes[0][0], given.data<float>(2));
    return kOk;
  });
}

// The version of this interface, which library.py compares: increase it when a signature changes.
int share4v_interface() { return 8; }

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
double share4v_peak(int kind) {
  double sink = 0.0;
  return selected()->peak(static_cast<Peak>(kind), &sink);
}
double share4v_bandwidth(const uint8_t* data, int64_t bytes) {
  double sink = 0.0;
  return selected()->bandwidth(data, bytes, &sink);
}

// Packs source [rows, columns] of `type` into the rows first .. first + rows - 1 of matrix `number` of a block of `bytes`
// bytes, whose header must have been written; `size` is the source's number of values, and `importance` [columns] may be
// null. Returns kOk; kNotFinite if a weight is not finite or too large for the matrix's type; another status if an
// argument is invalid.
int share4v_pack(uint8_t* data, int64_t bytes, int number, int64_t first, int64_t rows, const void* source,
                 int64_t size, int type, const float* importance) {
  Block block;
  if (!read_block(data, bytes, &block) || !has_matrix(block, number)) return kWrongBlock;
  const Matrix& matrix = block.matrices[number];
  const bool known = type == static_cast<int>(Type::kFloat32) || type == static_cast<int>(Type::kFloat16) ||
                     type == static_cast<int>(Type::kBfloat16);
  if (!known) return kWrongType;
  if (first < 0 || first % kLanes || rows < 0 || rows > matrix.rows - first || size != rows * matrix.columns)
    return kWrongShape;
  return guarded([&] {
    const bool is_bad = selected()->pack(data, matrix, first, rows, source, static_cast<Type>(type), importance);
    return is_bad ? kNotFinite : kOk;
  });
}
// Rounds weights [rows, columns] of one super-block; the arguments are RoundCall's.
int share4v_round(int64_t rows, int64_t columns, float* weights, const float* importance, const float* feedback,
                  uint8_t* codes, int8_t* pairs, uint16_t* scales) {
  if (rows < 0 || columns < 1 || columns > kSuper) return kWrongShape;
  return guarded([&] {
    selected()->round({rows, columns, weights, importance, feedback, codes, pairs, scales});
    return kOk;
  });
}
// Refines the codes of one super-block; the arguments are RefineCall's.
int share4v_refine(int64_t rows, int64_t columns, float* gradient, const float* moment, uint8_t* codes,
                   const int8_t* pairs, const uint16_t* scales) {
  if (rows < 0 || columns < 1 || columns > kSuper) return kWrongShape;
  return guarded([&] {
    selected()->refine({rows, columns, gradient, moment, codes, pairs, scales});
    return kOk;
  });
}
// Unpacks matrix `number` of a block of `bytes` bytes; `size` is the number of values of `out`.
int share4v_unpack(const uint8_t* data, int64_t bytes, int number, float* out, int64_t size) {
  Block block;
  if (!read_block(data, bytes, &block) || !has_matrix(block, number)) return kWrongBlock;
  const Matrix& matrix = block.matrices[number];
  if (size != matrix.rows * matrix.columns) return kWrongShape;
  return guarded([&] {
    selected()->unpack(data, matrix, out);
    return kOk;
  });
}

// Multiplies rows x [count, size] by a rotation (format.h, Block): conversion rotates weights as the layers rotate rows.
int share4v_rotate_rows(const float* rotation, int64_t size, int64_t count, const float* x, float* y) {
  return guarded([&] {
    selected()->rotate_rows(rotation, size, count, x, y);
    return kOk;
  });
}

// The parts of a layer, for the tests. `bytes` is the size of the cache; `head_size` is the last dimension of queries.
int share4v_attention(uint8_t* data, int64_t bytes, int64_t layer, const Row* rows, int64_t count, int64_t heads,
                      int64_t kv_heads, int64_t head_size, const float* queries, const float* keys,
                      const float* values, float* out) {
  Cache cache;
  if (!read_cache(data, bytes, &cache)) return kWrongBlock;
  if (layer < 0 || layer >= cache.layers || heads < 1 || heads % cache.kv_heads || kv_heads != cache.kv_heads ||
      head_size != cache.head_dim)
    return kWrongShape;
  for (int64_t i = 0; i < count; i++)
    if (rows[i].slot < 0 || !is_valid(rows[i], cache)) return kWrongRow;
  AttentionCall call;
  call.header = &cache;
  call.cache = data;
  call.layer = layer;
  call.rows = rows;
  call.count = count;
  call.heads = heads;
  call.queries = queries;
  call.keys = keys;
  call.values = values;
  call.out = out;
  return guarded([&] {
    selected()->attention(call);
    return kOk;
  });
}
int share4v_norm(int kind, float eps, int64_t size, const float* weight_and_bias, int has_bias, int64_t count,
                 const float* x, float* y) {
  Norm norm = {};
  norm.kind = kind;
  norm.eps = eps;
  norm.size = size;
  norm.bias = has_bias ? size * static_cast<int64_t>(sizeof(float)) : 0;
  return guarded([&] {
    selected()->norm(norm, reinterpret_cast<const uint8_t*>(weight_and_bias), count, x, y);
    return kOk;
  });
}
int share4v_rotary(int64_t count, int64_t size, const float* cos, const float* sin, float* x) {
  return guarded([&] {
    selected()->rotary(count, size, cos, sin, x);
    return kOk;
  });
}
int share4v_activation(int activation, int64_t count, float* x, const float* up) {
  return guarded([&] {
    selected()->activation(static_cast<Activation>(activation), count, x, up);
    return kOk;
  });
}

}  // extern "C"
