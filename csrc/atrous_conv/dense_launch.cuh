// The tiles of a dense convolution and its launch; `launch` as in max_pool_launch.cuh, with the
// member with_shared of CudaLauncher.
#pragma once

#include <stdexcept>

#include "../common/kernel_dispatch.cuh"
#include "dense.cuh"
#include "dense_weight_grad.cuh"
#include "sum_parts.cuh"

namespace segkern {

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
inline DenseTiles dense_tiles(const DenseParams& p) {
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
  best.channels = static_cast<int32_t>((p.out_channels + kDenseChannels - 1) / kDenseChannels);
  return best;
}

template <typename Launch>
void dense_conv(const DenseParams& p, const Launch& launch) {
  const DenseTiles tiles = dense_tiles(p);
  const int64_t blocks = p.batch * tiles.down * tiles.across * tiles.channels;
  const ConvWindow& w = p.window;
  // The kernel keeps positions, and steps, in 32 bits.
  if (w.in_h + 2 * w.pad_h > kMaxDenseExtent || w.in_w + 2 * w.pad_w > kMaxDenseExtent ||
      p.in_channels > kMaxDenseExtent / kMaxDenseTaps || p.out_channels > kMaxDenseExtent ||
      w.taps() > kMaxDenseTaps) {
    throw std::runtime_error("dense_conv2d: input must have fewer rows, columns, channels or taps");
  }
  if (p.element == Element::kFloat16) {
    launch.with_shared(dense_conv_kernel<__half>, blocks, kDenseShared, p, tiles);
  } else {
    launch.with_shared(dense_conv_kernel<__nv_bfloat16>, blocks, kDenseShared, p, tiles);
  }
}

// Blocks that fill a large device twice, and pixels below which a part is not worth a block.
constexpr int64_t kGradBlocks = 528;
constexpr int64_t kGradLeastPixels = 512;

inline DenseGradTiles dense_grad_tiles(const DenseWeightGradParams& p) {
  DenseGradTiles tiles{};
  tiles.out_tiles = static_cast<int32_t>((p.out_channels + kGradTile - 1) / kGradTile);
  tiles.in_tiles = static_cast<int32_t>((p.in_channels + kGradTile - 1) / kGradTile);
  const int64_t pixels = p.batch * p.window.out_h * p.window.out_w;
  const int64_t wanted = kGradBlocks / (tiles.out_tiles * tiles.in_tiles * p.window.taps());
  const int64_t most = (pixels + kGradLeastPixels - 1) / kGradLeastPixels;
  const int64_t parts = wanted < most ? wanted : most;
  tiles.parts = static_cast<int32_t>(parts < 1 ? 1 : parts);
  return tiles;
}

// Floats of the workspace that dense_weight_grad writes.
inline int64_t dense_partial_count(const DenseWeightGradParams& p) {
  return dense_grad_tiles(p).parts * p.out_channels * p.window.taps() * p.in_channels;
}

template <typename Launch>
void dense_weight_grad(const DenseWeightGradParams& p, float* partial, const Launch& launch) {
  const ConvWindow& w = p.window;
  if (p.batch * w.out_h * w.out_w > INT32_MAX || w.in_h + 2 * w.pad_h > kMaxDenseExtent ||
      w.in_w + 2 * w.pad_w > kMaxDenseExtent || w.taps() > kMaxDenseTaps) {
    throw std::runtime_error("dense_conv2d: input must have fewer pixels or taps");
  }
  const DenseGradTiles tiles = dense_grad_tiles(p);
  const int64_t blocks = tiles.parts * w.taps() * tiles.out_tiles * tiles.in_tiles;
  const int64_t count = p.out_channels * w.taps() * p.in_channels;
  if (p.element == Element::kFloat16) {
    launch.with_shared(dense_weight_grad_kernel<__half>, blocks, kGradShared, p, tiles, partial);
  } else {
    launch.with_shared(dense_weight_grad_kernel<__nv_bfloat16>, blocks, kGradShared, p, tiles,
                       partial);
  }
  launch(sum_parts_kernel<float>, count, static_cast<const float*>(partial),
         static_cast<int64_t>(tiles.parts), count, p.weight_grad);
}

}  // namespace segkern
