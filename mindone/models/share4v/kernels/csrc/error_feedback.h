// Rounds int4 super-blocks whose columns make up for each other's errors (GPTQ, Frantar et al. 2022, in the form of LDLQ,
// Chee et al. 2023). With weights w, rounded weights q and the factors L and D of the second moments of the inputs, L unit
// lower triangular, the error is the sum over the columns k of D[k] * ((w - q) L)[k]^2. Columns are rounded from the last
// to the first: ((w - q) L)[k] then contains only errors that are known, and q[k] is the code nearest to what they leave.
// Each candidate for a group's scale and offset is tried with this feedback, since the codes that follow from it differ.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "rounding.h"

namespace share4v {
namespace SHARE4V_ISA {

constexpr int kTogether = 3;  // candidates tried at once: chains of multiply-adds that do not wait for each other
constexpr int kOffsetCount = sizeof(kOffsetSteps) / sizeof(kOffsetSteps[0]);
static_assert(kOffsetCount % kTogether == 0, "candidates are tried kTogether at a time");

// One super-block of a panel. `feedback` [n][n] is the transpose of L: column j adds feedback[k][j] times itself to column
// k < j. `targets` [n][16] are (w L) minus what the rounded columns behind the super-block add.
struct FedSuperBlock {
  const float* targets;
  const float* feedback;
  const float* importance;  // [n] D
  int64_t n;
};

// Returns `target` without what the columns first .. end - 1 of `values` [*][16] add to it, where `row` is its row of the
// feedback. Four chains, so that no multiply-add waits for the one before it.
inline Lanes without(Lanes target, const float* row, const float* values, int64_t first, int64_t end) {
  Lanes rest[3] = {zero(), zero(), zero()};
  int64_t j = first;
  for (; j + 4 <= end; j += 4) {
    target = fnma(set1(row[j]), load(values + j * kLanes), target);
    SHARE4V_UNROLL
    for (int i = 0; i < 3; i++) rest[i] = fnma(set1(row[j + 1 + i]), load(values + (j + 1 + i) * kLanes), rest[i]);
  }
  for (; j < end; j++) target = fnma(set1(row[j]), load(values + j * kLanes), target);
  return add(add(target, rest[0]), add(rest[1], rest[2]));
}

// Solves w L = targets for the columns first .. end - 1, as if all columns behind them were exact.
inline void solve(const float* targets, const float* feedback, int64_t n, int64_t first, int64_t end, float* w) {
  for (int64_t k = end - 1; k >= first; k--)
    store(w + k * kLanes, without(load(targets + k * kLanes), feedback + k * n, w, k + 1, end));
}

// Rounds a group of n columns with C candidates of its scale and offset; `stride` is that of the rows of the feedback.
// values [C][kGroup][16] receives the rounded columns, and error the sums of D times the squared errors.
template <int C>
inline void round_group(const float* targets, const float* feedback, int64_t stride, const float* importance, int64_t n,
                        const Lanes (&scale)[C], const Lanes (&offset)[C], float* values, Lanes (&error)[C]) {
  Lanes inverse[C];
  for (int c = 0; c < C; c++) {
    inverse[c] = inverse_of(scale[c]);
    error[c] = zero();
  }
  for (int64_t k = n - 1; k >= 0; k--) {
    const float* row = feedback + k * stride;
    Lanes target[C];
    SHARE4V_UNROLL
    for (int c = 0; c < C; c++) target[c] = load(targets + k * kLanes);
    for (int64_t j = k + 1; j < n; j++) {
      const Lanes share = set1(row[j]);
      SHARE4V_UNROLL
      for (int c = 0; c < C; c++) target[c] = fnma(share, load(values + (c * kGroup + j) * kLanes), target[c]);
    }
    SHARE4V_UNROLL
    for (int c = 0; c < C; c++) {
      const Lanes value = fma(scale[c], nearest_code(target[c], inverse[c], offset[c]), offset[c]);
      const Lanes e = sub(target[c], value);
      store(values + (c * kGroup + k) * kLanes, value);
      error[c] = fma(mul(set1(importance[k]), e), e, error[c]);
    }
  }
}

// Finds the best s and z around `middle`, and stores the rounded columns with them in values [n][16].
inline GroupIntegers search_with_feedback(const GroupIntegers& middle, Lanes d, const float* targets,
                                          const float* feedback, int64_t stride, const float* importance, int64_t n,
                                          float* values) {
  float tried[kTogether * kGroup * kLanes];
  GroupIntegers best = {middle.s, middle.z, set1(INFINITY)};
  for (const float scale_step : kScaleSteps) {
    const Lanes s = clamp_scale(add(middle.s, set1(scale_step)));
    for (int first = 0; first < kOffsetCount; first += kTogether) {
      Lanes scale[kTogether], z[kTogether], offset[kTogether], error[kTogether];
      for (int c = 0; c < kTogether; c++) {
        z[c] = max(lowest_offset(s), min(highest_offset(s), add(middle.z, set1(kOffsetSteps[first + c]))));
        scale[c] = mul(s, d);
        offset[c] = mul(z[c], d);
      }
      round_group<kTogether>(targets, feedback, stride, importance, n, scale, offset, tried, error);
      for (int c = 0; c < kTogether; c++)
        best = {select_less(error[c], best.error, s, best.s), select_less(error[c], best.error, z[c], best.z),
                min(best.error, error[c])};
    }
  }
  const Lanes scale[1] = {mul(best.s, d)}, offset[1] = {mul(best.z, d)};
  Lanes error[1];
  round_group<1>(targets, feedback, stride, importance, n, scale, offset, values, error);
  best.error = error[0];
  return best;
}

// A super-block that was rounded with one candidate of d.
struct RoundedSuperBlock {
  Lanes d, error;
  Lanes s[kSuperGroups], z[kSuperGroups];
  float values[kSuper * kLanes];  // [n][16]
};

// Rounds a super-block with d, given a and b of its groups, which fit its exact columns.
inline void round_with_step(const FedSuperBlock& block, Lanes d, const Lanes* a, const Lanes* b,
                            RoundedSuperBlock* out) {
  float targets[kGroup * kLanes], weights[kGroup * kLanes];
  out->d = d;
  out->error = zero();
  for (int64_t g = ceil_div(block.n, kGroup) - 1; g >= 0; g--) {
    const int64_t first = g * kGroup, n = std::min(kGroup, block.n - first);
    const float *feedback = block.feedback + first * block.n + first, *importance = block.importance + first;
    for (int64_t k = 0; k < n; k++)
      store(targets + k * kLanes, without(load(block.targets + (first + k) * kLanes),
                                          block.feedback + (first + k) * block.n, out->values, first + n, block.n));
    solve(targets, feedback, block.n, 0, n, weights);
    const GroupIntegers found =
        search_with_feedback(fit_integers(weights, importance, n, d, a[g], b[g]), d, targets, feedback, block.n,
                             importance, n, out->values + first * kLanes);
    out->s[g] = found.s;
    out->z[g] = found.z;
    out->error = add(out->error, found.error);
  }
}

// As round_super_block, with feedback; `values` [n][16] receives the rounded columns.
inline void round_super_block_with_feedback(const FedSuperBlock& block, uint8_t* codes, int8_t* pairs, Half* scales,
                                            float* values) {
  Lanes a[kSuperGroups], b[kSuperGroups];
  solve(block.targets, block.feedback, block.n, 0, block.n, values);
  const Lanes smallest = fit_super_block(values, block.importance, block.n, a, b);
  RoundedSuperBlock best = {}, tried;
  best.error = set1(INFINITY);
  const int64_t groups = ceil_div(block.n, kGroup);
  for (const float share : kStepShares) {
    store(scales, mul(smallest, set1(share)));
    round_with_step(block, load(scales), a, b, &tried);
    for (int64_t g = 0; g < groups; g++) {
      best.s[g] = select_less(tried.error, best.error, tried.s[g], best.s[g]);
      best.z[g] = select_less(tried.error, best.error, tried.z[g], best.z[g]);
    }
    for (int64_t k = 0; k < block.n; k++)
      store(best.values + k * kLanes, select_less(tried.error, best.error, load(tried.values + k * kLanes),
                                                  load(best.values + k * kLanes)));
    best.d = select_less(tried.error, best.error, tried.d, best.d);
    best.error = min(best.error, tried.error);
  }
  store(scales, best.d);
  for (int64_t g = 0; g < groups; g++) {
    store_pairs(pairs + g * kPairBytes, best.s[g], best.z[g]);
    const Lanes inverse = inverse_of(mul(best.s[g], best.d)), offset = mul(best.z[g], best.d);
    for (int64_t k = g * kGroup; k < std::min(block.n, (g + 1) * kGroup); k++) {
      const Lanes value = load(best.values + k * kLanes);
      store(values + k * kLanes, value);
      store_codes(codes + k * kLanes, nearest_code(value, inverse, offset));
    }
  }
}

// Rounds weights [rows, n] of one super-block; see RoundCall.
void run_round(const RoundCall& call) {
  const int64_t panels = ceil_div(call.rows, kLanes), n = call.columns, groups = ceil_div(n, kGroup);
#pragma omp parallel for num_threads(thread_count()) schedule(dynamic, 1)
  for (int64_t p = 0; p < panels; p++) {
    const int64_t count = std::min(kLanes, call.rows - p * kLanes);
    float weights[kSuper * kLanes] = {}, values[kSuper * kLanes];
    uint8_t codes[kSuper * kLanes];
    int8_t pairs[kSuperGroups * kLanes * 2];
    Half scales[kLanes];
    for (int64_t r = 0; r < count; r++)
      for (int64_t k = 0; k < n; k++) weights[k * kLanes + r] = call.weights[(p * kLanes + r) * n + k];
    if (call.feedback) {
      round_super_block_with_feedback({weights, call.feedback, call.importance, n}, codes, pairs, scales, values);
    } else {
      round_super_block({weights, call.importance, n, codes, pairs, scales});
    }
    for (int64_t r = 0; r < count; r++) {
      const int64_t row = p * kLanes + r;
      call.scales[row] = scales[r].bits;
      for (int64_t g = 0; g < groups; g++)
        for (int64_t i = 0; i < 2; i++) call.pairs[(row * groups + g) * 2 + i] = pairs[(g * kLanes + r) * 2 + i];
      for (int64_t k = 0; k < n; k++) call.codes[row * n + k] = codes[k * kLanes + r];
      if (!call.feedback) continue;
      for (int64_t k = 0; k < n; k++) call.weights[row * n + k] = values[k * kLanes + r];
    }
  }
}

// Changes the codes of one panel of a super-block one after the other, each to the one that is best while all other codes
// of the matrix stay (coordinate descent). With errors e = w - q and second moments H, `gradient` [n][16] is e H, of which
// `moment` [n][n] is the part of the super-block; it becomes the change of e. `codes` [n][16] are q - 8.
inline void refine_panel(float* gradient, const float* moment, int64_t n, float* codes, const int8_t* pairs,
                         const Half* scales) {
  const Lanes d = load(scales);
  float changes[kSuper * kLanes];
  for (int64_t k = 0; k < n; k++) {
    float s[kLanes], z[kLanes];
    for (int64_t r = 0; r < kLanes; r++) {
      s[r] = pairs[k / kGroup * kPairBytes + r * 2];
      z[r] = pairs[k / kGroup * kPairBytes + r * 2 + 1];
    }
    const float* row = moment + k * n;
    const Lanes scale = mul(load(s), d), offset = mul(load(z), d), code = load(codes + k * kLanes);
    const Lanes best = fma(load(gradient + k * kLanes), set1(1.0f / row[k]), fma(scale, code, offset));
    const Lanes nearest = nearest_code(best, inverse_of(scale), offset);
    const Lanes change = mul(sub(code, nearest), scale);
    store(codes + k * kLanes, nearest);
    store(changes + k * kLanes, change);
    if (max_lane(abs(change)) == 0.0f) continue;
    for (int64_t j = 0; j < n; j++)
      store(gradient + j * kLanes, fma(set1(row[j]), change, load(gradient + j * kLanes)));
  }
  std::memcpy(gradient, changes, static_cast<size_t>(n * kLanes) * sizeof(float));
}

// Refines the codes [rows, n] of one super-block; see RefineCall.
void run_refine(const RefineCall& call) {
  const int64_t panels = ceil_div(call.rows, kLanes), n = call.columns, groups = ceil_div(n, kGroup);
#pragma omp parallel for num_threads(thread_count()) schedule(dynamic, 1)
  for (int64_t p = 0; p < panels; p++) {
    const int64_t count = std::min(kLanes, call.rows - p * kLanes);
    float gradient[kSuper * kLanes] = {}, codes[kSuper * kLanes] = {};
    int8_t pairs[kSuperGroups * kPairBytes] = {};
    Half scales[kLanes] = {};
    for (int64_t r = 0; r < count; r++) {
      const int64_t row = p * kLanes + r;
      scales[r].bits = call.scales[row];
      for (int64_t g = 0; g < groups; g++)
        for (int64_t i = 0; i < 2; i++) pairs[g * kPairBytes + r * 2 + i] = call.pairs[(row * groups + g) * 2 + i];
      for (int64_t k = 0; k < n; k++) {
        gradient[k * kLanes + r] = call.gradient[row * n + k];
        codes[k * kLanes + r] = static_cast<float>(call.codes[row * n + k]) - 8.0f;
      }
    }
    refine_panel(gradient, call.moment, n, codes, pairs, scales);
    for (int64_t r = 0; r < count; r++)
      for (int64_t k = 0; k < n; k++) {
        call.gradient[(p * kLanes + r) * n + k] = gradient[k * kLanes + r];
        call.codes[(p * kLanes + r) * n + k] = static_cast<uint8_t>(codes[k * kLanes + r] + 8.0f);
      }
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
