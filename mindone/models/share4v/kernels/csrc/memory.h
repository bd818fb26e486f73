// Scratch memory, reused between calls. Only trivial code is inline: headers are compiled once for each instruction
// set, and the linker keeps one copy of an inline function, which might use instructions that this CPU lacks.
#pragma once

#include <cstdint>

namespace share4v {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class BufferList;

// Scratch buffers that live as long as the Arena. They then return to a pool, since the next call usually needs the
// same sizes.
class Arena {
 public:
  Arena();
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* allocate_bytes(int64_t count);  // 64-byte aligned, not initialized; throws std::bad_alloc
  template <class T>
  T* allocate(int64_t count) {
    return static_cast<T*>(allocate_bytes(count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  BufferList* buffers_;
};

// Returns a buffer of the calling thread, which the thread's next call reuses (and may reallocate); nullptr if there is
// no memory, which `memory_failures` counts: no exception can leave a parallel region, and all threads must reach its
// end. The caller leaves out what it would compute, and the operator returns an error.
uint8_t* thread_scratch(int64_t bytes);

int64_t memory_failures();

}  // namespace share4v
