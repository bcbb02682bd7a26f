// One pass of the exact Gaussian along one axis of a grid of pixels.
#pragma once

#include "../common/kernel_dispatch.cuh"
#include "separable_params.h"
#include "taps.h"

namespace segkern {
namespace {

// A thread owns one output; a block shares its taps, a chunk of them at a time. Neighbouring
// threads read neighbouring elements at every tap, along any axis. An output takes 4 bytes written
// and 2 r + 1 reads, nearly all of them from the caches: the pass is bound by their bandwidth for
// wide Gaussians, by memory for narrow ones. The width stays on the device, so that nothing waits
// for it; one that is not positive and finite gives NaN.
template <typename index_t>
__global__ void __launch_bounds__(kBlockThreads) separable_gaussian_kernel(SeparablePass p) {
  __shared__ float taps[kBlockThreads];
  const index_t i = thread_index<index_t>();
  const bool active = i < static_cast<index_t>(p.elements);
  const float width = *p.width;
  if (!(width > 0.0f && width < INFINITY)) {  // the whole block
    if (active) {
      p.out[i] = NAN;
    }
    return;
  }
  const int64_t radius = gaussian_radius(width, p.length);
  const float inverse = 1.0f / width;
  const index_t step = static_cast<index_t>(p.step);
  const index_t at = active ? i / step % static_cast<index_t>(p.length) : 0;
  const index_t above = static_cast<index_t>(p.length) - 1 - at;
  const float* in = p.in + (active ? i : 0);
  float sum = 0.0f;
  for (int64_t base = 0; base <= radius; base += kBlockThreads) {
    __syncthreads();
    const float offset = static_cast<float>(base + threadIdx.x) * inverse;
    const float square = offset * offset;
    taps[threadIdx.x] = expf(-0.5f * square) * (p.derivative ? square * inverse : 1.0f);
    __syncthreads();
    const int64_t left = radius - base;
    const int count = left < kBlockThreads - 1 ? static_cast<int>(left) + 1 : kBlockThreads;
    if (!active) {
      continue;
    }
    for (int t = 0; t < count; ++t) {
      const index_t k = static_cast<index_t>(base) + t;
      if (k == 0) {
        sum = taps[0] * *in;
        continue;
      }
      const float before = k <= at ? in[-(k * step)] : 0.0f;
      const float after = k <= above ? in[k * step] : 0.0f;
      sum += taps[t] * (before + after);
    }
  }
  if (active) {
    p.out[i] = sum;
  }
}

// `launch` is the CUDA launcher, or the one that runs kernels on the CPU in the tests.
template <typename Launch>
void separable_gaussian_pass(const SeparablePass& p, const Launch& launch) {
  by_index(launch, p.elements, [&](auto tag) {
    using index_t = typename decltype(tag)::type;
    launch(separable_gaussian_kernel<index_t>, p.elements, p);
  });
}

}  // namespace
}  // namespace segkern
