// int8 products by Intel's AMX tiles for many rows: the same integers as the vector kernels, so the same bits.
#pragma once

#include "matrix_int.h"

#if defined(__AMX_INT8__)
namespace share4v {
namespace SHARE4V_ISA {

constexpr int64_t kTileRows = 16;

// Tiles 0-3: sums [16 rows][16 outputs] int32. Tiles 4, 5: inputs [16 rows][32]. Tiles 6, 7: weights [8 quads][16][4].
struct TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 32, 32, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 8, 8};
};

class Tiles {  // a thread owns its tiles between construction and destruction
 public:
  Tiles() {
    const TileConfig config;
    // GCC 12's intrinsic tells the compiler of 8 of the 64 bytes it reads; the others must not be optimised away.
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
};

inline void scaled(const int32_t* sums, const float* scales, int64_t stride, Lanes factor, int64_t rows, float* c,
                   int64_t cs, bool fresh) {
  for (int64_t r = 0; r < rows; r++) {
    const Lanes value = {_mm512_cvtepi32_ps(_mm512_load_si512(sums + r * kLanes))};
    float* at = c + r * cs;
    store(at, fma(value, mul(factor, set1(scales[r * stride])), fresh ? zero() : load(at)));
  }
}

// Up to 32 rows by two panels, `groups` groups. Rows beyond the last are computed from what lies there and dropped.
inline void tile_pair(int64_t rows, const Rounded& x, const uint8_t* w, int64_t panel, const Half* scales,
                      int64_t scale_panel, int64_t groups, float* c, int64_t cs, bool fresh) {
  alignas(64) int32_t sums[4][kTileRows * kLanes];
  const bool two = rows > kTileRows;
  const int64_t first_rows = std::min(rows, kTileRows), second_rows = rows - first_rows;
  for (int64_t g = 0; g < groups; g++) {
    const int8_t* inputs = x.values + g * kGroup;
    _tile_loadd(6, w + g * 512, 64);
    _tile_loadd(7, w + panel + g * 512, 64);
    _tile_loadd(4, inputs, x.value_stride);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    _tile_zero(1);
    _tile_dpbssd(1, 4, 7);
    if (two) {
      _tile_loadd(5, inputs + kTileRows * x.value_stride, x.value_stride);
      _tile_zero(2);
      _tile_dpbssd(2, 5, 6);
      _tile_zero(3);
      _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    if (two) {
      _tile_stored(2, sums[2], 64);
      _tile_stored(3, sums[3], 64);
    }
    const Lanes a = load(scales + g * kLanes), b = load(scales + scale_panel + g * kLanes);
    const bool begin = fresh && g == 0;
    scaled(sums[0], x.scales + g, x.group_stride, a, first_rows, c, cs, begin);
    scaled(sums[1], x.scales + g, x.group_stride, b, first_rows, c + kLanes, cs, begin);
    if (two) {
      const float* below = x.scales + kTileRows * x.group_stride + g;
      scaled(sums[2], below, x.group_stride, a, second_rows, c + kTileRows * cs, cs, begin);
      scaled(sums[3], below, x.group_stride, b, second_rows, c + kTileRows * cs + kLanes, cs, begin);
    }
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
#endif
