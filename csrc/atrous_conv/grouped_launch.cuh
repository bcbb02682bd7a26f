// The grids of the convolution of small groups; `launch` as in max_pool_launch.cuh.
#pragma once

#include <stdexcept>

#include "../common/kernel_dispatch.cuh"
#include "grouped.cuh"
#include "sum_parts.cuh"

namespace segkern {

template <typename Launch>
void grouped_conv(const GroupedParams& p, const Launch& launch) {
  const int64_t pixels = p.window.out_h * p.window.out_w;
  GroupedGrid grid{};
  grid.blocks = (p.outputs + kGroupedOuts - 1) / kGroupedOuts;
  grid.walkers = p.channels_last ? (pixels + kGroupedPixels - 1) / kGroupedPixels
                                 : (pixels + kGroupedRun - 1) / kGroupedRun * 32;
  const int64_t threads = p.batch * p.groups * grid.blocks * grid.walkers;
  by_type(p.element, [&](auto type) {
    using T = typename decltype(type)::type;
    launch(p.channels_last ? grouped_conv_kernel<T, true> : grouped_conv_kernel<T, false>, threads,
           p, grid);
  });
}

// Warps that fill a large device twice, and pixels below which a part is not worth a warp.
constexpr int64_t kGroupedWarps = 16896;
constexpr int64_t kGroupedLeastPixels = 1024;

inline GroupedGradGrid grouped_grad_grid(const GroupedWeightGradParams& p) {
  GroupedGradGrid grid{};
  grid.out_blocks = static_cast<int32_t>((p.outputs + 3) / 4);
  grid.in_blocks = static_cast<int32_t>((p.inputs + 3) / 4);
  const int64_t units = p.groups * grid.out_blocks * grid.in_blocks * p.window.taps();
  const int64_t pixels = p.batch * p.window.out_h * p.window.out_w;
  const int64_t wanted = kGroupedWarps / units;
  const int64_t most = (pixels + kGroupedLeastPixels - 1) / kGroupedLeastPixels;
  const int64_t parts = wanted < most ? wanted : most;
  grid.parts = static_cast<int32_t>(parts < 1 ? 1 : parts);
  return grid;
}

// Elements of the workspace that grouped_weight_grad writes, of the accumulating type.
inline int64_t grouped_partial_count(const GroupedWeightGradParams& p) {
  return grouped_grad_grid(p).parts * p.groups * p.outputs * p.inputs * p.window.taps();
}

template <typename Launch>
void grouped_weight_grad(const GroupedWeightGradParams& p, void* partial, const Launch& launch) {
  if (p.batch * p.window.out_h * p.window.out_w > INT32_MAX) {
    throw std::runtime_error("grouped_conv2d: input must have less than 2**31 output pixels");
  }
  const GroupedGradGrid grid = grouped_grad_grid(p);
  const int64_t count = p.groups * p.outputs * p.inputs * p.window.taps();
  const int64_t warps =
      grid.parts * p.groups * grid.out_blocks * grid.in_blocks * p.window.taps();
  by_type(p.element, [&](auto type) {
    using T = typename decltype(type)::type;
    using acc_t = decltype(widen(T{}));
    acc_t* const sums = static_cast<acc_t*>(partial);
    launch(grouped_weight_grad_kernel<T>, warps * 32, p, grid, sums);
    launch(sum_parts_kernel<acc_t>, count, static_cast<const acc_t*>(sums),
           static_cast<int64_t>(grid.parts), count, static_cast<acc_t*>(p.weight_grad));
  });
}

}  // namespace segkern
