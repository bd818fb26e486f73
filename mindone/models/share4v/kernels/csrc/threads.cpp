#include "threads.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace share4v {
namespace {
std::atomic<int> requested{0};
}

// Passed to every parallel region (num_threads): OpenMP's own setting is per calling thread, and MindSpore calls the
// operators from its worker threads.
int thread_count() {
#if defined(_OPENMP)
  const int count = requested.load(std::memory_order_relaxed);
  static const int available = std::min(omp_get_max_threads(), omp_get_num_procs());
  return count > 0 ? count : available;
#else
  return 1;
#endif
}

// OpenMP keeps a team for each thread that calls kernels, and its threads live as long as the caller.
bool can_start_threads() {
#if defined(_OPENMP)
  thread_local int started = 1;  // threads of the caller's team, itself included
  const int count = thread_count();
  if (count <= started) {
    started = count;  // OpenMP ends the others, and must start them again for a larger team
    return true;
  }
  std::mutex mutex;
  std::condition_variable done;
  bool is_done = false;
  std::vector<std::thread> others;
  bool is_refused = false;
  try {
    others.reserve(static_cast<size_t>(count - started));
    for (int i = started; i < count; i++)
      others.emplace_back([&] {
        std::unique_lock<std::mutex> lock(mutex);
        done.wait(lock, [&] { return is_done; });
      });
  } catch (...) {  // std::system_error, or no memory
    is_refused = true;
  }
  {
    const std::lock_guard<std::mutex> lock(mutex);
    is_done = true;
  }
  done.notify_all();
  for (std::thread& other : others) other.join();
  if (is_refused) return false;
  started = count;
#endif
  return true;
}

void set_thread_count(int count) { requested.store(count, std::memory_order_relaxed); }

}  // namespace share4v
