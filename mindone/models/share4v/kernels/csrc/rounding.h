// Rounds float weights to the integers of int4 super-blocks (see format.h), so that the error of a layer's outputs is
// small: each weight's squared error counts as much as the mean square of its input, its importance.
#pragma once

#include "product.h"

namespace share4v {
namespace SHARE4V_ISA {

constexpr float kMaxScale = 15.0f;     // s of a group: s * 8 fits into int8
constexpr float kMaxInteger = 127.0f;  // |s * (q - 8) + z|
constexpr float kLowCode = -8.0f, kHighCode = 7.0f;  // q - 8
// Candidates of a group's scale, as shares of the one that covers all its values, and refinements of each.
constexpr float kShares[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.75f, 0.7f};
constexpr int kRefinements = 2;

// One super-block of a panel: the lanes are 16 rows. n is the number of columns.
struct SuperBlock {
  const float* weights;     // [n][16]
  const float* importance;  // [n], positive
  int64_t n;
  uint8_t* codes;  // [n][16] q
  int8_t* pairs;   // [groups][16][2] s and z
  Half* scales;    // [16] d
};

// The codes nearest to w = a * (q - 8) + b.
inline Lanes nearest_code(Lanes w, Lanes inverse, Lanes b) {
  return min(set1(kHighCode), max(set1(kLowCode), round(mul(sub(w, b), inverse))));
}

inline Lanes inverse_of(Lanes x) { return select_less(zero(), x, div(set1(1.0f), x), zero()); }

// Finds a and b of every row for which the weighted squared error of a * code + b is least: for each candidate of a,
// codes and the least-squares fit to them alternate.
inline void fit_group(const float* w, const float* importance, int64_t n, Lanes* a_out, Lanes* b_out) {
  Lanes low = load(w), high = low, weight = zero(), mean = zero();
  for (int64_t k = 0; k < n; k++) {
    const Lanes x = load(w + k * kLanes), h = set1(importance[k]);
    low = min(low, x);
    high = max(high, x);
    weight = add(weight, h);
    mean = fma(h, x, mean);
  }
  const Lanes step = mul(sub(high, low), set1(1.0f / 15.0f)), middle = mul(add(low, high), set1(0.5f));
  Lanes best_error = set1(INFINITY), best_a = step, best_b = middle;
  for (const float share : kShares) {
    Lanes a = mul(step, set1(share)), b = fma(a, set1(0.5f), middle);
    for (int i = 0; i <= kRefinements; i++) {
      const Lanes inverse = inverse_of(a);
      Lanes q1 = zero(), q2 = zero(), qx = zero();
      for (int64_t k = 0; k < n; k++) {
        const Lanes x = load(w + k * kLanes), q = nearest_code(x, inverse, b), hq = mul(set1(importance[k]), q);
        q1 = add(q1, hq);
        q2 = fma(hq, q, q2);
        qx = fma(hq, x, qx);
      }
      // Solves the two normal equations; if they are singular (all codes equal), a stays.
      const Lanes determinant = fnma(q1, q1, mul(weight, q2));
      const Lanes fitted = div(fnma(q1, mean, mul(weight, qx)), determinant);
      const Lanes is_regular = fnma(set1(1e-6f), mul(weight, q2), determinant);
      a = select_less(zero(), is_regular, select_less(zero(), fitted, fitted, a), a);
      b = div(fnma(a, q1, mean), weight);
    }
    const Lanes inverse = inverse_of(a);
    Lanes error = zero();
    for (int64_t k = 0; k < n; k++) {
      const Lanes x = load(w + k * kLanes), d = sub(fnma(a, nearest_code(x, inverse, b), x), b);
      error = fma(mul(set1(importance[k]), d), d, error);
    }
    best_a = select_less(error, best_error, a, best_a);
    best_b = select_less(error, best_error, b, best_b);
    best_error = min(best_error, error);
  }
  *a_out = best_a;
  *b_out = best_b;
}

// Finds the integers s and z of every row's group for which the weighted squared error is least, given d and what
// fit_group found: for the two integers next to a / d, codes and the offset that fits them alternate.
inline void fit_integers(const float* w, const float* importance, int64_t n, Lanes d, Lanes a, Lanes b, Lanes* s_out,
                         Lanes* z_out) {
  const Lanes inverse_d = inverse_of(d), floor = round(sub(mul(a, inverse_d), set1(0.5f)));
  Lanes best_error = set1(INFINITY), best_s = set1(1.0f), best_z = zero();
  for (int step = 0; step < 2; step++) {
    const Lanes s = min(set1(kMaxScale), max(set1(1.0f), add(floor, set1(static_cast<float>(step)))));
    const Lanes scale = mul(s, d), inverse = inverse_of(scale);
    const Lanes low = sub(mul(s, set1(-kLowCode)), set1(kMaxInteger));
    const Lanes high = sub(set1(kMaxInteger), mul(s, set1(kHighCode)));
    Lanes offset = b, z = zero();
    for (int i = 0; i <= kRefinements; i++) {
      Lanes weight = zero(), rest = zero();
      for (int64_t k = 0; k < n; k++) {
        const Lanes x = load(w + k * kLanes), h = set1(importance[k]);
        weight = add(weight, h);
        rest = fma(h, fnma(scale, nearest_code(x, inverse, offset), x), rest);
      }
      z = max(low, min(high, round(mul(div(rest, weight), inverse_d))));
      offset = mul(z, d);
    }
    Lanes error = zero();
    for (int64_t k = 0; k < n; k++) {
      const Lanes x = load(w + k * kLanes), e = sub(fnma(scale, nearest_code(x, inverse, offset), x), offset);
      error = fma(mul(set1(importance[k]), e), e, error);
    }
    best_s = select_less(error, best_error, s, best_s);
    best_z = select_less(error, best_error, z, best_z);
    best_error = min(best_error, error);
  }
  *s_out = best_s;
  *z_out = best_z;
}

// Rounds one super-block: scales of its groups first, then each weight to the nearest code.
inline void round_super_block(const SuperBlock& block) {
  const int64_t groups = ceil_div(block.n, kGroup);
  Lanes a[kSuperGroups], b[kSuperGroups];
  Lanes largest = zero();  // the smallest d with which all integers fit
  for (int64_t g = 0; g < groups; g++) {
    const int64_t first = g * kGroup, n = std::min(kGroup, block.n - first);
    fit_group(block.weights + first * kLanes, block.importance + first, n, &a[g], &b[g]);
    const Lanes extreme = max(fnma(a[g], set1(kLowCode), mul(b[g], set1(-1.0f))), fma(a[g], set1(kHighCode), b[g]));
    largest = max(largest, max(mul(a[g], set1(1.0f / kMaxScale)), mul(extreme, set1(1.0f / kMaxInteger))));
  }
  store(block.scales, largest);
  const Lanes d = load(block.scales);
  for (int64_t g = 0; g < groups; g++) {
    const int64_t first = g * kGroup, n = std::min(kGroup, block.n - first);
    Lanes s, z;
    fit_integers(block.weights + first * kLanes, block.importance + first, n, d, a[g], b[g], &s, &z);
    int8_t s_bytes[kLanes], z_bytes[kLanes];
    store_int8(s_bytes, s);
    store_int8(z_bytes, z);
    for (int64_t r = 0; r < kLanes; r++) {
      block.pairs[(g * kLanes + r) * 2] = s_bytes[r];
      block.pairs[(g * kLanes + r) * 2 + 1] = z_bytes[r];
    }
    a[g] = mul(s, d);
    b[g] = mul(z, d);
  }
  for (int64_t k = 0; k < block.n; k++) {
    int8_t codes[kLanes];
    store_int8(codes, nearest_code(load(block.weights + k * kLanes), inverse_of(a[k / kGroup]), b[k / kGroup]));
    for (int64_t n = 0; n < kLanes; n++) block.codes[k * kLanes + n] = static_cast<uint8_t>(codes[n] + 8);
  }
}

// Rounds weights [rows, n] of one super-block; see RoundCall.
void run_round(const RoundCall& call) {
  const int64_t panels = ceil_div(call.rows, kLanes), n = call.columns, groups = ceil_div(n, kGroup);
#pragma omp parallel for num_threads(thread_count()) schedule(dynamic, 1)
  for (int64_t p = 0; p < panels; p++) {
    const int64_t count = std::min(kLanes, call.rows - p * kLanes);
    float weights[kSuper * kLanes] = {};
    uint8_t codes[kSuper * kLanes];
    int8_t pairs[kSuperGroups * kLanes * 2];
    Half scales[kLanes];
    for (int64_t r = 0; r < count; r++)
      for (int64_t k = 0; k < n; k++) weights[k * kLanes + r] = call.weights[(p * kLanes + r) * n + k];
    round_super_block({weights, call.importance, n, codes, pairs, scales});
    for (int64_t r = 0; r < count; r++) {
      const int64_t row = p * kLanes + r;
      call.scales[row] = scales[r].bits;
      for (int64_t g = 0; g < groups; g++)
        for (int64_t i = 0; i < 2; i++) call.pairs[(row * groups + g) * 2 + i] = pairs[(g * kLanes + r) * 2 + i];
      for (int64_t k = 0; k < n; k++) call.codes[row * n + k] = codes[k * kLanes + r];
    }
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
