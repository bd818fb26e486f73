// The functions that isa.cpp implements once for each instruction set.
#pragma once

#include <cstdint>

#include "format.h"

namespace share4v {

// Arguments of the layer operator. R = rows, H = hidden size, D = head_dim.
struct LayerCall {
  const Block* block;         // a checked copy of the header of `weights`
  const uint8_t* weights;     // a block
  const Cache* cache_header;  // a checked copy of the header of `cache`
  uint8_t* cache;
  const Row* rows;   // [R]
  int64_t count;     // R
  const float* x;    // [R, H]
  const float* cos;  // [R, D]
  const float* sin;  // [R, D]
  float* y;          // [R, H]
};

// Arguments of attention outside a layer, which only the tests call. All arrays are contiguous.
struct AttentionCall {
  const Cache* header;  // a checked copy of the header of `cache`
  uint8_t* cache;
  int64_t layer;
  const Row* rows;  // [R]
  int64_t count;    // R
  int64_t heads;
  const float* queries;  // [R, heads, D], already scaled
  const float* keys;     // [R, kv_heads, D]
  const float* values;   // [R, kv_heads, D]
  float* out;            // [R, heads, D]
};

// Weights [rows, columns] of one super-block, at most 256 columns, and what they are rounded to; see rounding.h. With
// `feedback` (error_feedback.h) the weights are the targets, and become the rounded weights.
struct RoundCall {
  int64_t rows;
  int64_t columns;
  float* weights;           // [rows][columns]
  const float* importance;  // [columns], positive
  const float* feedback;    // [columns][columns], or nullptr
  uint8_t* codes;           // [rows][columns] q
  int8_t* pairs;            // [rows][groups][2] s and z
  uint16_t* scales;         // [rows] d, as the bits of a float16
};

// Codes [rows, columns] of one super-block that are changed to lessen the error; see error_feedback.h.
struct RefineCall {
  int64_t rows;
  int64_t columns;
  float* gradient;         // [rows][columns] errors times the second moments; becomes the change of the errors
  const float* moment;     // [columns][columns] second moments, positive on the diagonal
  uint8_t* codes;          // [rows][columns] q
  const int8_t* pairs;     // [rows][groups][2] s and z
  const uint16_t* scales;  // [rows] d, as the bits of a float16
};

// What the benchmarks measure the peak of; library.py has the same numbers.
enum class Peak : int { kFloat32 = 0, kInt8 = 1, kBfloat16 = 2 };

struct Kernels {
  const char* name;
  void (*layer)(const LayerCall& call);
  // `weights` is a block, of which `block` is a checked copy of the header, or `matrix` of the table's.
  void (*linear)(const Block& block, const uint8_t* weights, const int32_t* index, int64_t count, const float* x,
                 float* y);
  void (*embedding)(const Matrix& matrix, const uint8_t* weights, const int32_t* index, int64_t count,
                    float* y);
  // `importance` [columns] is read for int4 super only; nullptr: all weights are equally important.
  int (*pack)(uint8_t* block, const Matrix& matrix, int64_t first, int64_t rows, const void* source, Type type,
              const float* importance);
  void (*round)(const RoundCall& call);
  void (*refine)(const RefineCall& call);
  void (*unpack)(const uint8_t* block, const Matrix& matrix, float* out);
  void (*attention)(const AttentionCall& call);
  void (*norm)(const Norm& norm, const uint8_t* base, int64_t count, const float* x, float* y);
  void (*rotary)(int64_t count, int64_t size, const float* cos, const float* sin, float* x);
  void (*rotate_rows)(const float* rotation, int64_t size, int64_t count, const float* x, float* y);
  void (*activation)(Activation activation, int64_t count, float* x, const float* up);
  double (*peak)(Peak kind, double* sink);
  double (*bandwidth)(const uint8_t* data, int64_t bytes, double* sink);
};

// What the library was compiled for: setup.py defines this as SET(avx2) SET(portable), say, fastest first.
#define SET(name) const Kernels& name##_kernels();
SHARE4V_INSTRUCTION_SETS
#undef SET

}  // namespace share4v
