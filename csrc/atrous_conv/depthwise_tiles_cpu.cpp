// CPU depthwise convolution of channels-last maps, 3x3 taps at stride 1. The pixels of one phase
// (those a rate apart) form a small map; it is made in tiles of 4x4 pixels for runs of channels, so
// that at large rates the inputs and outputs of a tile are a few streams through memory, each read
// or written once.
#include <torch/csrc/stable/ops.h>

#include "../common/stream_store.h"
#include "tile_plan.h"

namespace segkern {
namespace {

// Inputs of a row of tiles that are kept for the next one: about half a second-level cache.
constexpr int64_t kRowBytes = int64_t{512} << 10;
constexpr int64_t kChannelUnit = 64;
// Elements of work below which a task is not worth a thread.
constexpr int64_t kGrain = 32768;

template <typename T>
struct PixelTiles {
  const DepthwiseParams& p;
  const ConvWindow& w = p.window;
  const DepthwiseTiles<T>& tiles = depthwise_tiles<T>();
  const int64_t size = element_size(p.element);
  const bool stream = p.batch * p.channels * w.out_h * w.out_w * size >= kStreamBytes;
  const int64_t phases_h = std::min(w.dilation_h, w.out_h);
  const int64_t phases_w = std::min(w.dilation_w, w.out_w);
  const int64_t columns = ceil_div(w.out_w, w.dilation_w);
  const int64_t rows = ceil_div(ceil_div(w.out_h, w.dilation_h), kTileOutputs);  // of tiles
  const int64_t block = channel_block();
  const int64_t blocks = ceil_div(p.channels, block);
  const std::vector<T> weights = weights_by_tap();

  int64_t channel_block() const {
    const int64_t per_channel = std::min(rows * kTileOutputs, int64_t{kTileInputs}) * columns * size;
    const int64_t fitting = kRowBytes / per_channel / kChannelUnit * kChannelUnit;
    const int64_t count = ceil_div(p.channels, std::max(kChannelUnit, fitting));
    const int64_t even = ceil_div(ceil_div(p.channels, count), kTileChannels) * kTileChannels;
    // A last block that is too narrow for a vector is not worth having.
    return p.channels % even != 0 && p.channels % even < kTileChannels ? p.channels : even;
  }

  std::vector<T> weights_by_tap() const {
    std::vector<T> by_tap(9 * p.channels);
    const T* from = static_cast<const T*>(p.weight);
    const T* scale = static_cast<const T*>(p.scale);
    for (int64_t c = 0; c < p.channels; ++c) {
      for (int64_t k = 0; k < 9; ++k) {
        by_tap[k * p.channels + c] =
            from[9 * c + (p.flip ? 8 - k : k)] * (scale ? scale[c] : T{1});
      }
    }
    return by_tap;
  }

  int64_t tasks() const { return p.batch * blocks * phases_h * phases_w * rows; }

  // One row of tiles of one phase, for a block of channels.
  void task(int64_t index) const {
    const int64_t row = index % rows;
    const int64_t phase_w = index / rows % phases_w;
    const int64_t phase_h = index / rows / phases_w % phases_h;
    const int64_t c0 = index / rows / phases_w / phases_h % blocks * block;
    const int64_t n = index / rows / phases_w / phases_h / blocks;
    PixelTile<T> tile;
    tile.weight = weights.data() + c0;
    tile.weight_step = p.channels;
    tile.shift = p.shift ? static_cast<const T*>(p.shift) + c0 : nullptr;
    tile.slope = p.slope ? static_cast<const T*>(p.slope) + c0 * p.slope_step : nullptr;
    tile.slope_step = p.slope_step;
    tile.activation = static_cast<int>(p.activation);
    tile.channels = std::min(block, p.channels - c0);
    tile.stream = stream;
    int64_t i = 0;
    for_each_tile_of(phase_h, w.out_h, w.dilation_h, [&](int64_t oh, int64_t count_h) {
      if (i++ == row) {
        for_each_tile_of(phase_w, w.out_w, w.dilation_w, [&](int64_t ow, int64_t count_w) {
          place(tile, n, c0, oh, count_h, ow, count_w);
          tiles.pixels(tile, p.element);
        });
      }
    });
  }

  const char* at(const void* map, int64_t n, int64_t height, int64_t width, int64_t h, int64_t x,
                 int64_t c0) const {
    return static_cast<const char*>(map) + (((n * height + h) * width + x) * p.channels + c0) * size;
  }

  void place(PixelTile<T>& tile, int64_t n, int64_t c0, int64_t oh, int64_t count_h, int64_t ow,
             int64_t count_w) const {
    for (int64_t i = 0; i < kTileInputs; ++i) {
      const int64_t h = oh - w.pad_h + i * w.dilation_h;
      for (int64_t j = 0; j < kTileInputs; ++j) {
        const int64_t x = ow - w.pad_w + j * w.dilation_w;
        const bool inside = i < count_h + 2 && j < count_w + 2 && h >= 0 && h < w.in_h && x >= 0 &&
                            x < w.in_w;
        tile.in[i][j] = inside ? at(p.in, n, w.in_h, w.in_w, h, x, c0) : nullptr;
      }
    }
    for (int64_t a = 0; a < kTileOutputs; ++a) {
      for (int64_t b = 0; b < kTileOutputs; ++b) {
        const int64_t h = oh + a * w.dilation_h;
        const int64_t x = ow + b * w.dilation_w;
        const bool there = a < count_h && b < count_w;
        tile.out[a][b] =
            there ? const_cast<char*>(at(p.out, n, w.out_h, w.out_w, h, x, c0)) : nullptr;
        tile.residual[a][b] =
            there && p.residual ? at(p.residual, n, w.out_h, w.out_w, h, x, c0) : nullptr;
      }
    }
  }
};

}  // namespace

bool takes_pixel_tiles(const DepthwiseParams& p) {
  return takes_tiles(p.window) && p.channels >= kTileChannels && p.element != Element::kFloat16;
}

template <typename T>
void depthwise_pixel_tiles(const DepthwiseParams& p) {
  const PixelTiles<T> call{p};
  const int64_t cost = kTileOutputs * call.columns * call.block * p.window.taps();
  torch::stable::parallel_for(0, call.tasks(), std::max<int64_t>(1, kGrain / cost),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) {
                                  call.task(i);
                                }
                                stream_fence();
                              });
}

template void depthwise_pixel_tiles<float>(const DepthwiseParams&);
template void depthwise_pixel_tiles<double>(const DepthwiseParams&);

}  // namespace segkern
