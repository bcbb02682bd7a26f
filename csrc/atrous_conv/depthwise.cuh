// Depthwise convolution in both layouts. No atomics: every output is one thread's sum over its
// taps in raster order, without those that lie in the padding.
#pragma once

#include "epilogue.cuh"

namespace segkern {
namespace {

// Output rows that a thread of the walk makes one after the other.
constexpr int64_t kWalkRows = 16;

// How the outputs of stride 1 are dealt out: rows of one residue modulo the dilation form a class,
// a chain is kWalkRows rows of a class. Rows of a chain share all but one of their input rows.
struct WalkGrid {
  int64_t classes, chains;
  explicit WalkGrid(const ConvWindow& w)
      : classes(w.dilation_h < w.out_h ? w.dilation_h : w.out_h),
        chains(classes * (((w.out_h + classes - 1) / classes + kWalkRows - 1) / kWalkRows)) {}
};

// The threads of one launch: `threads` of them from image (channels-last) or plane `first` on.
// `rests` and `classes` are out_h and 1 for the direct kernel. Everything that is divided has 32
// bits.
struct DepthwiseSlice {
  int64_t first;
  int32_t threads, rests, classes;
};

// Position `i` of the columns in phase order: those of one residue modulo the dilation follow each
// other, so that the columns which the taps of neighbouring threads read are the same.
__device__ __forceinline__ int32_t phase_ordered(int32_t i, int32_t columns, int32_t dilation) {
  if (dilation >= columns) {
    return i;
  }
  const Split<int32_t> per_phase(columns, dilation);
  const int32_t longer = per_phase.inner * (per_phase.outer + 1);
  if (i < longer) {
    const Split<int32_t> at(i, per_phase.outer + 1);
    return at.outer + at.inner * dilation;
  }
  const Split<int32_t> at(i - longer, per_phase.outer);
  return per_phase.inner + at.outer + at.inner * dilation;
}

// What a thread of either kernel works on: kLanes channels of a column of one image, or a column
// of one plane. `rest` counts rows or chains.
template <typename T, int kLanes>
struct Place {
  int64_t channel;
  int32_t column, rest;
  int64_t step;  // elements from one column to the next
  const T* in;   // the channel's first pixel
  int64_t out;   // the same of the output, as an element's number

  __device__ __forceinline__ Place(const DepthwiseParams& p, const DepthwiseSlice& slice,
                                   int32_t thread) {
    const ConvWindow& w = p.window;
    const int32_t columns = static_cast<int32_t>(w.out_w);
    const Split<int32_t> vector(thread, p.channels_last ? p.channels / kLanes : 1);
    const Split<int32_t> across(vector.outer, columns);
    const Split<int32_t> down(across.outer, slice.rests);
    const int64_t outer = slice.first + down.outer;
    rest = down.inner;
    if (p.channels_last) {
      column = phase_ordered(across.inner, columns, static_cast<int32_t>(w.dilation_w));
      channel = static_cast<int64_t>(vector.inner) * kLanes;
      step = p.channels;
    } else {
      column = across.inner;
      channel = static_cast<int32_t>(outer) % static_cast<int32_t>(p.channels);
      step = 1;
    }
    const int64_t lead = p.channels_last ? channel : 0;
    in = static_cast<const T*>(p.in) + outer * w.in_h * w.in_w * step + lead;
    out = outer * w.out_h * w.out_w * step + lead;
  }
};

// Whether position `i` of a line with `up` - 1 zeros between its elements is one of these; then
// `i` becomes the element's number. The host has made sure that the line has less than 2^32.
__device__ __forceinline__ bool source(int64_t& i, int64_t length, int64_t up) {
  if (i < 0 || i > (length - 1) * up) {
    return false;
  }
  if (up == 1) {
    return true;
  }
  const Split<uint32_t> at(static_cast<uint32_t>(i), up);
  i = at.outer;
  return at.inner == 0;
}

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
    depthwise_walk_kernel(DepthwiseParams p, DepthwiseSlice slice) {
  using acc_t = decltype(widen(T{}));
  const ConvWindow& w = p.window;
  const int32_t thread = thread_index<int32_t>();
  if (thread >= slice.threads) {
    return;
  }
  const Place<T, kLanes> place(p, slice, thread);
  const Split<int32_t> band(place.rest, slice.classes);
  const int64_t classes = slice.classes;
  const int64_t first = band.inner + band.outer * kWalkRows * classes;
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
    const int64_t finished = first + (i - 2) * classes;
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
__global__ void __launch_bounds__(kBlockThreads, 3)
    depthwise_direct_kernel(DepthwiseParams p, DepthwiseSlice slice) {
  using acc_t = decltype(widen(T{}));
  const ConvWindow& w = p.window;
  const int32_t thread = thread_index<int32_t>();
  if (thread >= slice.threads) {
    return;
  }
  const Place<T, kLanes> place(p, slice, thread);
  acc_t sums[kLanes] = {};
  const int64_t top = place.rest * w.stride_h - w.pad_h;
  const int64_t left = place.column * w.stride_w - w.pad_w;
  for (int64_t kh = 0; kh < w.kernel_h; ++kh) {
    int64_t h = top + kh * w.dilation_h;
    if (!source(h, w.in_h, w.up_h)) {
      continue;
    }
    for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
      int64_t x = left + kw * w.dilation_w;
      if (!source(x, w.in_w, w.up_w)) {
        continue;
      }
      const auto tap = load_vec<T, kLanes>(place.in + (h * w.in_w + x) * place.step);
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
