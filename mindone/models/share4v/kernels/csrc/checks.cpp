#include "checks.h"

#include <cmath>
#include <cstring>
#include <initializer_list>

namespace share4v {
namespace {

constexpr int64_t kAlignment = 64;         // of every piece of a block or cache
constexpr int64_t kMaxSize = 1LL << 28;    // of one dimension: the bytes of a matrix fit into 64 bits
constexpr int64_t kMaxBytes = 1LL << 62;

bool is_size(int64_t value) { return value > 0 && value <= kMaxSize; }

int64_t padded(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// The product of positive factors, or kMaxBytes if it is larger than that.
int64_t product_of(std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors) {
    if (product > kMaxBytes / factor) return kMaxBytes;
    product *= factor;
  }
  return product;
}

// Whether `size` bytes at `offset` lie behind the header of a block or cache of `bytes` bytes. Kernels may read whole
// vectors, so the padding up to the next multiple of 64 must be inside too.
bool is_inside(int64_t offset, int64_t size, int64_t bytes) {
  return offset >= kHeaderBytes && offset % kAlignment == 0 && offset <= bytes && size <= bytes - offset &&
         padded(size, kAlignment) <= bytes - offset;
}

bool is_valid_norm(const Norm& norm, int64_t bytes) {
  if (norm.kind == static_cast<int32_t>(NormKind::kNone)) return true;  // nothing else is read
  if (norm.kind != static_cast<int32_t>(NormKind::kRms) && norm.kind != static_cast<int32_t>(NormKind::kLayer))
    return false;
  return is_size(norm.size) && std::isfinite(norm.eps) && norm.eps >= 0.0f &&
         is_inside(norm.weight, norm.size * 4, bytes) && (!norm.bias || is_inside(norm.bias, norm.size * 4, bytes));
}

bool is_float(const Matrix& matrix) {
  return matrix.type == static_cast<int32_t>(Type::kFloat32) ||
         matrix.type == static_cast<int32_t>(Type::kFloat16) || matrix.type == static_cast<int32_t>(Type::kBfloat16);
}

bool has_bias_inside(const Matrix& matrix, int64_t bytes) {
  return !matrix.bias || is_inside(matrix.bias, matrix.rows * 4, bytes);
}

int64_t item_bytes(int32_t type) {
  if (type == static_cast<int32_t>(Type::kFloat32)) return 4;
  return type == static_cast<int32_t>(Type::kInt8) ? 1 : 2;
}

bool is_valid_hadamard(const Matrix& matrix) {
  const int64_t size = matrix.hadamard;
  if (!size) return true;
  return size > 1 && size <= kSuper && !(size & (size - 1)) && matrix.columns % size == 0;
}

// Whether a block's rotation of rows of `size` values is inside it, or absent.
bool is_valid_rotation(const Block& block, int64_t size) {
  if (!block.rotation) return true;
  const int64_t parts = size / (size & -size);
  const int64_t values = product_of({parts, parts}) + size;
  return values < kMaxBytes / 4 && is_inside(block.rotation, values * 4, block.bytes);
}

// A matrix in panels.
bool is_valid_matrix(const Matrix& matrix, int64_t bytes) {
  if (!is_size(matrix.rows) || !is_size(matrix.columns) || !has_bias_inside(matrix, bytes)) return false;
  if ((matrix.input_group && matrix.input_group != kSuper) || !is_valid_hadamard(matrix)) return false;
  const int64_t panels = padded(matrix.rows, kLanes) / kLanes, groups = padded(matrix.columns, kGroup) / kGroup;
  if (is_float(matrix)) {
    const bool in_pairs = matrix.type == static_cast<int32_t>(Type::kBfloat16);
    const int64_t columns = in_pairs ? groups * kGroup : matrix.columns;
    return is_inside(matrix.data, product_of({panels, columns, kLanes, item_bytes(matrix.type)}), bytes);
  }
  const int64_t supers = padded(groups, kSuperGroups) / kSuperGroups;
  int64_t data = 512, scales = groups;  // bytes of a group's weights; scales and pairs of scale and offset of a row
  switch (static_cast<Type>(matrix.type)) {
    case Type::kInt8:
      break;
    case Type::kInt4:
      data = 256;
      break;
    case Type::kInt8Super:
      scales = supers;
      break;
    case Type::kInt4Super:
      data = 256;
      scales = supers + groups;
      break;
    default:
      return false;
  }
  return is_inside(matrix.data, product_of({panels, groups, data}), bytes) &&
         is_inside(matrix.scales, product_of({panels, scales, kLanes, 2}), bytes);
}

}  // namespace

bool read_block(const void* data, int64_t bytes, Block* block) {
  if (bytes < kHeaderBytes || reinterpret_cast<uintptr_t>(data) % 16) return false;
  std::memcpy(block, data, sizeof *block);
  return !std::memcmp(block->magic, kBlockMagic, sizeof kBlockMagic) && block->bytes >= kHeaderBytes &&
         block->bytes <= bytes && block->activation >= static_cast<int32_t>(Activation::kNone) &&
         block->activation <= static_cast<int32_t>(Activation::kGatedSilu);
}

bool is_layer(const Block& block) {
  const Matrix* m = block.matrices;
  for (const Norm& norm : block.norms)
    if (norm.kind == static_cast<int32_t>(NormKind::kNone) || !is_valid_norm(norm, block.bytes)) return false;
  for (const Matrix& matrix : block.matrices)
    if (!is_valid_matrix(matrix, block.bytes)) return false;
  const int64_t hidden = block.norms[0].size, heads = block.heads, kv_heads = block.kv_heads, size = block.head_dim;
  if (!is_size(heads) || !is_size(kv_heads) || !is_size(size) || heads % kv_heads) return false;
  if (block.rotary < 0 || block.rotary > 1 || (block.rotary && size % 2)) return false;
  if (m[0].hadamard || m[1].hadamard || m[2].hadamard) return false;  // only the last matrix's inputs are transformed
  const int64_t gates = block.activation == static_cast<int32_t>(Activation::kGatedSilu) ? 2 : 1;
  return is_valid_rotation(block, hidden) && block.norms[1].size == hidden && block.cache_layer >= 0 &&            //
         m[0].rows == (heads + 2 * kv_heads) * size && m[0].columns == hidden &&  //
         m[1].rows == hidden && m[1].columns == heads * size &&                   //
         m[2].rows == gates * m[3].columns && m[2].columns == hidden && m[3].rows == hidden;
}

bool is_linear(const Block& block) {
  const Norm& norm = block.norms[0];
  return is_valid_matrix(block.matrices[0], block.bytes) && !block.matrices[0].hadamard && !block.rotation &&
         is_valid_norm(norm, block.bytes) &&
         (norm.kind == static_cast<int32_t>(NormKind::kNone) || norm.size == block.matrices[0].columns) &&
         block.activation != static_cast<int32_t>(Activation::kGatedSilu);
}

bool is_table(const Block& block) {
  const Matrix& matrix = block.matrices[0];
  return is_float(matrix) && is_size(matrix.rows) && is_size(matrix.columns) &&
         is_inside(matrix.data, product_of({matrix.rows, matrix.columns, item_bytes(matrix.type)}), block.bytes);
}

bool has_matrix(const Block& block, int number) {
  return number >= 0 && number < 4 && is_valid_matrix(block.matrices[number], block.bytes);
}

bool read_cache(const void* data, int64_t bytes, Cache* cache) {
  if (bytes < kHeaderBytes || reinterpret_cast<uintptr_t>(data) % 16) return false;
  std::memcpy(cache, data, sizeof *cache);
  if (std::memcmp(cache->magic, kCacheMagic, sizeof kCacheMagic) || cache->bytes < kHeaderBytes || cache->bytes > bytes)
    return false;
  for (const int32_t size : {cache->layers, cache->sequences, cache->kv_heads, cache->head_dim, cache->slots})
    if (!is_size(size)) return false;
  const bool int8 = cache->type == static_cast<int32_t>(Type::kInt8);
  if (!int8 && cache->type != static_cast<int32_t>(Type::kFloat32) &&
      cache->type != static_cast<int32_t>(Type::kFloat16))
    return false;
  if (cache->slots % kLanes) return false;
  const int64_t item = item_bytes(cache->type);
  const int64_t positions = product_of({cache->layers, cache->sequences, cache->kv_heads, cache->slots});
  return is_inside(cache->keys, product_of({positions, cache->head_dim, item}), cache->bytes) &&
         is_inside(cache->values, product_of({positions, padded(cache->head_dim, kLanes), item}), cache->bytes) &&
         (!int8 || is_inside(cache->scales, product_of({2, positions, 4}), cache->bytes));
}

bool is_valid(const Row& row, const Cache& cache) {
  if (row.slot < 0) return true;  // inactive
  return row.sequence >= 0 && row.sequence < cache.sequences && row.slot < cache.slots &&
         row.begin >= 0 && row.begin < row.end && row.end <= cache.slots;
}

}  // namespace share4v
