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
// Candidates of a group's integers s and z, relative to what the fit gives. A change of z by s would only shift all codes
// by one, so the candidates of z cover nearly every phase of the grid.
constexpr float kScaleSteps[] = {0.0f, -1.0f, 1.0f};
constexpr float kOffsetSteps[] = {0.0f, -1.0f, 1.0f, -2.0f, 2.0f, -4.0f, 4.0f, -6.0f, 6.0f};
// Candidates of d, relative to the smallest with which all integers fit: with each, other pairs are near the fit.
constexpr float kStepShares[] = {1.0f, 1.03f, 1.07f};

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

// The integers s and z of every row's group, and the error that they leave.
struct GroupIntegers {
  Lanes s, z, error;
};

// The limits of z, within which every integer of the group fits.
inline Lanes lowest_offset(Lanes s) { return sub(mul(s, set1(-kLowCode)), set1(kMaxInteger)); }
inline Lanes highest_offset(Lanes s) { return sub(set1(kMaxInteger), mul(s, set1(kHighCode))); }
inline Lanes clamp_scale(Lanes s) { return min(set1(kMaxScale), max(set1(1.0f), s)); }

inline Lanes weighted_error(const float* w, const float* importance, int64_t n, Lanes scale, Lanes offset) {
  const Lanes inverse = inverse_of(scale);
  Lanes error = zero();
  for (int64_t k = 0; k < n; k++) {
    const Lanes x = load(w + k * kLanes), e = sub(fnma(scale, nearest_code(x, inverse, offset), x), offset);
    error = fma(mul(set1(importance[k]), e), e, error);
  }
  return error;
}

// Finds s and z near a and b, given d: for the two integers next to a / d, codes and the offset that fits them alternate.
inline GroupIntegers fit_integers(const float* w, const float* importance, int64_t n, Lanes d, Lanes a, Lanes b) {
  const Lanes inverse_d = inverse_of(d), floor = round(sub(mul(a, inverse_d), set1(0.5f)));
  GroupIntegers best = {set1(1.0f), zero(), set1(INFINITY)};
  for (int step = 0; step < 2; step++) {
    const Lanes s = clamp_scale(add(floor, set1(static_cast<float>(step))));
    const Lanes scale = mul(s, d), inverse = inverse_of(scale);
    Lanes offset = b, z = zero();
    for (int i = 0; i <= kRefinements; i++) {
      Lanes weight = zero(), rest = zero();
      for (int64_t k = 0; k < n; k++) {
        const Lanes x = load(w + k * kLanes), h = set1(importance[k]);
        weight = add(weight, h);
        rest = fma(h, fnma(scale, nearest_code(x, inverse, offset), x), rest);
      }
      z = max(lowest_offset(s), min(highest_offset(s), round(mul(div(rest, weight), inverse_d))));
      offset = mul(z, d);
    }
    const Lanes error = weighted_error(w, importance, n, scale, offset);
    best = {select_less(error, best.error, s, best.s), select_less(error, best.error, z, best.z),
            min(best.error, error)};
  }
  return best;
}

// Returns the best pair among the candidates around `middle`; error_of(scale, offset) gives the error of each.
template <class ErrorOf>
inline GroupIntegers search_integers(const GroupIntegers& middle, Lanes d, const ErrorOf& error_of) {
  GroupIntegers best = {middle.s, middle.z, set1(INFINITY)};
  for (const float scale_step : kScaleSteps) {
    const Lanes s = clamp_scale(add(middle.s, set1(scale_step)));
    for (const float offset_step : kOffsetSteps) {
      const Lanes z = max(lowest_offset(s), min(highest_offset(s), add(middle.z, set1(offset_step))));
      const Lanes error = error_of(mul(s, d), mul(z, d));
      best = {select_less(error, best.error, s, best.s), select_less(error, best.error, z, best.z),
              min(best.error, error)};
    }
  }
  return best;
}

// Fits a and b of every group of a super-block, and returns d: the smallest with which all integers fit.
inline Lanes fit_super_block(const float* weights, const float* importance, int64_t columns, Lanes* a, Lanes* b) {
  Lanes largest = zero();
  for (int64_t g = 0; g * kGroup < columns; g++) {
    const int64_t first = g * kGroup, n = std::min(kGroup, columns - first);
    fit_group(weights + first * kLanes, importance + first, n, &a[g], &b[g]);
    const Lanes extreme = max(fnma(a[g], set1(kLowCode), mul(b[g], set1(-1.0f))), fma(a[g], set1(kHighCode), b[g]));
    largest = max(largest, max(mul(a[g], set1(1.0f / kMaxScale)), mul(extreme, set1(1.0f / kMaxInteger))));
  }
  return largest;
}

// Stores s and z of a group, [16][2].
inline void store_pairs(int8_t* pairs, Lanes s, Lanes z) {
  int8_t s_bytes[kLanes], z_bytes[kLanes];
  store_int8(s_bytes, s);
  store_int8(z_bytes, z);
  for (int64_t r = 0; r < kLanes; r++) {
    pairs[r * 2] = s_bytes[r];
    pairs[r * 2 + 1] = z_bytes[r];
  }
}

// Stores q of a column, given q - 8.
inline void store_codes(uint8_t* codes, Lanes shifted) {
  int8_t bytes[kLanes];
  store_int8(bytes, shifted);
  for (int64_t n = 0; n < kLanes; n++) codes[n] = static_cast<uint8_t>(bytes[n] + 8);
}

// Rounds one super-block: d and the integers of its groups first, then each weight to the nearest code.
inline void round_super_block(const SuperBlock& block) {
  Lanes a[kSuperGroups], b[kSuperGroups], best_s[kSuperGroups], best_z[kSuperGroups], s[kSuperGroups], z[kSuperGroups];
  Lanes best_error = set1(INFINITY), best_d = zero();
  const Lanes smallest = fit_super_block(block.weights, block.importance, block.n, a, b);
  const int64_t groups = ceil_div(block.n, kGroup);
  for (const float share : kStepShares) {
    store(block.scales, mul(smallest, set1(share)));
    const Lanes d = load(block.scales);
    Lanes total = zero();
    for (int64_t g = 0; g < groups; g++) {
      const int64_t first = g * kGroup, n = std::min(kGroup, block.n - first);
      const float *w = block.weights + first * kLanes, *importance = block.importance + first;
      const GroupIntegers found = search_integers(
          fit_integers(w, importance, n, d, a[g], b[g]), d,
          [&](Lanes scale, Lanes offset) { return weighted_error(w, importance, n, scale, offset); });
      s[g] = found.s;
      z[g] = found.z;
      total = add(total, found.error);
    }
    for (int64_t g = 0; g < groups; g++) {
      best_s[g] = select_less(total, best_error, s[g], best_s[g]);
      best_z[g] = select_less(total, best_error, z[g], best_z[g]);
    }
    best_d = select_less(total, best_error, d, best_d);
    best_error = min(best_error, total);
  }
  store(block.scales, best_d);
  for (int64_t g = 0; g < groups; g++) {
    store_pairs(block.pairs + g * kPairBytes, best_s[g], best_z[g]);
    const Lanes scale = mul(best_s[g], best_d), offset = mul(best_z[g], best_d), inverse = inverse_of(scale);
    for (int64_t k = g * kGroup; k < std::min(block.n, (g + 1) * kGroup); k++)
      store_codes(block.codes + k * kLanes, nearest_code(load(block.weights + k * kLanes), inverse, offset));
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
