#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

namespace share4v {
namespace {

struct Free {
  void operator()(uint8_t* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<uint8_t[], Free>;

constexpr int64_t kHugePage = 1 << 21;

struct Piece {
  Bytes data;
  int64_t size = 0;

  void reserve(int64_t bytes) {
    if (size >= bytes) return;
    data.reset();
    size = 0;
    const int64_t alignment = bytes < kHugePage ? 64 : kHugePage, whole = ceil_div(bytes, alignment) * alignment;
    data.reset(static_cast<uint8_t*>(std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(whole))));
    if (!data) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    // Rows of a pass lie far apart: with small pages each would need an address translation of its own.
    if (bytes >= kHugePage) madvise(data.get(), static_cast<size_t>(whole), MADV_HUGEPAGE);
#endif
    size = whole;
  }
};

}  // namespace

class Pieces {
 public:
  std::vector<Piece> all;
  size_t next = 0;
};

namespace {
std::mutex idle_mutex;
std::vector<std::unique_ptr<Pieces>> idle;  // of finished calls; as many as ever ran at once
}  // namespace

Arena::Arena() : pieces_(nullptr) {
  const std::lock_guard<std::mutex> lock(idle_mutex);
  if (idle.empty()) idle.push_back(std::make_unique<Pieces>());
  pieces_ = idle.back().release();
  idle.pop_back();
  pieces_->next = 0;
}

Arena::~Arena() {
  const std::lock_guard<std::mutex> lock(idle_mutex);
  idle.emplace_back(pieces_);
}

void* Arena::bytes(int64_t count) {
  if (pieces_->next == pieces_->all.size()) pieces_->all.emplace_back();
  Piece& piece = pieces_->all[pieces_->next++];
  piece.reserve(count + 64);
  return piece.data.get();
}

uint8_t* thread_room(int64_t bytes) {
  thread_local Piece piece;
  piece.reserve(bytes);
  return piece.data.get();
}

}  // namespace share4v
