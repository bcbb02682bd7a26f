// Gradient of a depthwise weight: sums over parts of an image, which sum_parts_kernel adds up in
// a fixed order. The same bits every time.
#pragma once

#include "../common/device.cuh"
#include "conv_window.h"

namespace segkern {
namespace {

constexpr int kGradTaps = 9;       // taps of a block
constexpr int kGradChannels = 32;  // channels of a channels-last block
constexpr int kGradWarps = kBlockThreads / 32;
constexpr int64_t kGradPixels = 64;  // outputs of a thread, about

// How the work is cut: a part is a band of output rows of one image.
struct GradGrid {
  int64_t rows, bands, groups, chunks;
  explicit GradGrid(const DepthwiseWeightGradParams& p) {
    const ConvWindow& w = p.window;
    const int64_t walkers = p.channels_last ? kGradWarps : kBlockThreads;
    rows = walkers * kGradPixels / w.out_w;
    rows = rows < 1 ? 1 : rows;
    bands = (w.out_h + rows - 1) / rows;
    groups = p.channels_last ? (p.channels + kGradChannels - 1) / kGradChannels : p.channels;
    chunks = (w.taps() + kGradTaps - 1) / kGradTaps;
  }
  int64_t parts(const DepthwiseWeightGradParams& p) const { return p.batch * bands; }
  int64_t blocks(const DepthwiseWeightGradParams& p) const { return parts(p) * groups * chunks; }
};

// A block owns a part, kGradTaps taps and one channel (contiguous) or 32 (channels-last, a lane
// each); its threads, or its warps, walk over the part's outputs. Reads a gradient once for each
// kGradTaps taps and an input element once a tap, from the L1 cache but for the first time.
template <typename T, bool kChannelsLast>
__global__ void __launch_bounds__(kBlockThreads)
    depthwise_weight_grad_kernel(DepthwiseWeightGradParams p, GradGrid grid,
                                 decltype(widen(T{}))* partial) {
  using acc_t = decltype(widen(T{}));
  constexpr int kWidth = kChannelsLast ? kGradChannels : 1;
  __shared__ acc_t totals[kGradWarps][kGradTaps][kWidth];
  const ConvWindow& w = p.window;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  // A grid has less than 2^31 blocks, and none of these counts is larger.
  const Split<int32_t> chunk(static_cast<int32_t>(blockIdx.x), grid.chunks);
  const Split<int32_t> group(chunk.outer, grid.groups);
  const int64_t part = group.outer;
  const Split<int32_t> band(group.outer, grid.bands);
  const int64_t group_channel = group.inner * static_cast<int64_t>(kWidth);
  const int64_t channel = group_channel + (kChannelsLast ? lane : 0);
  const int64_t step = kChannelsLast ? p.channels : 1;
  const int64_t image = band.outer;
  const int64_t plane = kChannelsLast ? image : image * p.channels + channel;
  const int64_t lead = kChannelsLast ? channel : 0;
  const T* grad = static_cast<const T*>(p.grad) + plane * w.out_h * w.out_w * step + lead;
  const T* in = static_cast<const T*>(p.in) + plane * w.in_h * w.in_w * step + lead;
  const int64_t first_tap = static_cast<int64_t>(chunk.inner) * kGradTaps;
  const int64_t left = w.taps() - first_tap;
  const int taps = left < kGradTaps ? static_cast<int>(left) : kGradTaps;
  const Split<uint32_t> corner(static_cast<uint32_t>(first_tap), w.kernel_w);
  const int64_t bottom =
      (band.inner + 1) * grid.rows < w.out_h ? (band.inner + 1) * grid.rows : w.out_h;
  const int walkers = kChannelsLast ? kGradWarps : kBlockThreads;

  acc_t sums[kGradTaps] = {};
  if (channel < p.channels) {
    int64_t oh = band.inner * grid.rows, ow = kChannelsLast ? warp : thread;
    while (true) {
      while (ow >= w.out_w && oh < bottom) {
        ow -= w.out_w;
        ++oh;
      }
      if (oh >= bottom) {
        break;
      }
      const acc_t g = widen(grad[(oh * w.out_w + ow) * step]);
      const int64_t start = ow * w.stride_w - w.pad_w;
      int64_t h = oh * w.stride_h - w.pad_h + corner.outer * w.dilation_h;
      int64_t x = start + corner.inner * w.dilation_w, kw = corner.inner;
#pragma unroll
      for (int t = 0; t < kGradTaps; ++t) {
        if (t < taps && h >= 0 && h < w.in_h && x >= 0 && x < w.in_w) {
          sums[t] += g * widen(in[(h * w.in_w + x) * step]);
        }
        x += w.dilation_w;
        if (++kw == w.kernel_w) {
          kw = 0;
          x = start;
          h += w.dilation_h;
        }
      }
      ow += walkers;
    }
  }
#pragma unroll
  for (int t = 0; t < kGradTaps; ++t) {
    if constexpr (!kChannelsLast) {
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) {
        sums[t] += __shfl_down_sync(kFullWarp, sums[t], offset);
      }
    }
    if (kChannelsLast || lane == 0) {
      totals[warp][t][kChannelsLast ? lane : 0] = sums[t];
    }
  }
  __syncthreads();
  for (int i = thread; i < taps * kWidth; i += kBlockThreads) {
    const int t = i / kWidth, l = i % kWidth;
    const int64_t c = group_channel + l;
    if (c < p.channels) {
      acc_t total = 0;
      for (int from = 0; from < kGradWarps; ++from) {
        total += totals[from][t][l];
      }
      partial[(part * p.channels + c) * w.taps() + first_tap + t] = total;
    }
  }
}

}  // namespace
}  // namespace segkern
