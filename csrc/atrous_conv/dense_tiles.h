// How a dense convolution is cut into the tiles of blocks. Without torch or CUDA.
#pragma once

#include "dense.h"

namespace segkern {

constexpr int kDensePixels = 128;  // of a block's tile

// The tile of a block: height x width output pixels of one image, at most kDensePixels. Counts of
// tiles along the image and of blocks of output channels.
struct DenseTiles {
  int32_t height, width;
  int32_t down, across, channels;
};

// Tiles along one axis that a tap reaches, summed over the taps: what a block of such tiles works.
inline int64_t live_tiles(int64_t outputs, int64_t tile, int64_t taps, int64_t stride, int64_t pad,
                          int64_t rate, int64_t length) {
  int64_t count = 0;
  for (int64_t first = 0; first < outputs; first += tile) {
    const int64_t last = first + tile < outputs ? first + tile - 1 : outputs - 1;
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t shift = k * rate - pad;
      count += last * stride + shift >= 0 && first * stride + shift < length ? 1 : 0;
    }
  }
  return count;
}

// The shape of at most kDensePixels pixels that leaves the fewest tiles x taps, among those whose
// width divides the output's into at most 16 parts of about the same size, or is kDensePixels.
// `channels` are the output channels of a tile.
inline DenseTiles dense_tiles(const DenseParams& p, int64_t channels) {
  const ConvWindow& w = p.window;
  DenseTiles best{};
  int64_t least = INT64_MAX;
  for (int64_t parts = 1; parts <= 17; ++parts) {
    const int64_t part = parts == 17 ? kDensePixels : (w.out_w + parts - 1) / parts;
    const int64_t width = part < w.out_w ? part : w.out_w;
    if (width > kDensePixels) {
      continue;
    }
    const int64_t most = kDensePixels / width;
    const int64_t height = most < w.out_h ? most : w.out_h;
    const int64_t work =
        live_tiles(w.out_h, height, w.kernel_h, w.stride_h, w.pad_h, w.dilation_h, w.in_h) *
        live_tiles(w.out_w, width, w.kernel_w, w.stride_w, w.pad_w, w.dilation_w, w.in_w);
    if (work < least) {
      least = work;
      best.height = static_cast<int32_t>(height);
      best.width = static_cast<int32_t>(width);
    }
  }
  best.down = static_cast<int32_t>((w.out_h + best.height - 1) / best.height);
  best.across = static_cast<int32_t>((w.out_w + best.width - 1) / best.width);
  best.channels = static_cast<int32_t>((p.out_channels + channels - 1) / channels);
  return best;
}

}  // namespace segkern
