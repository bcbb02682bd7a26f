// Block minimum and mean field pass kernels; what they compute is in block_min.h.
//
// All of them are bound by memory: every element is read once (mean field reads its own results
// back from the first-level cache), every result written once. A thread owns a pixel and walks its
// channels, so that neighbouring threads read neighbouring elements of contiguous planes; in
// channels-last a thread's channels share lines, which the first-level cache holds.
#pragma once

#include "../common/device.cuh"
#include "block_min.h"

namespace segkern {
namespace {

// The smallest of `block` elements from `in`, `step` apart; a NaN is smaller than any number.
template <typename scalar_t>
__device__ __forceinline__ scalar_t smallest(const scalar_t* in, int64_t step, int64_t block,
                                             uint8_t& code) {
  scalar_t best = in[0];
  code = 0;
  for (int64_t k = 1; k < block; ++k) {
    const scalar_t v = in[k * step];
    const auto wide = widen(v), held = widen(best);
    if (wide < held || (wide != wide && held == held)) {
      best = v;
      code = static_cast<uint8_t>(k);
    }
  }
  return best;
}

// The gradient `value` at the block's element `code`, zeros at the others.
template <typename scalar_t>
__device__ __forceinline__ void route(scalar_t* to, int64_t step, int64_t block, uint8_t code,
                                      scalar_t value) {
  const scalar_t zero = Narrow<scalar_t>::from(0);
  for (int64_t k = 0; k < block; ++k) {
    to[k * step] = k == code ? value : zero;
  }
}

// A thread owns one result: in memory order, so that writes are coalesced in both layouts.
struct BlockResult {
  int64_t narrow, wide, step;

  template <typename index_t>
  __device__ __forceinline__ BlockResult(const BlockMinParams& p, index_t index) : narrow(index) {
    if (p.channels_last) {
      wide = narrow * p.block;
      step = 1;
    } else {
      const Split<index_t> at(index, p.area);
      wide = static_cast<int64_t>(at.outer) * p.block * p.area + at.inner;
      step = p.area;
    }
  }
};

template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads) block_min_fwd_kernel(BlockMinParams p) {
  const index_t index = thread_index<index_t>();
  if (index >= p.items * p.labels * p.area) {
    return;
  }
  const BlockResult at(p, index);
  uint8_t code;
  static_cast<scalar_t*>(p.out)[at.narrow] = smallest(
      static_cast<const scalar_t*>(p.wide_in) + at.wide, at.step, p.block, code);
  p.codes[at.narrow] = code;
}

template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads) block_min_bwd_kernel(BlockMinParams p) {
  const index_t index = thread_index<index_t>();
  if (index >= p.items * p.labels * p.area) {
    return;
  }
  const BlockResult at(p, index);
  route(static_cast<scalar_t*>(p.wide_out) + at.wide, at.step, p.block, p.codes[at.narrow],
        static_cast<const scalar_t*>(p.grad)[at.narrow]);
}

// Two walks over a pixel's labels: one finds the minima, the largest logit and, by rescaling, the
// sum of exponentials; the other subtracts the minima again, which the codes name.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads) mean_field_pass_fwd_kernel(BlockMinParams p) {
  using wide_t = decltype(widen(scalar_t{}));
  const index_t index = thread_index<index_t>();
  if (index >= p.items * p.area) {
    return;
  }
  const Split<index_t> pixel(index, p.area);
  const PixelChannels at(p, pixel.outer, pixel.inner);
  const scalar_t* unary = static_cast<const scalar_t*>(p.unary) + at.narrow;
  const scalar_t* penalty = static_cast<const scalar_t*>(p.wide_in) + at.wide;
  scalar_t* out = static_cast<scalar_t*>(p.out) + at.narrow;
  uint8_t* codes = p.codes + at.narrow;
  wide_t most = -INFINITY, total = 0;
  for (int64_t u = 0; u < p.labels; ++u) {
    uint8_t code;
    const scalar_t least = smallest(penalty + u * p.block * at.step, at.step, p.block, code);
    codes[u * at.step] = code;
    const wide_t x = widen(unary[u * at.step]) - widen(least);
    if (x > most) {
      total = total * exp(most - x) + 1;
      most = x;
    } else if (x != -INFINITY) {  // a NaN too: it shall spread
      total += exp(x - most);
    }
  }
  // NaN where no label is possible, or one infinitely more than others.
  const wide_t shift = most + log(total) + (most - most);
  for (int64_t u = 0; u < p.labels; ++u) {
    const wide_t x = widen(unary[u * at.step]) -
                     widen(penalty[(u * p.block + codes[u * at.step]) * at.step]);
    const wide_t result = x - shift;
    out[u * at.step] = Narrow<scalar_t>::from(p.log ? result : exp(result));
  }
}

// With q the marginals and G the gradient: of logarithms G - q sum(G), of marginals
// q (G - sum(q G)); minus that goes to the penalties that were the smallest.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads) mean_field_pass_bwd_kernel(BlockMinParams p) {
  using wide_t = decltype(widen(scalar_t{}));
  const index_t index = thread_index<index_t>();
  if (index >= p.items * p.area) {
    return;
  }
  const Split<index_t> pixel(index, p.area);
  const PixelChannels at(p, pixel.outer, pixel.inner);
  const scalar_t* result = static_cast<const scalar_t*>(p.result) + at.narrow;
  const scalar_t* grad = static_cast<const scalar_t*>(p.grad) + at.narrow;
  const uint8_t* codes = p.codes + at.narrow;
  wide_t total = 0;
  for (int64_t u = 0; u < p.labels; ++u) {
    const wide_t g = widen(grad[u * at.step]);
    total += p.log ? g : g * widen(result[u * at.step]);
  }
  for (int64_t u = 0; u < p.labels; ++u) {
    const wide_t g = widen(grad[u * at.step]), r = widen(result[u * at.step]);
    const wide_t x = p.log ? g - exp(r) * total : r * (g - total);
    static_cast<scalar_t*>(p.out)[at.narrow + u * at.step] = Narrow<scalar_t>::from(x);
    route(static_cast<scalar_t*>(p.wide_out) + at.wide + u * p.block * at.step, at.step, p.block,
          codes[u * at.step], Narrow<scalar_t>::from(-x));
  }
}

}  // namespace
}  // namespace segkern
