// How packed weights and the key/value cache lie in memory; packing.py and cache_memory.py write the same headers.
#pragma once

#include <cstdint>

namespace share4v {

constexpr int64_t kLanes = 16;   // outputs of one panel, and floats of one vector
constexpr int64_t kGroup = 32;   // inputs that share one scale
constexpr int64_t kHeaderBytes = 1024;

enum class Type : int32_t { kFloat32 = 0, kFloat16 = 1, kInt8 = 2, kInt4 = 3, kBfloat16 = 4 };
enum class NormKind : int32_t { kNone = 0, kRms = 1, kLayer = 2 };
enum class Activation : int32_t { kNone = 0, kGelu = 1, kQuickGelu = 2, kGatedSilu = 3 };

// A weight matrix [rows, columns] as torch.nn.Linear keeps it, in panels of 16 rows. Offsets count bytes from the
// beginning of the block. N = panels, K = columns, G = ceil(K / 32):
//   float32, float16   data [N][K][16]
//   int8               data [N][G][8][16][4], scales float16 [N][G][16]
//   int4               data [N][G][4][16][4], scales as int8; byte j holds 8 + weight of quad j (low bits) and j + 4
// Rows beyond the last and columns beyond K are zero, so that no kernel asks for the rest.
struct Matrix {
  int32_t type;
  int32_t unused;
  int64_t rows;
  int64_t columns;
  int64_t data;
  int64_t scales;
  int64_t bias;  // float32 [rows]; 0: none
};

struct Norm {
  int32_t kind;
  float eps;
  int64_t size;
  int64_t weight;  // float32 [size]
  int64_t bias;    // float32 [size]; 0: none
};

constexpr char kBlockMagic[8] = {'s', 'h', '4', 'v', 'b', 'l', 'k', '1'};

// A block of weights is what one operator works with: a transformer layer, a linear layer or an embedding table.
//   layer       norms: before attention, before the MLP; matrices: query+key+value, out, (gate+)up, down
//   linear      norms: one or none; matrices: one
//   embedding   matrices: one, rows as they are (not in panels), float32 or float16
struct Block {
  char magic[8];
  int64_t bytes;
  int32_t activation;
  int32_t heads;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t rotary;
  int32_t cache_layer;
  Norm norms[2];
  Matrix matrices[4];
};
static_assert(sizeof(Block) <= kHeaderBytes, "the header has outgrown its room");

constexpr char kCacheMagic[8] = {'s', 'h', '4', 'v', 'k', 'v', 'c', '1'};

// Keys and values of every layer and text, behind a header. S = slots rounded up to 16, D = head_dim, Dv = D rounded up:
//   keys     [layers][texts][kv_heads][S / 16][D][16]       a panel is 16 slots, so that scores need no sum over lanes
//   values   [layers][texts][kv_heads][S][Dv]
//   scales   float32 [2][layers][texts][kv_heads][S]        int8 alone: of keys, of values
struct Cache {
  char magic[8];
  int64_t bytes;
  int32_t type;  // float32, float16 or int8
  int32_t layers;
  int32_t texts;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t slots;  // S
  int64_t keys;
  int64_t values;
  int64_t scales;
};

// What a row of a call is: [rows, 4] int32. A row whose slot is -1 is idle and costs nothing.
struct Row {
  int32_t text;
  int32_t slot;   // where its key and value go
  int32_t begin;  // it sees the slots begin .. end - 1
  int32_t end;
};

}  // namespace share4v
