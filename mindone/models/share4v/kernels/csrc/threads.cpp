#include "threads.h"

#include <algorithm>
#include <atomic>

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

void set_thread_count(int count) { requested.store(count, std::memory_order_relaxed); }

}  // namespace share4v
