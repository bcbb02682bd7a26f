// The launch of the fused separable convolution; `launch` has CudaLauncher's member with_shared.
#pragma once

#include <stdexcept>

#include "../common/kernel_dispatch.cuh"
#include "separable_mma.cuh"

namespace segkern {

template <typename Launch>
void separable_conv(const SeparableParams& p, const Launch& launch) {
  const ConvWindow& w = p.first.window;
  const int64_t channel_tiles = (p.outputs + kSeparableChannels - 1) / kSeparableChannels;
  const int64_t pixels = p.first.batch * w.out_h * w.out_w;
  const int64_t blocks = (pixels + kSeparablePixels - 1) / kSeparablePixels * channel_tiles;
  // The kernel keeps positions, a plane's pixels, channels and blocks in 32 bits.
  constexpr int64_t kMost = int64_t{1} << 29;
  if (w.in_h + 2 * w.pad_h > kMost || w.in_w + 2 * w.pad_w > kMost || w.taps() > INT32_MAX ||
      w.out_h * w.out_w > INT32_MAX || p.first.channels > INT32_MAX / 2 ||
      p.outputs > INT32_MAX / 2 || blocks > INT32_MAX) {
    throw std::runtime_error("separable_conv2d: input must have fewer pixels or channels");
  }
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch.with_shared(separable_conv_kernel<T>, blocks, kSeparableShared, p,
                       static_cast<int32_t>(channel_tiles));
  };
  switch (p.first.element) {
    case Element::kFloat16:
      return run(TypeTag<__half>{});
    case Element::kBFloat16:
      return run(TypeTag<__nv_bfloat16>{});
    default:
      return run(TypeTag<float>{});
  }
}

}  // namespace segkern
