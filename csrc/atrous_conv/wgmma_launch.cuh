// The launch of the dense convolution for Hopper; `launch` has the member persistent of
// HopperLauncher (wgmma_conv.cu).
#pragma once

#include <stdexcept>

#include "../common/kernel_dispatch.cuh"
#include "wgmma_conv.cuh"

namespace segkern {

// Output channels of a tile: 256 unless half of the last tile would be empty.
inline int wgmma_channels(int64_t out_channels) {
  const int64_t rest = out_channels % 256;
  return rest == 0 || rest > 128 ? 256 : 128;
}

template <int kChannels, typename Launch>
void wgmma_conv_of(const DenseParams& p, const Launch& launch) {
  const ConvWindow& w = p.window;
  const DenseTiles tiles = dense_tiles(p, kChannels);
  const int64_t count = p.batch * tiles.down * tiles.across * tiles.channels;
  const TensorMap pixels =
      make_tensor_map({p.in, p.element, 4, {p.in_channels, w.in_w, w.in_h, p.batch},
                       {kBoxDepth, tiles.width, tiles.height, 1}});
  const TensorMap weights = make_tensor_map({p.weight, p.element, 3,
                                             {p.in_channels, w.taps(), p.out_channels},
                                             {kBoxDepth, 1, kChannels}});
  constexpr int kBytes = WgmmaRing<kChannels>::kBytes;
  if (p.element == Element::kFloat16) {
    launch.persistent(wgmma_conv_kernel<__half, kChannels>, count, kWgmmaThreads, kBytes, p, tiles,
                      pixels, weights);
  } else {
    launch.persistent(wgmma_conv_kernel<__nv_bfloat16, kChannels>, count, kWgmmaThreads, kBytes, p,
                      tiles, pixels, weights);
  }
}

// Of stride 1 only.
template <typename Launch>
void wgmma_conv(const DenseParams& p, const Launch& launch) {
  const ConvWindow& w = p.window;
  // The kernel keeps positions, steps and tiles in 32 bits.
  const int64_t tiles = p.batch * w.out_h * w.out_w * ((p.out_channels + 127) / 128);
  if (w.in_h + 2 * w.pad_h > kMaxDenseExtent || w.in_w + 2 * w.pad_w > kMaxDenseExtent ||
      p.in_channels > kMaxDenseExtent / kMaxDenseTaps || p.out_channels > kMaxDenseExtent ||
      w.taps() > kMaxDenseTaps || tiles > INT32_MAX) {
    throw std::runtime_error("wgmma_conv2d: input must have fewer pixels, channels or taps");
  }
  if (w.stride_h != 1 || w.stride_w != 1) {
    throw std::runtime_error("wgmma_conv2d: stride must be 1");
  }
  if (wgmma_channels(p.out_channels) == 256) {
    wgmma_conv_of<256>(p, launch);
  } else {
    wgmma_conv_of<128>(p, launch);
  }
}

}  // namespace segkern
