// The tiles of a dense convolution and its launch; `launch` as in max_pool_launch.cuh, with the
// member with_shared of CudaLauncher.
#pragma once

#include <stdexcept>

#include "../common/kernel_dispatch.cuh"
#include "dense.cuh"
#include "dense_tiles.h"
#include "dense_weight_grad.cuh"
#include "sum_parts.cuh"

namespace segkern {

// Calls body(TypeTag<__half | __nv_bfloat16 | float>), the types of tensor cores' operands.
template <typename Body>
void by_multiplied_type(Element element, const Body& body) {
  switch (element) {
    case Element::kFloat16:
      return body(TypeTag<__half>{});
    case Element::kBFloat16:
      return body(TypeTag<__nv_bfloat16>{});
    default:
      return body(TypeTag<float>{});
  }
}

template <typename Launch>
void dense_conv(const DenseParams& p, const Launch& launch) {
  const DenseTiles tiles = dense_tiles(p, kDenseChannels);
  const int64_t blocks = p.batch * tiles.down * tiles.across * tiles.channels;
  const ConvWindow& w = p.window;
  // The kernel keeps positions, and steps, in 32 bits.
  if (w.in_h + 2 * w.pad_h > kMaxDenseExtent || w.in_w + 2 * w.pad_w > kMaxDenseExtent ||
      p.in_channels > kMaxDenseExtent / kMaxDenseTaps || p.out_channels > kMaxDenseExtent ||
      w.taps() > kMaxDenseTaps) {
    throw std::runtime_error("dense_conv2d: input must have fewer rows, columns, channels or taps");
  }
  by_multiplied_type(p.element, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch.with_shared(dense_conv_kernel<T>, blocks, kDenseShared, p, tiles);
  });
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
  by_multiplied_type(p.element, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch.with_shared(dense_weight_grad_kernel<T>, blocks, kGradShared, p, tiles, partial);
  });
  launch(sum_parts_kernel<float>, count, static_cast<const float*>(partial),
         static_cast<int64_t>(tiles.parts), count, p.weight_grad);
}

}  // namespace segkern
