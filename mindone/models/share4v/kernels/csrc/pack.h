// Packs row-major weights into panels, quantizing them if the matrix is int8 or int4, and unpacks them.
#pragma once

#include "product.h"

namespace share4v {
namespace SHARE4V_ISA {

inline float source_value(const void* source, Type type, int64_t at) {
  if (type == Type::kFloat32) return static_cast<const float*>(source)[at];
  const uint16_t bits = static_cast<const uint16_t*>(source)[at];
  if (type == Type::kBfloat16) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
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

// Returns the squared error of quantizing 32 weights with this scale to integers low .. high.
inline float squared_error(const float* w, float scale, float low, float high) {
  const Lanes inverse = set1(scale != 0 ? 1.0f / scale : 0.0f);
  Lanes total = zero();
  for (int64_t i = 0; i < kGroup; i += kLanes) {
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
    const float error = squared_error(w, scale, -8.0f, 7.0f);
    if (error < best_error) {
      best_error = error;
      best = scale;
    }
  }
  return best;
}

// Returns the int8 scale of a group, which maps the largest weight to 127 or -127.
inline float int8_scale_of_weights(const float* w) {
  return float_of(half_of(max_lane(max(abs(load(w)), abs(load(w + kLanes)))) / 127.0f));
}

// Quantizes 32 weights with this scale to integers low .. high.
inline void quantize_weights(const float* w, float scale, float low, float high, int8_t* out) {
  const Lanes inverse = set1(scale != 0 ? 1.0f / scale : 0.0f);
  for (int64_t i = 0; i < kGroup; i += kLanes)
    store_int8(out + i, min(set1(high), max(set1(low), round(mul(load(w + i), inverse)))));
}

inline void pack_int_panel(const float* rows, int64_t columns, bool int4, uint8_t* data, Half* scales) {
  const int64_t groups = ceil_div(columns, kGroup);
  for (int64_t g = 0; g < groups; g++) {
    uint8_t* to = data + g * (int4 ? kInt4GroupBytes : kInt8GroupBytes);
    if (int4) std::memset(to, 0, kInt4GroupBytes);
    for (int64_t n = 0; n < kLanes; n++) {
      float w[kGroup] = {};
      std::memcpy(w, rows + n * columns + g * kGroup,
                  static_cast<size_t>(std::min(kGroup, columns - g * kGroup)) * sizeof(float));
      const float scale = int4 ? int4_scale(w) : int8_scale_of_weights(w);
      int8_t q[kGroup];
      quantize_weights(w, scale, int4 ? -8.0f : -127.0f, int4 ? 7.0f : 127.0f, q);
      scales[g * kLanes + n] = half_of(scale);
      for (int64_t i = 0; i < kGroup; i++) {
        const int64_t quad = i / 4;
        if (!int4) {
          to[quad * 64 + n * 4 + i % 4] = static_cast<uint8_t>(q[i]);
        } else {
          to[quad % 4 * 64 + n * 4 + i % 4] |= static_cast<uint8_t>((q[i] + 8) << (quad < 4 ? 0 : 4));
        }
      }
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

// Returns the largest magnitude that a matrix of this type can store: of a float16, or of an integer times its float16
// scale (whose candidates for int4 divide the largest weight by 6.5 or more).
inline float largest_weight(Type type) {
  switch (type) {
    case Type::kFloat16: return 65504.0f;
    case Type::kInt8: return 65504.0f * 127;
    case Type::kInt4: return 65504.0f * 6;
    default: return 3.4e38f;
  }
}

// Packs source [rows, columns] into the rows first .. first + rows - 1 of the matrix; `first` is a multiple of 16.
// Returns 1 if a weight is not finite or too large for the matrix's type, else 0.
int run_pack(uint8_t* base, const Matrix& m, int64_t first, int64_t rows, const void* source, Type type) {
  const int64_t columns = m.columns, groups = groups_of(m), panels = ceil_div(rows, kLanes);
  int bad = 0;
#pragma omp parallel for num_threads(thread_count()) schedule(dynamic, 1) reduction(| : bad)
  for (int64_t p = 0; p < panels; p++) {
    float* wide = reinterpret_cast<float*>(thread_scratch(kLanes * columns * 4));  // the panel's rows as float32
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
    Half* scales = reinterpret_cast<Half*>(base + m.scales) + target * groups * kLanes;
    switch (to) {
      case Type::kFloat32:
        pack_float_panel(wide, columns, reinterpret_cast<float*>(data) + target * columns * kLanes);
        break;
      case Type::kFloat16:
        pack_float_panel(wide, columns, reinterpret_cast<Half*>(data) + target * columns * kLanes);
        break;
      case Type::kInt8:
        pack_int_panel(wide, columns, false, data + target * groups * kInt8GroupBytes, scales);
        break;
      default:
        pack_int_panel(wide, columns, true, data + target * groups * kInt4GroupBytes, scales);
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
    const Half* scales = reinterpret_cast<const Half*>(base + m.scales) + p * groups * kLanes;
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
        case Type::kInt8:
          value = static_cast<float>(static_cast<int8_t>(data[(p * groups + g) * kInt8GroupBytes + quad * 64 + at])) *
                  float_of(scales[g * kLanes + n]);
          break;
        default: {
          const uint8_t both = data[(p * groups + g) * kInt4GroupBytes + quad % 4 * 64 + at];
          value = static_cast<float>((quad < 4 ? both & 15 : both >> 4) - 8) * float_of(scales[g * kLanes + n]);
        }
      }
      out[row * columns + k] = value;
    }
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
