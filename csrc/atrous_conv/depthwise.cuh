// Depthwise convolution in both layouts. No atomics: every output is one thread's sum over its
// taps in raster order, without those that lie in the padding.
#pragma once

#include "../common/host_device.h"
#include "epilogue.cuh"

namespace segkern {
namespace {

// Output rows that a thread of the walk makes one after the other.
constexpr int64_t kWalkRows = 16;

// How the outputs of stride 1 are dealt out: rows of one residue modulo the dilation form a class,
// a chain is kWalkRows rows of a class. Rows of a chain share all but one of their input rows.
struct WalkGrid {
  int64_t classes, chains;
  SEGKERN_HOST_DEVICE explicit WalkGrid(const ConvWindow& w)
      : classes(w.dilation_h < w.out_h ? w.dilation_h : w.out_h),
        chains(classes * (((w.out_h + classes - 1) / classes + kWalkRows - 1) / kWalkRows)) {}
};

// Position `i` of the columns in phase order: those of one residue modulo the dilation follow each
// other, so that the columns which the taps of neighbouring threads read are the same.
__device__ __forceinline__ int64_t phase_ordered(int64_t i, int64_t columns, int64_t dilation) {
  if (dilation >= columns) {
    return i;
  }
  const Split<int64_t> per_phase(columns, dilation);
  const int64_t longer = per_phase.inner * (per_phase.outer + 1);
  if (i < longer) {
    const Split<int64_t> at(i, per_phase.outer + 1);
    return at.outer + at.inner * dilation;
  }
  const Split<int64_t> at(i - longer, per_phase.outer);
  return per_phase.inner + at.outer + at.inner * dilation;
}

// What a thread of either kernel works on: kLanes channels of a column of one image, or a column
// of one plane. `rest` counts rows or chains.
template <typename T, int kLanes>
struct Place {
  int64_t channel, column, rest;
  int64_t step;  // elements from one column to the next
  const T* in;   // the channel's first pixel
  int64_t out;   // the same of the output, as an element's number

  __device__ __forceinline__ Place(const DepthwiseParams& p, int64_t thread, int64_t rests) {
    const ConvWindow& w = p.window;
    const Split<int64_t> vector(thread, p.channels_last ? p.channels / kLanes : 1);
    const Split<int64_t> across(vector.outer, w.out_w);
    const Split<int64_t> down(across.outer, rests);
    column = p.channels_last ? phase_ordered(across.inner, w.out_w, w.dilation_w) : across.inner;
    rest = down.inner;
    step = p.channels_last ? p.channels : 1;
    channel = p.channels_last ? vector.inner * kLanes : down.outer % p.channels;
    const int64_t first = p.channels_last ? channel : 0;
    in = static_cast<const T*>(p.in) + down.outer * w.in_h * w.in_w * step + first;
    out = down.outer * w.out_h * w.out_w * step + first;
  }
};

// The weight is (taps, C) in channels-last and (C, taps) otherwise.
template <typename acc_t>
__device__ __forceinline__ acc_t weight_of(const DepthwiseParams& p, int64_t channel, int64_t tap) {
  const int64_t taps = p.window.taps();
  const int64_t k = p.flip ? taps - 1 - tap : tap;
  return static_cast<const acc_t*>(
      p.weight)[p.channels_last ? k * p.channels + channel : channel * taps + k];
}

// 3x3, stride 1. A thread owns a chain (WalkGrid) of one column and kLanes channels, with its
// weights and the sums of three outputs in registers: an input row is read once a chain, at its
// three columns, and added to the outputs it belongs to. Reads each input element three times, of
// which two hit the L1 cache (columns in phase order, or a plane's row across a warp), whatever
// the rate; writes each output once. Bound by memory.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kBlockThreads)
    depthwise_walk_kernel(DepthwiseParams p, int64_t threads) {
  using acc_t = decltype(widen(T{}));
  const ConvWindow& w = p.window;
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const WalkGrid grid(w);
  const Place<T, kLanes> place(p, thread, grid.chains);
  const Split<int64_t> band(place.rest, grid.classes);
  const int64_t first = band.inner + band.outer * kWalkRows * grid.classes;
  acc_t weights[9][kLanes];
#pragma unroll
  for (int k = 0; k < 9; ++k) {
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      weights[k][lane] = weight_of<acc_t>(p, place.channel + lane, k);
    }
  }
  const int64_t x = place.column - w.pad_w;
  const int64_t offset[3] = {x * place.step, (x + w.dilation_w) * place.step,
                             (x + 2 * w.dilation_w) * place.step};
  const bool inside[3] = {x >= 0 && x < w.in_w, x + w.dilation_w >= 0 && x + w.dilation_w < w.in_w,
                          x + 2 * w.dilation_w >= 0 && x + 2 * w.dilation_w < w.in_w};
  const int64_t row_step = w.in_w * place.step;
  acc_t next[kLanes] = {}, now[kLanes] = {};  // of the row after the one that is finished, and it
#pragma unroll 1
  for (int64_t i = 0; i < kWalkRows + 2; ++i) {
    const int64_t finished = first + (i - 2) * grid.classes;
    if (finished >= w.out_h) {
      return;
    }
    const int64_t h = first - w.pad_h + i * w.dilation_h;
    acc_t started[kLanes] = {};
    if (h >= 0 && h < w.in_h) {
      const T* row = place.in + h * row_step;
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        if (inside[k]) {
          const auto tap = load_vec<T, kLanes>(row + offset[k]);
#pragma unroll
          for (int lane = 0; lane < kLanes; ++lane) {
            const acc_t v = widen(tap.lane[lane]);
            started[lane] += weights[k][lane] * v;
            next[lane] += weights[3 + k][lane] * v;
            now[lane] += weights[6 + k][lane] * v;
          }
        }
      }
    }
    if (i >= 2) {
      const int64_t at = place.out + (finished * w.out_w + place.column) * place.step;
      finish_and_store<T, kLanes, acc_t>(p, place.channel, at, now);
    }
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      now[lane] = next[lane];
      next[lane] = started[lane];
    }
  }
}

// Any kernel, stride and zeros between. A thread owns one output of kLanes channels and reads
// each of its taps that lies inside.
template <typename T, int kLanes>
__global__ void __launch_bounds__(kBlockThreads)
    depthwise_direct_kernel(DepthwiseParams p, int64_t threads) {
  using acc_t = decltype(widen(T{}));
  const ConvWindow& w = p.window;
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const Place<T, kLanes> place(p, thread, w.out_h);
  acc_t sums[kLanes] = {};
  for (int64_t kh = 0; kh < w.kernel_h; ++kh) {
    const int64_t h = place.rest * w.stride_h - w.pad_h + kh * w.dilation_h;
    if (h < 0 || h % w.up_h != 0 || h / w.up_h >= w.in_h) {
      continue;
    }
    const T* row = place.in + h / w.up_h * w.in_w * place.step;
    for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
      const int64_t x = place.column * w.stride_w - w.pad_w + kw * w.dilation_w;
      if (x < 0 || x % w.up_w != 0 || x / w.up_w >= w.in_w) {
        continue;
      }
      const auto tap = load_vec<T, kLanes>(row + x / w.up_w * place.step);
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        sums[lane] += weight_of<acc_t>(p, place.channel + lane, kh * w.kernel_w + kw) *
                      widen(tap.lane[lane]);
      }
    }
  }
  const int64_t at = place.out + (place.rest * w.out_w + place.column) * place.step;
  finish_and_store<T, kLanes, acc_t>(p, place.channel, at, sums);
}

}  // namespace
}  // namespace segkern
