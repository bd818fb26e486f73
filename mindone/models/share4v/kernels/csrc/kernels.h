// The table of what is compiled once for each kind of CPU.
#pragma once

#include <cstdint>

#include "format.h"

namespace share4v {

struct Kernels {
  const char* name;
  void (*layer)(const uint8_t* block, uint8_t* cache, const Row* rows, int64_t count, const float* x, const float* cos,
                const float* sin, float* y);
  void (*linear)(const uint8_t* block, const int32_t* index, int64_t count, const float* x, float* y);
  void (*embedding)(const uint8_t* block, const int32_t* index, int64_t count, float* y);
  int (*pack)(uint8_t* block, const Matrix& matrix, int64_t first, int64_t rows, const void* source, Type type);
  void (*unpack)(const uint8_t* block, const Matrix& matrix, float* out);
  void (*attention)(uint8_t* cache, int64_t layer, const Row* rows, int64_t count, int64_t heads, const float* queries,
                    const float* keys, const float* values, float* out);
  void (*norm)(const Norm& norm, const uint8_t* base, int64_t count, const float* x, float* y);
  void (*rotary)(int64_t count, int64_t size, const float* cos, const float* sin, float* x);
  void (*activation)(Activation activation, int64_t count, float* x, const float* up);
  double (*peak)(double* sink);
  double (*bandwidth)(const uint8_t* data, int64_t bytes, double* sink);
};

const Kernels& portable_kernels();
#if defined(SHARE4V_X86)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& amx_kernels();
#endif

}  // namespace share4v
