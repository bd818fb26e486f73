#include "threads.h"

#include <atomic>

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace share4v {
namespace {
std::atomic<int> chosen{0};
}

// OpenMP keeps its own setting apart for each calling thread, and MindSpore calls from threads of its own.
int thread_count() {
#if defined(_OPENMP)
  const int count = chosen.load(std::memory_order_relaxed);
  static const int most = omp_get_max_threads() < omp_get_num_procs() ? omp_get_max_threads() : omp_get_num_procs();
  return count > 0 ? count : most;
#else
  return 1;
#endif
}

void set_thread_count(int count) { chosen.store(count, std::memory_order_relaxed); }

}  // namespace share4v
