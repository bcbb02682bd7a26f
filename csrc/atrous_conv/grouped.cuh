// Convolution of groups of a few channels, which tensor-core tiles would leave mostly empty.
#pragma once

#include "../common/device.cuh"
#include "epilogue.cuh"
#include "grouped.h"

namespace segkern {
namespace {

constexpr int kGroupedOuts = 4;    // output channels of a thread
constexpr int kGroupedPixels = 4;  // pixels of a thread
constexpr int kGroupedRun = 32 * kGroupedPixels;  // pixels of a warp in NCHW

// Threads of an image: (blocks of output channels) x (blocks of pixels).
struct GroupedGrid {
  int64_t blocks;  // of output channels in a group
  int64_t walkers;  // of the pixels of a plane
};

// A thread owns four output channels of a group at four pixels: neighbouring ones in channels-last,
// where neighbouring threads have the next channels, 32 apart in NCHW, where they have the next
// pixels. An input element is read once for each tap and four output channels, from the L1 cache
// but for the first time, as the weights are. Bound by the loads of that cache: eight for 16
// products. One order of summation: taps in raster order, then channels.
template <typename T, bool kChannelsLast>
__global__ void __launch_bounds__(kBlockThreads)
    grouped_conv_kernel(GroupedParams p, GroupedGrid grid) {
  using acc_t = decltype(widen(T{}));
  const ConvWindow& w = p.window;
  const int64_t pixels = w.out_h * w.out_w, channel_blocks = p.groups * grid.blocks;
  int64_t image, block, first;
  if constexpr (kChannelsLast) {
    const Split<int64_t> by_block(thread_index<int64_t>(), channel_blocks);
    const Split<int64_t> by_walker(by_block.outer, grid.walkers);
    image = by_walker.outer;
    block = by_block.inner;
    first = by_walker.inner * kGroupedPixels;
  } else {
    const Split<int64_t> by_walker(thread_index<int64_t>(), grid.walkers);
    const Split<int64_t> by_block(by_walker.outer, channel_blocks);
    image = by_block.outer;
    block = by_block.inner;
    first = by_walker.inner / 32 * kGroupedRun + by_walker.inner % 32;
  }
  if (image >= p.batch || first >= pixels) {
    return;
  }
  constexpr int64_t kApart = kChannelsLast ? 1 : 32;
  const Split<int64_t> by_group(block, grid.blocks);
  const int64_t group = by_group.outer, out_channel = by_group.inner * kGroupedOuts;
  const int64_t left = p.outputs - out_channel;
  const int outs = left < kGroupedOuts ? static_cast<int>(left) : kGroupedOuts;

  const int64_t in_plane = w.in_h * w.in_w, in_all = p.groups * p.inputs;
  const int64_t pixel_step = kChannelsLast ? in_all : 1;
  const int64_t channel_step = kChannelsLast ? 1 : in_plane;
  const T* const in = static_cast<const T*>(p.in) + image * in_plane * in_all +
                      group * p.inputs * channel_step;
  const int64_t taps = w.taps(), weights = p.inputs * p.outputs * taps;  // of a group
  const T* const weight =
      static_cast<const T*>(p.weight) + group * weights + out_channel * p.weight_out;
  int64_t top[kGroupedPixels], side[kGroupedPixels];
#pragma unroll
  for (int i = 0; i < kGroupedPixels; ++i) {
    const Split<int64_t> at(first + i * kApart, w.out_w);
    // A pixel behind the last is one that no tap brings inside.
    top[i] = first + i * kApart < pixels ? at.outer * w.stride_h - w.pad_h : w.in_h * w.up_h;
    side[i] = at.inner * w.stride_w - w.pad_w;
  }

  acc_t sums[kGroupedPixels][kGroupedOuts] = {};
  for (int64_t kh = 0; kh < w.kernel_h; ++kh) {
    for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
      const T* from[kGroupedPixels];
      bool any = false;
#pragma unroll
      for (int i = 0; i < kGroupedPixels; ++i) {
        const Split<int64_t> y(top[i] + kh * w.dilation_h, w.up_h);
        const Split<int64_t> x(side[i] + kw * w.dilation_w, w.up_w);
        const bool inside = y.inner == 0 && x.inner == 0 && y.outer >= 0 && y.outer < w.in_h &&
                            x.outer >= 0 && x.outer < w.in_w;
        from[i] = inside ? in + (y.outer * w.in_w + x.outer) * pixel_step : nullptr;
        any = any || inside;
      }
      if (!any) {
        continue;
      }
      const int64_t tap = kh * w.kernel_w + kw;
      const T* factor = weight + (p.flip ? taps - 1 - tap : tap);
#pragma unroll 2
      for (int64_t channel = 0; channel < p.inputs; ++channel) {
        acc_t factors[kGroupedOuts];
#pragma unroll
        for (int o = 0; o < kGroupedOuts; ++o) {
          factors[o] = o < outs ? widen(factor[o * p.weight_out]) : acc_t{0};
        }
#pragma unroll
        for (int i = 0; i < kGroupedPixels; ++i) {
          if (from[i] != nullptr) {
            const acc_t value = widen(from[i][channel * channel_step]);
#pragma unroll
            for (int o = 0; o < kGroupedOuts; ++o) {
              sums[i][o] += value * factors[o];
            }
          }
        }
        factor += p.weight_in;
      }
    }
  }

