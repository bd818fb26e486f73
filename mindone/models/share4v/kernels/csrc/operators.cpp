// What the library offers: MindSpore's custom operators, and plain functions for packing and for the tests.
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
// Linux hands the tiles' registers to a process only when it asks.
bool has_amx() {
#if defined(__linux__)
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 24 & 1) || !(d >> 25 & 1)) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

struct Choice {
  const char* name;
  bool (*runs_here)();
  const Kernels& (*table)();
};

bool always() { return true; }

const Choice choices[] = {
#if defined(SHARE4V_X86)
    {"amx", has_amx, amx_kernels},
    {"avx512", has_avx512, avx512_kernels},
    {"avx2", has_avx2, avx2_kernels},
#endif
    {"portable", always, portable_kernels},
};

const Kernels* best() {
  for (const Choice& choice : choices)
    if (choice.runs_here()) return &choice.table();
  return nullptr;
}

const Kernels*& selected() {
  static const Kernels* it = best();
  return it;
}

bool is_block(const void* data, int64_t bytes) {
  const Block* block = static_cast<const Block*>(data);
  return bytes >= kHeaderBytes && !std::memcmp(block->magic, kBlockMagic, sizeof kBlockMagic) && block->bytes <= bytes;
}

bool is_cache(const void* data, int64_t bytes) {
  const Cache* cache = static_cast<const Cache*>(data);
  return bytes >= kHeaderBytes && !std::memcmp(cache->magic, kCacheMagic, sizeof kCacheMagic) && cache->bytes <= bytes;
}

bool fits(const Row& row, const Cache& cache) {
  if (row.slot < 0) return true;
  return row.text >= 0 && row.text < cache.texts && row.slot < cache.slots && row.begin >= 0 && row.begin < row.end &&
         row.end <= cache.slots;
}

// The arguments of an operator, inputs and then the output.
struct Arguments {
  void** params;
  int* ndims;
  int64_t** shapes;
  const char** dtypes;

  bool are(const char* dtype, std::initializer_list<int> which) const {
    for (const int i : which)
      if (std::strcmp(dtypes[i], dtype)) return false;
    return true;
  }
  bool has_shape(int which, std::initializer_list<int64_t> sizes) const {
    if (ndims[which] != static_cast<int>(sizes.size())) return false;
    const int64_t* size = shapes[which];
    for (const int64_t wanted : sizes)
      if (*size++ != wanted) return false;
    return true;
  }
  bool has_dimensions(int which, int count) const { return ndims[which] == count; }
  bool holds_block(int which) const { return ndims[which] == 1 && is_block(params[which], shapes[which][0]); }
  bool holds_cache(int which) const { return ndims[which] == 1 && is_cache(params[which], shapes[which][0]); }
};

// Time spent in the operators, for the benchmarks.
std::atomic<int64_t> busy_nanoseconds{0};

class Timed {
 public:
  ~Timed() {
    const auto spent = std::chrono::steady_clock::now() - start_;
    busy_nanoseconds += std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// What an operator returns: MindSpore raises on anything but 0.
enum Status { kDone = 0, kWrongCount = 1, kWrongType = 2, kWrongBlock = 3, kWrongShape = 4, kWrongRow = 5 };

}  // namespace
}  // namespace share4v

using namespace share4v;

