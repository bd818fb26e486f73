// int8 products of many rows with Intel's AMX tiles: the same integer sums as the vector kernels, so the same bits.
#pragma once

#include "matrix_int.h"

#if defined(__AMX_INT8__)
namespace share4v {
namespace SHARE4V_ISA {

constexpr int64_t kTileRows = 16;

// Tiles 0 to 3: sums int32 [16 rows][16 outputs]. Tiles 4, 5: inputs int8 [16 rows][32]. Tiles 6, 7: weights int8
// [8 quads][16 outputs][4].
struct TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 32, 32, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 8, 8};
};

// Configures the tiles for the calling thread, and releases them in the destructor.
class Tiles {
 public:
  Tiles() {
    const TileConfig config;
    // Not _tile_loadconfig: GCC 12's intrinsic declares 8 of the 64 bytes as read, and the rest is optimized away.
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
};

// c[r] = or += sums[r] * factor * scale of row r, for one span. x begins at the span's first group.
inline void add_scaled(const int32_t* sums, const QuantizedInputs& x, Lanes factor, int64_t rows, FloatRows c,
                       bool overwrite) {
  for (int64_t r = 0; r < rows; r++) {
    const Lanes value = {_mm512_cvtepi32_ps(_mm512_load_si512(sums + r * kLanes))};
    float* at = c.row(r);
    store(at, fma(value, mul(factor, set1(x.scales[r * x.group_stride])), overwrite ? zero() : load(at)));
  }
}

// Multiplies up to 32 rows by two panels. The inputs must be allocated for 16 or 32 rows: tiles always have all their
// rows, and the results of the excess ones are dropped. The sums of a span stay in the tiles.
inline void tile_pair(int64_t rows, const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  alignas(64) int32_t sums[4][kTileRows * kLanes];
  const bool two = rows > kTileRows;
  const int64_t first_rows = std::min(rows, kTileRows), second_rows = rows - first_rows;
  for (int64_t begin = 0, end; begin < w.groups; begin = end) {
    end = span_end(x, w, begin);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t g = begin; g < end; g++) {
      const int8_t* inputs = x.values + g * kGroup;
      _tile_loadd(6, w.data + g * kInt8GroupBytes, 64);
      _tile_loadd(7, w.data + w.stride + g * kInt8GroupBytes, 64);
      _tile_loadd(4, inputs, x.value_stride);
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      if (two) {
        _tile_loadd(5, inputs + kTileRows * x.value_stride, x.value_stride);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      }
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    if (two) {
      _tile_stored(2, sums[2], 64);
      _tile_stored(3, sums[3], 64);
    }
    const Half* scales = w.scales + (begin >> w.shift) * kLanes;
    const Lanes a = load(scales), b = load(scales + w.scale_stride);
    const QuantizedInputs first = x.from(0, begin), second = x.from(kTileRows, begin);
    const bool is_first_sum = overwrite && begin == 0;
    add_scaled(sums[0], first, a, first_rows, c, is_first_sum);
    add_scaled(sums[1], first, b, first_rows, c.from(0, kLanes), is_first_sum);
    if (two) {
      add_scaled(sums[2], second, a, second_rows, c.from(kTileRows, 0), is_first_sum);
      add_scaled(sums[3], second, b, second_rows, c.from(kTileRows, kLanes), is_first_sum);
    }
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
#endif
