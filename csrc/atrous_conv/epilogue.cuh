// What follows a convolution's sum in a kernel: activation(sum * scale + shift + residual).
#pragma once

#include "../common/device.cuh"
#include "conv_window.h"

namespace segkern {
namespace {

// `p` has the epilogue's fields; the residual is that of the output element, or 0. NaNs pass.
template <typename acc_t, typename Params>
__device__ __forceinline__ acc_t finish(const Params& p, int64_t channel, acc_t sum,
                                        acc_t residual) {
  if (p.scale) {
    sum *= static_cast<const acc_t*>(p.scale)[channel];
  }
  if (p.shift) {
    sum += static_cast<const acc_t*>(p.shift)[channel];
  }
  sum += residual;
  if (p.activation == Activation::kNone) {
    return sum;
  }
  const acc_t slope = p.activation == Activation::kPrelu
                          ? static_cast<const acc_t*>(p.slope)[channel * p.slope_step]
                          : acc_t{0};
  return sum < 0 ? (p.activation == Activation::kPrelu ? sum * slope : acc_t{0}) : sum;
}

// Finishes and stores kLanes neighbouring channels at element `at` of the output.
template <typename T, int kLanes, typename acc_t, typename Params>
__device__ __forceinline__ void finish_and_store(const Params& p, int64_t channel, int64_t at,
                                                 const acc_t (&sums)[kLanes]) {
  Vec<T, kLanes> y;
  if (p.residual) {
    const auto residual = load_vec<T, kLanes>(static_cast<const T*>(p.residual) + at);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      y.lane[lane] = Narrow<T>::from(
          finish<acc_t>(p, channel + lane, sums[lane], widen(residual.lane[lane])));
    }
  } else {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      y.lane[lane] = Narrow<T>::from(finish<acc_t>(p, channel + lane, sums[lane], acc_t{0}));
    }
  }
  store_vec(static_cast<T*>(p.out) + at, y);
}

}  // namespace
}  // namespace segkern
