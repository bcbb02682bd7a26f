// How the CPU kernels for 3x3 taps at stride 1 cut a map into tiles of outputs that lie a rate
// apart.
#pragma once

#include <algorithm>
#include <vector>

#include "depthwise_tiles.h"
#include "row_plan.h"

namespace segkern {

inline bool takes_tiles(const ConvWindow& w) {
  return w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 && w.stride_w == 1 && w.up_h == 1 &&
         w.up_w == 1;
}

inline bool takes_row_tiles(const ConvWindow& w) {
  return takes_tiles(w) && w.out_w >= kRowBlock && w.in_w >= kRowBlock;
}

// visit(first, count) for tiles of up to kTileOutputs of the outputs first, first + rate, ...
template <typename Visit>
void for_each_tile_of(int64_t phase, int64_t outputs, int64_t rate, const Visit& visit) {
  const int64_t all = ceil_div(outputs - phase, rate);
  const int64_t tiles = ceil_div(all, kTileOutputs);
  for (int64_t t = 0; t < tiles; ++t) {
    const int64_t begin = all * t / tiles;
    visit(phase + begin * rate, all * (t + 1) / tiles - begin);
  }
}

template <typename Visit>
void for_each_tile(int64_t outputs, int64_t rate, const Visit& visit) {
  for (int64_t phase = 0; phase < std::min(rate, outputs); ++phase) {
    for_each_tile_of(phase, outputs, rate, visit);
  }
}

// Columns [x0, x1), whole blocks, that the same taps [first, last) meet.
struct TileSegment {
  int64_t x0, x1;
  int first, last;
};

// The blocks of an output row of at least one block; the last begins early where the row does not
// end with a block.
inline std::vector<TileSegment> make_tile_segments(const ConvWindow& w) {
  std::vector<TileSegment> segments;
  const auto add = [&](int64_t x0) {
    const auto origin = [&](int64_t k) { return k * w.dilation_w - w.pad_w; };
    int first = 0;
    while (first < w.kernel_w && x0 + kRowBlock - 1 + origin(first) < 0) {
      ++first;
    }
    int last = static_cast<int>(w.kernel_w);
    while (last > first && x0 + origin(last - 1) >= w.in_w) {
      --last;
    }
    if (!segments.empty() && segments.back().x1 == x0 && segments.back().first == first &&
        segments.back().last == last) {
      segments.back().x1 += kRowBlock;
    } else {
      segments.push_back({x0, x0 + kRowBlock, first, last});
    }
  };
  for (int64_t x = 0; x + kRowBlock <= w.out_w; x += kRowBlock) {
    add(x);
  }
  if (w.out_w % kRowBlock != 0) {
    add(w.out_w - kRowBlock);
  }
  return segments;
}

// The tiles of a plane whose input rows are `in_stride` apart.
inline std::vector<RowTile> make_row_tiles(const ConvWindow& w, int64_t in_stride) {
  std::vector<RowTile> tiles;
  for_each_tile(w.out_h, w.dilation_h, [&](int64_t first, int64_t count) {
    RowTile tile;
    for (int64_t i = 0; i < kTileInputs; ++i) {
      const int64_t h = first - w.pad_h + i * w.dilation_h;
      tile.in[i] = i < count + 2 && h >= 0 && h < w.in_h ? h * in_stride : -1;
    }
    for (int64_t a = 0; a < kTileOutputs; ++a) {
      tile.out[a] = a < count ? (first + a * w.dilation_h) * w.out_w : -1;
    }
    tiles.push_back(tile);
  });
  return tiles;
}

// Channels-last maps (depthwise_tiles_cpu.cpp).
bool takes_pixel_tiles(const DepthwiseParams& params);
template <typename T>
void depthwise_pixel_tiles(const DepthwiseParams& params);

}  // namespace segkern
