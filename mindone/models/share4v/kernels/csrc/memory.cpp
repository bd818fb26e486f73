#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <atomic>
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

struct Buffer {
  Bytes data;
  int64_t size = 0;

  // Contents are lost when the buffer grows. Returns whether there was enough memory.
  bool reserve(int64_t bytes) {
    if (size >= bytes) return true;
    data.reset();
    size = 0;
    const int64_t alignment = bytes < kHugePage ? 64 : kHugePage, rounded = ceil_div(bytes, alignment) * alignment;
    data.reset(static_cast<uint8_t*>(std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(rounded))));
    if (!data) return false;
#if defined(MADV_HUGEPAGE)
    // Rows of a pass are far apart; with small pages each would need a TLB entry of its own.
    if (bytes >= kHugePage) madvise(data.get(), static_cast<size_t>(rounded), MADV_HUGEPAGE);
#endif
    size = rounded;
    return true;
  }
};

}  // namespace

class BufferList {
 public:
  std::vector<Buffer> all;
  size_t next = 0;
};

namespace {
std::mutex pool_mutex;
std::vector<std::unique_ptr<BufferList>> pool;  // unused lists; as many exist as arenas ever lived at the same time
size_t list_count = 0;                          // used or not; the pool has room for all, so that ~Arena cannot throw

std::atomic<int64_t> failures{0};
}  // namespace

Arena::Arena() : buffers_(nullptr) {
  const std::lock_guard<std::mutex> lock(pool_mutex);
  if (pool.empty()) {
    pool.reserve(list_count + 1);
    pool.push_back(std::make_unique<BufferList>());
    list_count++;
  }
  buffers_ = pool.back().release();
  pool.pop_back();
  buffers_->next = 0;
}

Arena::~Arena() {
  const std::lock_guard<std::mutex> lock(pool_mutex);
  pool.emplace_back(buffers_);
}

void* Arena::allocate_bytes(int64_t count) {
  if (buffers_->next == buffers_->all.size()) buffers_->all.emplace_back();
  Buffer& buffer = buffers_->all[buffers_->next++];
  if (!buffer.reserve(count + 64)) throw std::bad_alloc();
  return buffer.data.get();
}

uint8_t* thread_scratch(int64_t bytes) {
  thread_local Buffer buffer;
  if (buffer.reserve(bytes)) return buffer.data.get();
  failures.fetch_add(1, std::memory_order_relaxed);
  return nullptr;
}

int64_t memory_failures() { return failures.load(std::memory_order_relaxed); }

}  // namespace share4v
