// Packs row-major weights into panels, quantizing them if the matrix is int8 or int4, and unpacks them.
#pragma once

#include "product.h"
#include "rounding.h"

namespace share4v {
namespace SHARE4V_ISA {

inline float source_value(const void* source, Type type, int64_t at) {
  if (type == Type::kFloat32) return static_cast<const float*>(source)[at];
  const uint16_t bits = static_cast<const uint16_t*>(source)[at];
  if (type == Type::kBfloat16) return from_bfloat16(bits);
  Half all[kLanes] = {{bits}};
  float wide[kLanes];
  store(wide, load(all));
  return wide[0];
}

inline Half half_of(float x) {
  Half all[kLanes];
  store(all, set1(x));
  return all[0];
}
inline float float_of(Half x) {
  Half all[kLanes] = {x};
  float wide[kLanes];
  store(wide, load(all));
  return wide[0];
}

// Returns the squared error of quantizing n weights, a multiple of 16, with this scale to integers low .. high.
inline float squared_error(const float* w, int64_t n, float scale, float low, float high) {
  const Lanes inverse = set1(scale != 0 ? 1.0f / scale : 0.0f);
  Lanes total = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const Lanes x = load(w + i);
    const Lanes q = min(set1(high), max(set1(low), round(mul(x, inverse))));
    const Lanes d = fnma(q, set1(scale), x);
    total = fma(d, d, total);
  }
  return sum(total);
}

// Returns the int4 scale of a group: of 16 candidates around the one that maps the largest weight to -8, that with the
// smallest squared error.
inline float int4_scale(const float* w) {
  float largest = 0.0f;
  for (int64_t i = 0; i < kGroup; i++)
    if (std::fabs(w[i]) > std::fabs(largest)) largest = w[i];
  float best = 0.0f, best_error = INFINITY;
  for (int step = 0; step < 16; step++) {
    const float scale = float_of(half_of(-largest / (6.5f + 0.15f * static_cast<float>(step))));
    const float error = squared_error(w, kGroup, scale, -8.0f, 7.0f);
    if (error < best_error) {
      best_error = error;
      best = scale;
    }
  }
  return best;
}

// Candidates of the scale of 256 weights, relative to the one that maps the largest to 127 or -127. Among so many weights
// the squared error depends on where they happen to lie between integers, so some other scale is nearly always better.
constexpr float kInt8Shares[] = {1.0f, 0.995f, 1.005f, 0.99f, 1.01f, 0.985f, 0.98f};

// Returns the int8 scale of n weights, a multiple of 16: the one that maps the largest to 127 or -127, or with is_searched
// the candidate that has the smallest squared error.
inline float int8_scale_of_weights(const float* w, int64_t n, bool is_searched) {
  Lanes largest = zero();
  for (int64_t i = 0; i < n; i += kLanes) largest = max(largest, abs(load(w + i)));
  const float full = max_lane(largest) / 127.0f;
  float best = float_of(half_of(full));
  if (!is_searched) return best;
  float best_error = INFINITY;
  for (const float share : kInt8Shares) {
    const float scale = float_of(half_of(full * share)), error = squared_error(w, n, scale, -127.0f, 127.0f);
    if (error < best_error) {
      best_error = error;
      best = scale;
    }
  }
  return best;
}

// Quantizes n weights, a multiple of 16, with this scale to integers low .. high.
inline void quantize_weights(const float* w, int64_t n, float scale, float low, float high, int8_t* out) {
  const Lanes inverse = set1(scale != 0 ? 1.0f / scale : 0.0f);
  for (int64_t i = 0; i < n; i += kLanes)
    store_int8(out + i, min(set1(high), max(set1(low), round(mul(load(w + i), inverse)))));
}

// Writes the 32 codes of row n of a group into its 4-bit layout; `to` must be zeroed before the first row.
inline void write_codes(const uint8_t* codes, int64_t n, uint8_t* to) {
  for (int64_t i = 0; i < kGroup; i++) {
    const int64_t quad = i / 4;
    to[quad % 4 * 64 + n * 4 + i % 4] |= static_cast<uint8_t>(codes[i] << (quad < 4 ? 0 : 4));
  }
}

inline void pack_int4_panel(const float* rows, int64_t columns, uint8_t* data, Half* scales) {
  const int64_t groups = ceil_div(columns, kGroup);
  std::memset(data, 0, static_cast<size_t>(groups * kInt4GroupBytes));
  for (int64_t g = 0; g < groups; g++)
    for (int64_t n = 0; n < kLanes; n++) {
      float w[kGroup] = {};
      std::memcpy(w, rows + n * columns + g * kGroup,
                  static_cast<size_t>(std::min(kGroup, columns - g * kGroup)) * sizeof(float));
      const float scale = int4_scale(w);
      int8_t q[kGroup];
      quantize_weights(w, kGroup, scale, -8.0f, 7.0f, q);
      uint8_t codes[kGroup];
      for (int64_t i = 0; i < kGroup; i++) codes[i] = static_cast<uint8_t>(q[i] + 8);
      scales[g * kLanes + n] = half_of(scale);
      write_codes(codes, n, data + g * kInt4GroupBytes);
    }
}

// `span` groups share a scale.
inline void pack_int8_panel(const float* rows, int64_t columns, int64_t span, uint8_t* data, Half* scales) {
  const int64_t width = span * kGroup;
  for (int64_t k = 0; k < columns; k += width)
    for (int64_t n = 0; n < kLanes; n++) {
      const int64_t used = std::min(width, columns - k), padded = ceil_div(used, kGroup) * kGroup;
      float w[kSuper] = {};
      std::memcpy(w, rows + n * columns + k, static_cast<size_t>(used) * sizeof(float));
      const float scale = int8_scale_of_weights(w, padded, span > 1);
      int8_t q[kSuper];
      quantize_weights(w, padded, scale, -127.0f, 127.0f, q);
      scales[k / width * kLanes + n] = half_of(scale);
      uint8_t* to = data + k / kGroup * kInt8GroupBytes;
      for (int64_t i = 0; i < padded; i++)
        to[i / kGroup * kInt8GroupBytes + i % kGroup / 4 * 64 + n * 4 + i % 4] = static_cast<uint8_t>(q[i]);
    }
}

// `importance` [columns], or nullptr if all weights are equally important.
inline void pack_super_panel(const float* rows, int64_t columns, const float* importance, uint8_t* data, Half* scales) {
  const int64_t supers = ceil_div(columns, kSuper), groups = ceil_div(columns, kGroup);
  int8_t* pairs = reinterpret_cast<int8_t*>(scales + supers * kLanes);
  float equal[kSuper];
  std::fill(equal, equal + kSuper, 1.0f);
  std::memset(data, 0, static_cast<size_t>(groups * kInt4GroupBytes));
  for (int64_t sb = 0; sb < supers; sb++) {
    const int64_t first = sb * kSuper, n = std::min(kSuper, columns - first);
    float weights[kSuper * kLanes];
    uint8_t codes[kSuper * kLanes];
    for (int64_t r = 0; r < kLanes; r++)
      for (int64_t k = 0; k < n; k++) weights[k * kLanes + r] = rows[r * columns + first + k];
    round_super_block({weights, importance ? importance + first : equal, n, codes,
                       pairs + sb * kSuperGroups * kPairBytes, scales + sb * kLanes});
    for (int64_t g = 0; g * kGroup < n; g++)
      for (int64_t r = 0; r < kLanes; r++) {
        uint8_t row[kGroup];
        // Columns beyond the last have inputs of zero; q = 8 is the code of the offset itself.
        for (int64_t i = 0; i < kGroup; i++) row[i] = g * kGroup + i < n ? codes[(g * kGroup + i) * kLanes + r] : 8;
        write_codes(row, r, data + (first / kGroup + g) * kInt4GroupBytes);
      }
  }
}

inline void pack_float_panel(const float* rows, int64_t columns, float* data) {
  for (int64_t k = 0; k < columns; k++)
    for (int64_t n = 0; n < kLanes; n++) data[k * kLanes + n] = rows[n * columns + k];
}
inline void pack_float_panel(const float* rows, int64_t columns, Half* data) {
  for (int64_t k = 0; k < columns; k++) {
    float column[kLanes];
    for (int64_t n = 0; n < kLanes; n++) column[n] = rows[n * columns + k];
    store(data + k * kLanes, load(column));
  }
}

inline void pack_bf16_panel(const float* rows, int64_t columns, Pair* data) {
  const auto stored = [&](int64_t n, int64_t k) {
    return static_cast<uint16_t>(k < columns ? rounded_bits(rows[n * columns + k]) >> 16 : 0);
  };
  for (int64_t k = 0; k < ceil_div(columns, kGroup) * kGroup; k += 2)
    for (int64_t n = 0; n < kLanes; n++) *data++ = {stored(n, k), stored(n, k + 1)};
}

// Returns the largest magnitude that a matrix of this type can store: of a float16, or of an integer times its float16
// scale (whose candidates for int4 divide the largest weight by 6.5 or more, and which for int4 super is at most 1/60
// of it).
inline float largest_weight(Type type) {
  switch (type) {
    case Type::kFloat16: return 65504.0f;
    case Type::kInt8:
    case Type::kInt8Super: return 65504.0f * 127;
    case Type::kInt4Super: return 65504.0f * 60;
    case Type::kInt4: return 65504.0f * 6;
    case Type::kBfloat16: return 3.39615e38f;  // what is larger is rounded to infinity
    default: return 3.4e38f;
  }
}

// Packs source [rows, columns] into the rows first .. first + rows - 1 of the matrix; `first` is a multiple of 16.
// Returns 1 if a weight is not finite or too large for the matrix's type, else 0.
int run_pack(uint8_t* base, const Matrix& m, int64_t first, int64_t rows, const void* source, Type type,
             const float* importance) {
  const int64_t columns = m.columns, groups = groups_of(m), panels = ceil_div(rows, kLanes);
  int bad = 0;
#pragma omp parallel for num_threads(thread_count()) schedule(dynamic, 1) reduction(| : bad)
  for (int64_t p = 0; p < panels; p++) {
    float* wide = reinterpret_cast<float*>(thread_scratch(kLanes * columns * 4));  // the panel's rows as float32
    if (!wide) continue;
    const int64_t panel_rows = std::min(kLanes, rows - p * kLanes), target = first / kLanes + p;
    std::memset(wide, 0, static_cast<size_t>(kLanes * columns) * sizeof(float));
    float largest = 0.0f, poison = 0.0f;  // poison: 0 if all weights are finite, else NaN
    for (int64_t i = 0; i < panel_rows * columns; i++) {
      wide[i] = source_value(source, type, p * kLanes * columns + i);
      largest = std::max(largest, std::fabs(wide[i]));
      poison += wide[i] * 0.0f;
    }
    const Type to = static_cast<Type>(m.type);
    if (poison != 0.0f || largest > largest_weight(to)) bad |= 1;
    uint8_t* data = base + m.data;
    Half* scales = reinterpret_cast<Half*>(base + m.scales) + target * scale_stride_of(m);
    switch (to) {
      case Type::kFloat32:
        pack_float_panel(wide, columns, reinterpret_cast<float*>(data) + target * columns * kLanes);
        break;
      case Type::kFloat16:
        pack_float_panel(wide, columns, reinterpret_cast<Half*>(data) + target * columns * kLanes);
        break;
      case Type::kBfloat16:
        pack_bf16_panel(wide, columns, reinterpret_cast<Pair*>(data) + target * groups * kGroup / 2 * kLanes);
        break;
      case Type::kInt4:
        pack_int4_panel(wide, columns, data + target * groups * kInt4GroupBytes, scales);
        break;
      case Type::kInt4Super:
        pack_super_panel(wide, columns, importance, data + target * groups * kInt4GroupBytes, scales);
        break;
      default:
        pack_int8_panel(wide, columns, weight_span(m), data + target * groups * kInt8GroupBytes, scales);
    }
  }
  return bad;
}

// Unpacks a matrix into float32 out [m.rows, m.columns].
void run_unpack(const uint8_t* base, const Matrix& m, float* out) {
  const int64_t columns = m.columns, groups = groups_of(m);
#pragma omp parallel for num_threads(thread_count()) schedule(static)
  for (int64_t row = 0; row < m.rows; row++) {
    const int64_t p = row / kLanes, n = row % kLanes;
    const uint8_t* data = base + m.data;
    const Half* scales = reinterpret_cast<const Half*>(base + m.scales) + p * scale_stride_of(m);
    const int8_t* pairs = reinterpret_cast<const int8_t*>(scales + supers_of(m) * kLanes);
    for (int64_t k = 0; k < columns; k++) {
      const int64_t g = k / kGroup, quad = k % kGroup / 4, at = n * 4 + k % 4;
      float value;
      switch (static_cast<Type>(m.type)) {
        case Type::kFloat32:
          value = reinterpret_cast<const float*>(data)[(p * columns + k) * kLanes + n];
          break;
        case Type::kFloat16:
          value = float_of(reinterpret_cast<const Half*>(data)[(p * columns + k) * kLanes + n]);
          break;
        case Type::kBfloat16: {
          const Pair* pairs_of = reinterpret_cast<const Pair*>(data) + p * groups * kGroup / 2 * kLanes;
          const Pair pair = pairs_of[k / 2 * kLanes + n];
          value = from_bfloat16(k % 2 ? pair.odd : pair.even);
          break;
        }
        case Type::kInt4:
        case Type::kInt4Super: {
          const uint8_t both = data[(p * groups + g) * kInt4GroupBytes + quad % 4 * 64 + at];
          int integer = (quad < 4 ? both & 15 : both >> 4) - 8;
          if (weight_span(m) > 1) {
            const int8_t* pair = pairs + g * kPairBytes + n * 2;
            integer = integer * pair[0] + pair[1];
          }
          value = static_cast<float>(integer) * float_of(scales[g / weight_span(m) * kLanes + n]);
          break;
        }
        default:
          value = static_cast<float>(static_cast<int8_t>(data[(p * groups + g) * kInt8GroupBytes + quad * 64 + at])) *
                  float_of(scales[g / weight_span(m) * kLanes + n]);
      }
      out[row * columns + k] = value;
    }
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