extern "C" {

// x [R, H], block, cache, rows int32 [R, 4], cos and sin [R, D] -> y [R, H]. What is said of idle rows is undefined.
int share4v_layer(int count, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, void*) {
  if (count != 7) return kWrongCount;
  const Arguments given = {params, ndims, shapes, dtypes};
  if (!given.are("float32", {0, 4, 5, 6}) || !given.are("uint8", {1, 2}) || !given.are("int32", {3})) return kWrongType;
  if (!given.holds_block(1) || !given.holds_cache(2)) return kWrongBlock;
  const Block& block = *static_cast<const Block*>(params[1]);
  const Cache& cache = *static_cast<const Cache*>(params[2]);
  if (!given.has_dimensions(0, 2)) return kWrongShape;
  const int64_t rows = shapes[0][0], hidden = block.norms[0].size;
  if (!given.has_shape(0, {rows, hidden}) || !given.has_shape(3, {rows, 4}) || !given.has_shape(6, {rows, hidden}) ||
      cache.head_dim != block.head_dim || cache.kv_heads != block.kv_heads || block.cache_layer >= cache.layers)
    return kWrongShape;
  if (block.rotary && (!given.has_shape(4, {rows, block.head_dim}) || !given.has_shape(5, {rows, block.head_dim})))
    return kWrongShape;
  const Row* row = static_cast<const Row*>(params[3]);
  for (int64_t i = 0; i < rows; i++)
    if (!fits(row[i], cache)) return kWrongRow;
  const Timed timed;
  selected()->layer(static_cast<const uint8_t*>(params[1]), static_cast<uint8_t*>(params[2]), row, rows,
                    static_cast<const float*>(params[0]), static_cast<const float*>(params[4]),
                    static_cast<const float*>(params[5]), static_cast<float*>(params[6]));
  return kDone;
}

// x [R, K], index int32 [M] (rows of x; negative: idle), block -> y [M, N]
int share4v_linear(int count, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, void*) {
  if (count != 4) return kWrongCount;
  const Arguments given = {params, ndims, shapes, dtypes};
  if (!given.are("float32", {0, 3}) || !given.are("int32", {1}) || !given.are("uint8", {2})) return kWrongType;
  if (!given.holds_block(2)) return kWrongBlock;
  const Matrix& matrix = static_cast<const Block*>(params[2])->matrices[0];
  if (!given.has_dimensions(0, 2) || !given.has_dimensions(1, 1)) return kWrongShape;
  const int64_t rows = shapes[0][0], made = shapes[1][0];
  if (!given.has_shape(0, {rows, matrix.columns}) || !given.has_shape(3, {made, matrix.rows})) return kWrongShape;
  const int32_t* index = static_cast<const int32_t*>(params[1]);
  for (int64_t i = 0; i < made; i++)
    if (index[i] >= rows) return kWrongRow;
  const Timed timed;
  selected()->linear(static_cast<const uint8_t*>(params[2]), index, made, static_cast<const float*>(params[0]),
                     static_cast<float*>(params[3]));
  return kDone;
}

// ids int32 [R], block -> y [R, H]
int share4v_embedding(int count, void** params, int* ndims, int64_t** shapes, const char** dtypes, void*, void*) {
  if (count != 3) return kWrongCount;
  const Arguments given = {params, ndims, shapes, dtypes};
  if (!given.are("int32", {0}) || !given.are("uint8", {1}) || !given.are("float32", {2})) return kWrongType;
  if (!given.holds_block(1)) return kWrongBlock;
  const Matrix& matrix = static_cast<const Block*>(params[1])->matrices[0];
  if (matrix.type > static_cast<int32_t>(Type::kFloat16)) return kWrongBlock;
  if (!given.has_dimensions(0, 1) || !given.has_shape(2, {shapes[0][0], matrix.columns})) return kWrongShape;
  const int32_t* index = static_cast<const int32_t*>(params[0]);
  for (int64_t i = 0; i < shapes[0][0]; i++)
    if (index[i] < 0 || index[i] >= matrix.rows) return kWrongRow;
  const Timed timed;
  selected()->embedding(static_cast<const uint8_t*>(params[1]), index, shapes[0][0], static_cast<float*>(params[2]));
  return kDone;
}

// The kinds of CPU that kernels were built for and that this machine has, best first; nullptr beyond the last.
const char* share4v_kernels_at(int number) {
  for (const Choice& choice : choices)
    if (choice.runs_here() && number-- == 0) return choice.name;
  return nullptr;
}
const char* share4v_selected() { return selected()->name; }
int share4v_select(const char* name) {
  for (const Choice& choice : choices) {
    if (std::strcmp(choice.name, name) || !choice.runs_here()) continue;
    selected() = &choice.table();
    return kDone;
  }
  return kWrongType;
}
void share4v_set_threads(int count) { set_thread_count(count); }
int share4v_threads() { return thread_count(); }

// For the benchmarks: seconds spent in operators so far, and what the machine can do at most.
double share4v_busy_seconds() { return static_cast<double>(busy_nanoseconds.load()) * 1e-9; }
double share4v_peak() {
  double sink = 0.0;
  return selected()->peak(&sink);
}
double share4v_bandwidth(const uint8_t* data, int64_t bytes) {
  double sink = 0.0;
  return selected()->bandwidth(data, bytes, &sink);
}

// Rows [rows, columns] of `type` become rows first .. of matrix `number` of a block whose header is written already.
// Returns 1 where a weight is not finite or too large for the matrix's type.
int share4v_pack(uint8_t* block, int number, int64_t first, int64_t rows, const void* source, int type) {
  const Matrix& matrix = reinterpret_cast<const Block*>(block)->matrices[number];
  return selected()->pack(block, matrix, first, rows, source, static_cast<Type>(type));
}
void share4v_unpack(const uint8_t* block, int number, float* out) {
  selected()->unpack(block, reinterpret_cast<const Block*>(block)->matrices[number], out);
}

// The parts of a layer by themselves, for the tests.
int share4v_attention(uint8_t* cache, int64_t layer, const Row* rows, int64_t count, int64_t heads,
                      const float* queries, const float* keys, const float* values, float* out) {
  for (int64_t i = 0; i < count; i++)
    if (rows[i].slot < 0 || !fits(rows[i], *reinterpret_cast<const Cache*>(cache))) return kWrongRow;
  selected()->attention(cache, layer, rows, count, heads, queries, keys, values, out);
  return kDone;
}
void share4v_norm(int kind, float eps, int64_t size, const float* weight_and_bias, int has_bias, int64_t count,
                  const float* x, float* y) {
  const int64_t bias = has_bias ? size * static_cast<int64_t>(sizeof(float)) : 0;
  const Norm norm = {kind, eps, size, 0, bias};
  selected()->norm(norm, reinterpret_cast<const uint8_t*>(weight_and_bias), count, x, y);
}
void share4v_rotary(int64_t count, int64_t size, const float* cos, const float* sin, float* x) {
  selected()->rotary(count, size, cos, sin, x);
}
void share4v_activation(int activation, int64_t count, float* x, const float* up) {
  selected()->activation(static_cast<Activation>(activation), count, x, up);
}

}  // extern "C"
