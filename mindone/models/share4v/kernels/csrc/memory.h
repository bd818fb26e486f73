// Scratch memory that calls share. Nothing here is inline but the trivial: the kernels are compiled once for each kind of
// CPU, and of an inline function the linker would keep one copy, which might use instructions that this CPU lacks.
#pragma once

#include <cstdint>

namespace share4v {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Pieces;

// Pieces of memory for the length of a call; they are kept for the next, which usually asks for the same.
class Arena {
 public:
  Arena();
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* bytes(int64_t count);  // 64-byte aligned; throws std::bad_alloc
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(bytes(count * static_cast<int64_t>(sizeof(T))));
  }

 private:
  Pieces* pieces_;
};

// Memory of the calling thread alone, kept until the thread ends.
uint8_t* thread_room(int64_t bytes);

}  // namespace share4v