  const int64_t out_all = p.groups * p.outputs;
#pragma unroll
  for (int i = 0; i < kGroupedPixels; ++i) {
    const int64_t pixel = first + i * kApart;
#pragma unroll
    for (int o = 0; o < kGroupedOuts; ++o) {
      if (pixel < pixels && o < outs) {
        const int64_t channel = group * p.outputs + out_channel + o;
        const int64_t element = kChannelsLast ? (image * pixels + pixel) * out_all + channel
                                              : (image * out_all + channel) * pixels + pixel;
        const acc_t one[1] = {sums[i][o]};
        finish_and_store<T, 1, acc_t>(p, channel, element, one);
      }
    }
  }
}

// Blocks of 4 x 4 weights of a tap, over every group, and the parts that the pixels are in.
struct GroupedGradGrid {
  int32_t out_blocks, in_blocks;
  int32_t parts;
};

// A warp owns one tap of 4 output by 4 input channels of a group and a part of the pixels of all
// images, each lane every 32nd; the lanes' sums are added in a tree, those of the parts (part,
// C_out, inputs, taps) by sum_parts_kernel in a fixed order. Eight loads for 16 products.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    grouped_weight_grad_kernel(GroupedWeightGradParams p, GroupedGradGrid grid,
                               decltype(widen(T{}))* partial) {
  using acc_t = decltype(widen(T{}));
  const ConvWindow& w = p.window;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Split<int64_t> by_tap(thread_index<int64_t>() / 32, w.taps());
  const Split<int64_t> by_in(by_tap.outer, grid.in_blocks);
  const Split<int64_t> by_out(by_in.outer, grid.out_blocks);
  const Split<int64_t> by_group(by_out.outer, p.groups);
  const int64_t part = by_group.outer, group = by_group.inner;
  if (part >= grid.parts) {
    return;
  }
  const int64_t out = by_out.inner * 4, in = by_in.inner * 4;
  const int outs = static_cast<int>(p.outputs - out < 4 ? p.outputs - out : 4);
  const int ins = static_cast<int>(p.inputs - in < 4 ? p.inputs - in : 4);
  const int64_t down = by_tap.inner / w.kernel_w * w.dilation_h - w.pad_h;
  const int64_t across = by_tap.inner % w.kernel_w * w.dilation_w - w.pad_w;

  const int64_t out_all = p.groups * p.outputs, in_all = p.groups * p.inputs;
  const int64_t out_plane = w.out_h * w.out_w, in_plane = w.in_h * w.in_w;
  const bool last_channels = p.channels_last;
  const int64_t grad_step = last_channels ? 1 : out_plane, in_step = last_channels ? 1 : in_plane;
  const int64_t grad_pixel = last_channels ? out_all : 1, in_pixel = last_channels ? in_all : 1;
  const T* const grad = static_cast<const T*>(p.grad) + (group * p.outputs + out) * grad_step;
  const T* const input = static_cast<const T*>(p.in) + (group * p.inputs + in) * in_step;
  const int64_t pixels = p.batch * out_plane;  // less than 2^31
  const int64_t last = pixels * (part + 1) / grid.parts;

  acc_t sums[4][4] = {};
  for (int64_t pixel = pixels * part / grid.parts + lane; pixel < last; pixel += 32) {
    const Split<int32_t> by_row(static_cast<int32_t>(pixel), w.out_w);
    const Split<int32_t> by_image(by_row.outer, w.out_h);
    const int64_t y = by_image.inner * w.stride_h + down, x = by_row.inner * w.stride_w + across;
    if (y < 0 || y >= w.in_h || x < 0 || x >= w.in_w) {
      continue;
    }
    const int64_t image = by_image.outer;
    const T* const g = grad + image * out_all * out_plane +
                       (static_cast<int64_t>(by_image.inner) * w.out_w + by_row.inner) * grad_pixel;
    const T* const v = input + image * in_all * in_plane + (y * w.in_w + x) * in_pixel;
    acc_t values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      values[i] = i < ins ? widen(v[i * in_step]) : acc_t{0};
    }
#pragma unroll
    for (int o = 0; o < 4; ++o) {
      const acc_t factor = o < outs ? widen(g[o * grad_step]) : acc_t{0};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[o][i] += factor * values[i];
      }
    }
  }
#pragma unroll
  for (int o = 0; o < 4; ++o) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) {
        sums[o][i] += __shfl_down_sync(kFullWarp, sums[o][i], offset);
      }
      if (lane == 0 && o < outs && i < ins) {
        const int64_t channel = group * p.outputs + out + o;
        partial[((part * out_all + channel) * p.inputs + in + i) * w.taps() + by_tap.inner] =
            sums[o][i];
      }
    }
  }
}

}  // namespace
}  // namespace segkern
