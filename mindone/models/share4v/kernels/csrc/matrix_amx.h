// Products with Intel's AMX tiles. int8, for many rows: the same integer sums as the vector kernels, so the same bits.
// bfloat16, for any number of rows, since a tile adds in an order of its own: of 32 columns, the even ones and the odd
// ones apart, and both sums to the earlier ones.
#pragma once

#include "matrix_float.h"
#include "matrix_int.h"

#if defined(__AMX_INT8__)
namespace share4v {
namespace SHARE4V_ISA {

constexpr int64_t kTileRows = 16;

// Tiles 0 to 3: sums int32 [16 rows][16 outputs]. Tiles 4, 5: inputs int8 [16 rows][32 or 64]. Tiles 6, 7: weights int8
// [8 or 16 quads][16 outputs][4]. A multiplication takes as long for one group of 32 as for two.
struct TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Configures the tiles for the calling thread, for `groups` groups at a time (1 or 2), and releases them in the
// destructor.
class Tiles {
 public:
  explicit Tiles(int groups) {
    TileConfig config;
    config.bytes[4] = config.bytes[5] = static_cast<uint16_t>(32 * groups);
    config.rows[6] = config.rows[7] = static_cast<uint8_t>(8 * groups);
    // Not _tile_loadconfig: GCC 12's intrinsic declares 8 of the 64 bytes as read, and the rest is optimized away.
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
};

// GCC's intrinsics do not say that a tile is loaded from memory; after this, what was stored there is there.
inline void finish_stores() { asm volatile("" ::: "memory"); }

// c[r] = or += sums[r] * factor * scale of row r, for one span. x begins at the span's first group.
inline void add_scaled(const int32_t* sums, const QuantizedInputs& x, Lanes factor, int64_t rows, FloatRows c,
                       bool overwrite) {
  for (int64_t r = 0; r < rows; r++) {
    const Lanes value = {_mm512_cvtepi32_ps(_mm512_load_si512(sums + r * kLanes))};
    float* at = c.row(r);
    store(at, fma(value, mul(factor, set1(x.scales[r * x.group_stride])), overwrite ? zero() : load(at)));
  }
}

// Adds the products of up to 32 rows with the weights of two panels, at a and b, to the sums in the tiles.
inline void add_tiles(const int8_t* inputs, int64_t value_stride, bool two, const uint8_t* a, const uint8_t* b) {
  _tile_loadd(6, a, 64);
  _tile_loadd(7, b, 64);
  _tile_loadd(4, inputs, value_stride);
  _tile_dpbssd(0, 4, 6);
  _tile_dpbssd(1, 4, 7);
  if (!two) return;
  _tile_loadd(5, inputs + kTileRows * value_stride, value_stride);
  _tile_dpbssd(2, 5, 6);
  _tile_dpbssd(3, 5, 7);
}

// Multiplies up to 32 rows by two panels, kGroups groups at a time, as the tiles are configured: 2 where a span has
// several groups. The inputs must be allocated for 16 or 32 rows: tiles always have all their rows, and the results of
// the excess ones are dropped. The sums of a span stay in the tiles.
template <int kGroups>
inline void tile_pair(int64_t rows, const QuantizedInputs& x, IntPanels w, FloatRows c, bool overwrite) {
  alignas(64) int32_t sums[4][kTileRows * kLanes];
  alignas(64) uint8_t last[2][kGroups * kInt8GroupBytes];
  const bool two = rows > kTileRows;
  const int64_t first_rows = std::min(rows, kTileRows), second_rows = rows - first_rows;
  for (int64_t begin = 0, end; begin < w.groups; begin = end) {
    end = span_end(x, w, begin);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    int64_t g = begin;
    for (; g + kGroups <= end; g += kGroups) {
      const uint8_t* at = w.data + g * kInt8GroupBytes;
      add_tiles(x.values + g * kGroup, x.value_stride, two, at, at + w.stride);
    }
    if (g < end) {  // a single group at the end: the other half of its tiles is multiplied by weights of 0
      std::memset(last, 0, sizeof last);
      for (int p = 0; p < 2; p++) std::memcpy(last[p], w.data + p * w.stride + g * kInt8GroupBytes, kInt8GroupBytes);
      finish_stores();
      add_tiles(x.values + g * kGroup, x.value_stride, two, last[0], last[1]);
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

constexpr int64_t kTilePairs = 16;        // pairs of columns of a tile
constexpr int64_t kTileDepth = 16 * kTilePairs;  // of a block: the inputs of 32 rows and two panels stay in the L1 cache

// Where a tile of sums is loaded from and stored to: in place, or, of fewer than 16 rows, in a buffer.
class SumTile {
 public:
  SumTile(FloatRows c, int64_t rows) : c_(c), rows_(std::min(rows, kTileRows)) {}

  float* data() { return rows_ < kTileRows ? buffer_ : c_.data; }
  int64_t stride() const { return (rows_ < kTileRows ? kLanes : c_.stride) * static_cast<int64_t>(sizeof(float)); }
  void fetch() {
    if (rows_ < kTileRows)
      for (int64_t r = 0; r < rows_; r++) store(buffer_ + r * kLanes, load(c_.row(r)));
    finish_stores();
  }
  void put() {
    if (rows_ < kTileRows)
      for (int64_t r = 0; r < rows_; r++) store(c_.row(r), load(buffer_ + r * kLanes));
  }

 private:
  FloatRows c_;
  int64_t rows_;
  alignas(64) float buffer_[kTileRows * kLanes];  // rows beyond the last are what they happen to be, and are not used
};

// Multiplies up to 32 rows, x [rows][stride], by one or two panels. A second row of tiles, and a second panel, are left
// out where there is none.
inline void pair_tiles(int64_t rows, const Pair* x, int64_t stride, FloatPanels<Pair> w, FloatRows c, bool overwrite) {
  const bool low = rows > kTileRows, right = w.count > 1, low_right = low && right;
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(Pair));
  SumTile a(c, rows), b(c.from(0, kLanes), rows);
  SumTile d(c.from(kTileRows, 0), rows - kTileRows), e(c.from(kTileRows, kLanes), rows - kTileRows);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (!overwrite) {
    a.fetch();
    _tile_loadd(0, a.data(), a.stride());
    if (right) {
      b.fetch();
      _tile_loadd(1, b.data(), b.stride());
    }
    if (low) {
      d.fetch();
      _tile_loadd(2, d.data(), d.stride());
    }
    if (low_right) {
      e.fetch();
      _tile_loadd(3, e.data(), e.stride());
    }
  }
  for (int64_t k = 0; k < w.depth; k += kTilePairs) {
    _tile_loadd(4, x + k, bytes);
    _tile_loadd(6, w.data + k * kLanes, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (right) {
      _tile_loadd(7, w.data + w.stride + k * kLanes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (low) {
      _tile_loadd(5, x + kTileRows * stride + k, bytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (low_right) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, a.data(), a.stride());
  a.put();
  if (right) {
    _tile_stored(1, b.data(), b.stride());
    b.put();
  }
  if (low) {
    _tile_stored(2, d.data(), d.stride());
    d.put();
  }
  if (low_right) {
    _tile_stored(3, e.data(), e.stride());
    e.put();
  }
}

// c [rows, w.count * 16] = x [rows, K] times the panels w. x is row-major, and its rows are padded to a multiple of 32.
inline void tile_product(int64_t rows, const FloatInputs<Pair>& x, FloatPanels<Pair> w, FloatRows c) {
  constexpr int64_t kRows = 2 * kTileRows;
  finish_stores();
  const Tiles tiles(2);
  for (int64_t k = 0; k < w.depth; k += kTileDepth) {
    const FloatPanels<Pair> block = {w.data + k * kLanes, w.stride, w.count, std::min(kTileDepth, w.depth - k)};
    for (int64_t r = 0; r < rows; r += kRows)
      for (int64_t p = 0; p < w.count; p += 2)
        pair_tiles(std::min(kRows, rows - r), x.data + r * x.stride + k, x.stride, block.from(p),
                   c.from(r, p * kLanes), k == 0);
  }
}

}  // namespace SHARE4V_ISA
}  // namespace share4v
#endif
