// Memory layout of packed weights and of the key/value cache. packing.py and cache_memory.py write the same headers.
#pragma once

#include <cstdint>

namespace share4v {

constexpr int64_t kLanes = 16;  // float32 values in one vector, and output features in one panel
constexpr int64_t kGroup = 32;  // input features of one group; see Matrix for what they share
constexpr int64_t kSuperShift = 3;
constexpr int64_t kSuperGroups = 1 << kSuperShift;    // groups of one super-block
constexpr int64_t kSuper = kSuperGroups * kGroup;     // input features of one super-block
constexpr int64_t kHeaderBytes = 1024;

enum class Type : int32_t {
  kFloat32 = 0,
  kFloat16 = 1,
  kInt8 = 2,
  kInt4 = 3,
  kBfloat16 = 4,
  kInt8Super = 5,
  kInt4Super = 6
};
enum class NormKind : int32_t { kNone = 0, kRms = 1, kLayer = 2 };
enum class Activation : int32_t { kNone = 0, kGelu = 1, kQuickGelu = 2, kGatedSilu = 3 };

// A weight matrix [rows, columns] in the orientation of torch.nn.Linear (rows are output features), stored in panels of
// 16 rows. Offsets are in bytes from the start of the block. With N panels, K columns, G = ceil(K / 32) groups and
// S = ceil(K / 256) super-blocks, of which the last may have fewer than 8 groups:
//   float32, float16   data [N][K][16]
//   bfloat16           data [N][G][16][16][2]: pairs of consecutive columns
//   int8               data [N][G][8][16][4], scales float16 [N][G][16]
//   int4               data [N][G][4][16][4], scales as for int8. A byte holds two weights, each plus 8: one of quad j
//                      in its low bits and one of quad j + 4 in its high bits; a quad is 4 consecutive columns.
//   int8 super         data as for int8, scales float16 [N][S][16]
//   int4 super         data as for int4, scales [N] of { float16 d [S][16], int8 [G][16][2] }: the pairs are the scale s
//                      and the offset z of a row's group. A weight is d * (s * (q - 8) + z), where q is the stored value,
//                      0 .. 15. The integer in parentheses is at most 127 in magnitude, so a super-block is one integer
//                      product, with 4.5625 bits per weight. That is not checked when a file is loaded: if a file breaks
//                      it, kernels that expand weights to int8 for many rows give other results than for one row.
// The last panel and the last group are padded with zeros, so no kernel needs a special case for the remainder.
struct Matrix {
  int32_t type;
  // Inputs that share a scale when they are quantized: 256, or 0 for 32. Groups of 32 tolerate outliers; 256 need inputs
  // without them, which a rotation of the model provides.
  int16_t input_group;
  // Inputs are multiplied, in blocks of this many, by an orthonormal Hadamard matrix; 0: they are not. A power of two.
  int16_t hadamard;
  int64_t rows;
  int64_t columns;
  int64_t data;
  int64_t scales;
  int64_t bias;  // float32 [rows]; 0: no bias
};

struct Norm {
  int32_t kind;
  float eps;
  int64_t size;
  int64_t weight;  // float32 [size]
  int64_t bias;    // float32 [size]; 0: no bias
};

constexpr char kBlockMagic[8] = {'s', 'h', '4', 'v', 'b', 'l', 'k', '1'};

// Header of a block, which holds the weights of one operator call: a transformer layer, a linear layer or an embedding
// table.
//   layer       norms: before attention, before the MLP; matrices: query+key+value, output, (gate+)up, down
//   linear      norms: zero or one; matrices: one
//   embedding   matrices: one, row-major (not in panels), of a float type
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
  // Of a layer: its rows are first multiplied by an orthogonal matrix. Float32 [H] signs and [m][m], where H = p * m is
  // the hidden size and p its largest power of two: x times diag(signs), then in blocks of p by the orthonormal Hadamard
  // matrix, then across the m blocks by the second matrix, which is orthogonal. 0: they are not.
  int64_t rotation;
};
static_assert(sizeof(Block) <= kHeaderBytes, "Block does not fit into kHeaderBytes");

constexpr char kCacheMagic[8] = {'s', 'h', '4', 'v', 'k', 'v', 'c', '1'};

// Header of the key/value cache of all layers and sequences. S = slots, a multiple of 16; D = head_dim; Dv = D rounded
// up to a multiple of 16:
//   keys     [layers][sequences][kv_heads][S / 16][D][16]   panels of 16 slots: scores need no sum across lanes
//   values   [layers][sequences][kv_heads][S][Dv]
//   scales   float32 [2][layers][sequences][kv_heads][S]    int8 only: scales of the keys, then of the values
struct Cache {
  char magic[8];
  int64_t bytes;
  int32_t type;  // float32, float16 or int8
  int32_t layers;
  int32_t sequences;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t slots;
  int64_t keys;
  int64_t values;
  int64_t scales;
};

// One row (token) of a call to the layer operator, as int32 [4]. Slot -1 marks an inactive row, which is not computed.
struct Row {
  int32_t sequence;
  int32_t slot;   // where its key and value are written
  int32_t begin;  // it attends to the slots begin .. end - 1
  int32_t end;
};

}  // namespace share4v
