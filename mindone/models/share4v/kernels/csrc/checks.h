// Checks of what the operators are given. Blocks come from files, which may be damaged, hostile, or changed while they
// are mapped: a header is copied and checked against the size of the memory that it describes, and the kernels read
// only the copy.
#pragma once

#include <cstdint>

#include "format.h"

namespace share4v {

// Copies the header of a block of `bytes` bytes. Returns false if it is not a block, or if a type, a size or an offset
// is invalid or leads outside the block. What an operator needs beyond that is checked by the functions below.
bool read_block(const void* data, int64_t bytes, Block* block);

bool is_layer(const Block& block);   // two norms and four matrices, whose sizes agree with each other and the heads
bool is_linear(const Block& block);  // a matrix, and a norm of as many values as it has columns, or none
bool is_table(const Block& block);   // one row-major matrix
bool has_matrix(const Block& block, int number);  // in panels

// As read_block, for a cache.
bool read_cache(const void* data, int64_t bytes, Cache* cache);

// Whether a row's sequence and slots are in the cache; an inactive row may have any.
bool is_valid(const Row& row, const Cache& cache);

}  // namespace share4v
