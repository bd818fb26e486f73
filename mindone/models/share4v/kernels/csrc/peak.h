// Measures the machine's peak arithmetic and memory bandwidth, with the kernels' instructions and threads.
#pragma once

#include <chrono>

#include "lanes.h"
#include "threads.h"

namespace share4v {
namespace SHARE4V_ISA {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Returns the float32 operations per second of all threads together: multiply-adds on registers.
double run_peak_flops(double* sink) {
#if defined(__AVX512F__)
  constexpr int kSums = 24;
#else
  constexpr int kSums = 6;  // two registers each
#endif
  constexpr int64_t kSteps = 20'000'000;
  double total = 0.0;
  const double start = seconds_now();
#pragma omp parallel num_threads(thread_count()) reduction(+ : total)
  {
    Lanes sums[kSums];
    for (int i = 0; i < kSums; i++) sums[i] = set1(static_cast<float>(i));
    const Lanes a = set1(0.999f), b = set1(0.001f);
    for (int64_t step = 0; step < kSteps; step++) {
      SHARE4V_UNROLL
      for (int i = 0; i < kSums; i++) sums[i] = fma(sums[i], a, b);
    }
    for (int i = 0; i < kSums; i++) total += sum(sums[i]);
  }
  *sink = total;
  return 2.0 * kLanes * kSums * kSteps * thread_count() / (seconds_now() - start);
}

// Returns the bytes per second that all threads together read.
double run_bandwidth(const uint8_t* data, int64_t bytes, double* sink) {
  const int64_t chunks = bytes / (1 << 20);  // of 1 MiB
  double total = 0.0;
  const double start = seconds_now();
#pragma omp parallel for num_threads(thread_count()) schedule(static) reduction(+ : total)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const float* at = reinterpret_cast<const float*>(data + (chunk << 20));
    Lanes sums[4] = {zero(), zero(), zero(), zero()};
    for (int64_t i = 0; i < (1 << 18); i += 4 * kLanes) {
      SHARE4V_UNROLL
      for (int j = 0; j < 4; j++) sums[j] = add(sums[j], load(at + i + j * kLanes));
    }
    total += sum(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
  }
  *sink = total;
  return static_cast<double>(chunks << 20) / (seconds_now() - start);
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
