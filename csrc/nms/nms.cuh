// Non-maximum suppression in two launches, with nothing copied to the host: all pairs first, a bit
// each, by as many warps as there are words; then one block walks over the boxes, 32 at a time,
// which is as long as the chain of decisions is.
#pragma once

#include "../common/device.cuh"
#include "nms.h"

namespace segkern {
namespace {

// A warp makes a word: box i with boxes 32 w to 32 w + 31, those after i.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) nms_pairs_kernel(NmsParams p) {
  const Split<int64_t> at(thread_index<int64_t>() / 32, p.words);
  const int64_t i = at.outer, j = at.inner * 32 + threadIdx.x % 32;
  if (i >= p.count || at.inner < i / 32) {
    return;
  }
  const T* boxes = static_cast<const T*>(p.boxes);
  const bool hit = j > i && j < p.count && (!p.labels || p.labels[i] == p.labels[j]) &&
                   overlaps(boxes + 4 * i, boxes + 4 * j, static_cast<T>(p.threshold));
  const uint32_t word = __ballot_sync(kFullWarp, hit);
  if (threadIdx.x % 32 == 0) {
    p.pairs[i * p.words + at.inner] = word;
  }
}

// One block. A thread owns the words of boxes that go which are kBlockThreads apart.
__global__ void __launch_bounds__(kBlockThreads) nms_keep_kernel(NmsParams p) {
  __shared__ uint32_t gone_here, kept_here;
  for (int64_t w = threadIdx.x; w < p.words; w += kBlockThreads) {
    uint32_t gone = 0;
    for (int b = 0; b < 32; ++b) {
      const int64_t box = w * 32 + b;
      gone |= static_cast<uint32_t>(box >= p.count || !p.live[box]) << b;
    }
    p.gone[w] = gone;
  }
  for (int64_t c = 0; c < p.words; ++c) {
    if (c % kBlockThreads == threadIdx.x) {
      gone_here = p.gone[c];
    }
    __syncthreads();
    if (threadIdx.x < 32) {
      const int64_t box = c * 32 + threadIdx.x;
      const uint32_t takes = box < p.count ? p.pairs[box * p.words + c] : 0u;
      uint32_t gone = gone_here;
      for (int b = 0; b < 32; ++b) {
        const uint32_t taken = __shfl_sync(kFullWarp, takes, b);
        gone |= gone >> b & 1u ? 0u : taken;
      }
      if (box < p.count) {
        p.keep[box] = !(gone >> threadIdx.x & 1u);
      }
      if (threadIdx.x == 0) {
        kept_here = ~gone;
      }
    }
    __syncthreads();
    const uint32_t kept = kept_here;
    const int64_t own = c - c % kBlockThreads + threadIdx.x;
    for (int64_t w = own > c ? own : own + kBlockThreads; w < p.words; w += kBlockThreads) {
      uint32_t gone = p.gone[w];
      for (uint32_t rest = kept; rest; rest &= rest - 1) {
        gone |= p.pairs[(c * 32 + __ffs(static_cast<int>(rest)) - 1) * p.words + w];
      }
      p.gone[w] = gone;
    }
  }
}

}  // namespace
}  // namespace segkern
