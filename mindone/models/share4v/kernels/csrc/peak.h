// Measures the machine's peak arithmetic and memory bandwidth, with the kernels' instructions and threads.
#pragma once

#include <chrono>
#include <cstring>

#include "kernels.h"
#include "lanes.h"
#include "threads.h"

namespace share4v {
namespace SHARE4V_ISA {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

#if defined(__AVX512F__)
constexpr int kPeakSums = 24;
#else
constexpr int kPeakSums = 6;  // two registers each, four in NEON
#endif
constexpr int64_t kPeakSteps = 20'000'000;

// Returns the float32 operations per second of all threads together: multiply-adds on registers.
inline double peak_float32(double* sink) {
  constexpr int kSums = kPeakSums;
  constexpr int64_t kSteps = kPeakSteps;
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

// Returns the operations per second of `step`, an instruction that adds products to a register, on all threads together.
// `operations` are those of one instruction. The empty asm statements read and write the sums, so that no compiler takes
// them for equal or drops them. A loop over them that is not unrolled makes GCC 12 keep them in memory.
#if defined(SHARE4V_NEON)
#define SHARE4V_WRITE(value) asm volatile("" : "+w"(value))
#define SHARE4V_READ(value) asm volatile("" : : "w"(value))
#else
#define SHARE4V_WRITE(value) asm volatile("" : "+v"(value))
#define SHARE4V_READ(value) asm volatile("" : : "v"(value))
#endif
#if defined(__AVX512VNNI__) || (defined(SHARE4V_NEON) && defined(__ARM_FEATURE_DOTPROD))
template <class Sum, class Step>
double peak_of(int operations, Sum zero, Step step) {
  constexpr int kSums = 24;
  const double start = seconds_now();
#pragma omp parallel num_threads(thread_count())
  {
    Sum sums[kSums];
    SHARE4V_UNROLL
    for (int i = 0; i < kSums; i++) {
      sums[i] = zero;
      SHARE4V_WRITE(sums[i]);
    }
    for (int64_t count = 0; count < kPeakSteps; count++) {
      SHARE4V_UNROLL
      for (int i = 0; i < kSums; i++) sums[i] = step(sums[i]);
    }
    SHARE4V_UNROLL
    for (int i = 0; i < kSums; i++) SHARE4V_READ(sums[i]);
  }
  return 1.0 * operations * kSums * kPeakSteps * thread_count() / (seconds_now() - start);
}
#endif

// Returns the operations per second of all threads together, of multiply-adds on registers; 0 if the instruction set has
// none for these. AMX's tiles are not measured: of "amx" these are the peaks of AVX-512's instructions.
double run_peak(Peak kind, double* sink) {
  if (kind == Peak::kFloat32) return peak_float32(sink);
#if defined(__AVX512VNNI__)
  if (kind == Peak::kInt8) {
    const __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
    return peak_of(128, _mm512_setzero_si512(), [&](__m512i sum) { return _mm512_dpbusd_epi32(sum, a, b); });
  }
#endif
#if defined(SHARE4V_NEON) && defined(__ARM_FEATURE_DOTPROD)
  if (kind == Peak::kInt8) {
    const int8x16_t a = vdupq_n_s8(1), b = vdupq_n_s8(2);
#if defined(__ARM_FEATURE_MATMUL_INT8)
    return peak_of(64, vdupq_n_s32(0), [&](int32x4_t sum) { return vmmlaq_s32(sum, a, b); });
#else
    return peak_of(32, vdupq_n_s32(0), [&](int32x4_t sum) { return vdotq_s32(sum, a, b); });
#endif
  }
#endif
#if defined(__AVX512BF16__)
  if (kind == Peak::kBfloat16) {
    const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
    return peak_of(64, _mm512_setzero_ps(), [&](__m512 sum) { return _mm512_dpbf16_ps(sum, a, a); });
  }
#endif
  return 0.0;
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
