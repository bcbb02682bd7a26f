// Which depthwise kernel runs; `launch` as in max_pool_launch.cuh.
#pragma once

#include <stdexcept>

#include "../common/kernel_dispatch.cuh"
#include "depthwise.cuh"
#include "depthwise_weight_grad.cuh"
#include "sum_parts.cuh"

namespace segkern {

// Channels that a thread takes at once in channels-last: 8 or 16 bytes.
inline int64_t depthwise_lanes(Element element) { return element == Element::kFloat64 ? 2 : 4; }

inline bool aligned_to(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

inline bool depthwise_in_vectors(const DepthwiseParams& p) {
  const int64_t lanes = depthwise_lanes(p.element), bytes = lanes * element_size(p.element);
  return p.channels_last && p.channels % lanes == 0 && aligned_to(p.in, bytes) &&
         aligned_to(p.out, bytes) && aligned_to(p.residual, bytes);
}

// Whether the kernel for chains of rows takes it.
inline bool depthwise_walks(const ConvWindow& w) {
  return w.kernel_h == 3 && w.kernel_w == 3 && w.stride_h == 1 && w.stride_w == 1 &&
         w.up_h == 1 && w.up_w == 1;
}

// Throws where a count that the kernels keep in 32 bits has more.
inline void check_depthwise_counts(const ConvWindow& w, int64_t planes) {
  const auto line = [](int64_t length, int64_t up) { return up == 1 ? 0 : (length - 1) * up; };
  if (planes > INT32_MAX || w.taps() > INT32_MAX || line(w.in_h, w.up_h) > UINT32_MAX ||
      line(w.in_w, w.up_w) > UINT32_MAX) {
    throw std::runtime_error("depthwise_conv2d: input must have less than 2**31 planes and taps");
  }
}

template <typename Launch>
void depthwise_conv(const DepthwiseParams& p, const Launch& launch) {
  check_depthwise_counts(p.window, p.batch * p.channels);
  const bool vectors = depthwise_in_vectors(p), walks = depthwise_walks(p.window);
  const WalkGrid walk(p.window);
  const int64_t rests = walks ? walk.chains : p.window.out_h;
  const int64_t lanes = vectors ? depthwise_lanes(p.element) : 1;
  // Images or planes, as many in a launch as 32 bits count the threads of.
  const int64_t outers = p.channels_last ? p.batch : p.batch * p.channels;
  const int64_t each = (p.channels_last ? p.channels / lanes : 1) * p.window.out_w * rests;
  const int64_t at_once = (launch.int32_limit - kBlockThreads) / each;
  if (at_once == 0) {
    throw std::runtime_error("depthwise_conv2d: an image must have less than 2**31 outputs");
  }
  by_type(p.element, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kLanes = sizeof(T) == 8 ? 2 : 4;
    const auto kernel =
        walks ? (vectors ? depthwise_walk_kernel<T, kLanes> : depthwise_walk_kernel<T, 1>)
              : (vectors ? depthwise_direct_kernel<T, kLanes> : depthwise_direct_kernel<T, 1>);
    for (int64_t first = 0; first < outers; first += at_once) {
      const int64_t count = outers - first < at_once ? outers - first : at_once;
      const DepthwiseSlice slice{first, static_cast<int32_t>(count * each),
                                 static_cast<int32_t>(rests),
                                 static_cast<int32_t>(walks ? walk.classes : 1)};
      launch(kernel, count * each, p, slice);
    }
  });
}

// Elements of the workspace that depthwise_weight_grad writes, of the accumulating type.
inline int64_t depthwise_partial_count(const DepthwiseWeightGradParams& p) {
  return GradGrid(p).parts(p) * p.channels * p.window.taps();
}

template <typename Launch>
void depthwise_weight_grad(const DepthwiseWeightGradParams& p, void* partial,
                           const Launch& launch) {
  check_depthwise_counts(p.window, p.batch * p.channels);
  const GradGrid grid(p);
  const int64_t count = p.channels * p.window.taps();
  by_type(p.element, [&](auto type) {
    using T = typename decltype(type)::type;
    using acc_t = decltype(widen(T{}));
    acc_t* const sums = static_cast<acc_t*>(partial);
    launch(p.channels_last ? depthwise_weight_grad_kernel<T, true>
                           : depthwise_weight_grad_kernel<T, false>,
           grid.blocks(p) * kBlockThreads, p, grid, sums);
    launch(sum_parts_kernel<acc_t>, count, static_cast<const acc_t*>(sums), grid.parts(p), count,
           static_cast<acc_t*>(p.weight_grad));
  });
}

}  // namespace segkern
