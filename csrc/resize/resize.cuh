// Bilinear resampling kernels; what they compute is in resize.h, where pixels read in source.h.
//
// All of them are bound by memory. The larger map goes through once; the smaller one is read from
// the caches. Sums have one order: no atomics.
#pragma once

#include "../common/device.cuh"
#include "resize.h"
#include "source.h"

namespace segkern {
namespace {

// Rows that a thread owns, so that what it finds out about its column and reads serves all of them.
constexpr int kFwdRows = 8;
constexpr int kBwdRows = 4;

// Output columns whose sums over rows a block holds in shared memory.
constexpr int kSpan = 1024;
constexpr int kResizeWarps = kBlockThreads / 32;

template <typename scalar_t>
using wide_of = decltype(widen(scalar_t{}));

// The two axes of a call, as the host sets them up.
template <typename T>
struct ResizeAxes {
  AxisMap<T> down, across;
};

template <typename T>
ResizeAxes<T> resize_axes(const ResizeParams& p) {
  return {AxisMap<T>(p.in_h, p.out_h, p.align_corners),
          AxisMap<T>(p.in_w, p.out_w, p.align_corners)};
}

// The weight of input pixel `index` in an output pixel that reads it.
template <typename T>
__device__ __forceinline__ T weight_of(const Source<T>& source, int64_t index) {
  return source.index == index ? T(1) - source.weight : source.weight;
}

// Output pixels that read an input pixel.
template <typename T>
struct Readers {
  int64_t begin, end;
  __device__ __forceinline__ Readers(const AxisMap<T>& axis, int64_t index)
      : begin(axis.first_from(index - 1)), end(axis.first_from(index + 1)) {}
};

// A thread owns kVector neighbours in memory, columns or channels, of kFwdRows output rows; rows
// that are next to each other share the input rows, which it blends along the columns once.
// `lanes` threads make a row, `bands` of rows a map.
template <typename scalar_t, typename index_t, bool kLast, int kVector>
__global__ void __launch_bounds__(kBlockThreads)
    resize_fwd_kernel(ResizeParams p, ResizeAxes<wide_of<scalar_t>> axes, int64_t lanes,
                      int64_t bands, int64_t threads) {
  using T = wide_of<scalar_t>;
  constexpr int kColumns = kLast ? 1 : kVector;
  const index_t index = thread_index<index_t>();
  if (index >= threads) {
    return;
  }
  const Split<index_t> by_lane(index, lanes);
  const Split<index_t> by_band(by_lane.outer, bands);
  const int64_t width = kLast ? p.channels : 1;
  int64_t column = static_cast<int64_t>(by_lane.inner) * kVector, channel = 0;
  if (kLast) {
    const Split<index_t> by_channel(by_lane.inner, p.channels / kVector);
    column = by_channel.outer;
    channel = static_cast<int64_t>(by_channel.inner) * kVector;
  }
  int64_t left[kColumns];
  T weight[kColumns];
#pragma unroll
  for (int j = 0; j < kColumns; ++j) {
    const Source<T> source = axes.across.source(column + j);
    left[j] = source.index * width + channel;
    weight[j] = source.weight;
  }
  const int64_t in_row = p.in_w * width, out_row = p.out_w * width, map = by_band.outer;
  const scalar_t* in = static_cast<const scalar_t*>(p.from) + map * p.in_h * in_row;
  scalar_t* out = static_cast<scalar_t*>(p.to) + map * p.out_h * out_row + column * width + channel;

  const auto across = [&](int64_t row, T(&made)[kVector]) {
    const scalar_t* at = in + row * in_row;
    if constexpr (kLast) {
      const Vec<scalar_t, kVector> a = load_vec<scalar_t, kVector>(at + left[0]);
      const bool two = weight[0] != T(0);
      const Vec<scalar_t, kVector> b =
          two ? load_vec<scalar_t, kVector>(at + left[0] + width) : a;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        made[j] = (T(1) - weight[0]) * widen(a.lane[j]);
        if (two) {
          made[j] += weight[0] * widen(b.lane[j]);
        }
      }
    } else {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        made[j] = (T(1) - weight[j]) * widen(at[left[j]]);
        if (weight[j] != T(0)) {
          made[j] += weight[j] * widen(at[left[j] + 1]);
        }
      }
    }
  };

  const int64_t first = static_cast<int64_t>(by_band.inner) * kFwdRows;
  const int64_t last = first + kFwdRows < p.out_h ? first + kFwdRows : p.out_h;
  int64_t held = -2;  // the input row in `top`
  bool both = false;  // and whether the one below is in `bottom`
  T top[kVector] = {}, bottom[kVector] = {};
  for (int64_t y = first; y < last; ++y) {
    const Source<T> source = axes.down.source(y);
    if (source.index != held) {
      if (both && source.index == held + 1) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          top[j] = bottom[j];
        }
      } else {
        across(source.index, top);
      }
      held = source.index;
      both = false;
    }
    Vec<scalar_t, kVector> made;
    if (source.weight == T(0)) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        made.lane[j] = Narrow<scalar_t>::from(top[j]);
      }
    } else {
      if (!both) {
        across(source.index + 1, bottom);
        both = true;
      }
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        made.lane[j] =
            Narrow<scalar_t>::from((T(1) - source.weight) * top[j] + source.weight * bottom[j]);
      }
    }
    store_vec(out + y * out_row, made);
  }
}

// Few output pixels per input pixel. A thread owns a column, or kVector channels of one, of
// kBwdRows input rows: every output row that reads them is summed along its columns once, and goes
// to the input row above it and to the one below.
template <typename scalar_t, typename index_t, bool kLast, int kVector>
__global__ void __launch_bounds__(kBlockThreads, 2)
    resize_bwd_kernel(ResizeParams p, ResizeAxes<wide_of<scalar_t>> axes, int64_t lanes,
                      int64_t bands, int64_t threads) {
  using T = wide_of<scalar_t>;
  const index_t index = thread_index<index_t>();
  if (index >= threads) {
    return;
  }
  const Split<index_t> by_lane(index, lanes);
  const Split<index_t> by_band(by_lane.outer, bands);
  const int64_t width = kLast ? p.channels : 1;
  int64_t column = by_lane.inner, channel = 0;
  if (kLast) {
    const Split<index_t> by_channel(by_lane.inner, p.channels / kVector);
    column = by_channel.outer;
    channel = static_cast<int64_t>(by_channel.inner) * kVector;
  }
  const Readers<T> readers(axes.across, column);
  const int64_t in_row = p.in_w * width, out_row = p.out_w * width, map = by_band.outer;
  const scalar_t* grad = static_cast<const scalar_t*>(p.from) + map * p.out_h * out_row + channel;
  scalar_t* to = static_cast<scalar_t*>(p.to) + map * p.in_h * in_row + column * width + channel;

  T here[kVector], behind[kVector] = {};
  // Output rows [row, end), which read input rows y and y + 1.
  const auto gather = [&](int64_t row, int64_t end) {
    for (; row < end; ++row) {
      T sum[kVector] = {};
      for (int64_t x = readers.begin; x < readers.end; ++x) {
        const T weight = weight_of(axes.across.source(x), column);
        if (weight != T(0)) {
          const Vec<scalar_t, kVector> value =
              load_vec<scalar_t, kVector>(grad + row * out_row + x * width);
#pragma unroll
          for (int j = 0; j < kVector; ++j) {
            sum[j] += weight * widen(value.lane[j]);
          }
        }
      }
      const T weight = axes.down.source(row).weight;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        here[j] += (T(1) - weight) * sum[j];
      }
      if (weight != T(0)) {
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          behind[j] += weight * sum[j];
        }
      }
    }
  };

  const int64_t first = static_cast<int64_t>(by_band.inner) * kBwdRows;
  const int64_t last = first + kBwdRows < p.in_h ? first + kBwdRows : p.in_h;
  int64_t row = axes.down.first_from(first - 1);
  for (int64_t y = first > 0 ? first - 1 : 0; y < last; ++y) {
    const int64_t end = axes.down.first_from(y + 1);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      here[j] = behind[j];
      behind[j] = T(0);
    }
    gather(row, end);
    row = end;
    if (y >= first) {
      Vec<scalar_t, kVector> made;
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        made.lane[j] = Narrow<scalar_t>::from(here[j]);
      }
      store_vec(to + y * in_row, made);
    }
  }
}

// Many output pixels per input pixel, contiguous planes. A block owns `tile` columns of an input
// row: it sums the output rows, several parts of them at once where they are short, and then the
// columns, `group` lanes a pixel (1 or 32), whose sums are added up as a tree.
template <typename scalar_t>
__global__ void __launch_bounds__(kBlockThreads)
    resize_bwd_rows_kernel(ResizeParams p, ResizeAxes<wide_of<scalar_t>> axes, int64_t tiles,
                           int tile, int group) {
  using T = wide_of<scalar_t>;
  __shared__ T sums[kSpan];
  const Split<int64_t> by_tile(static_cast<int64_t>(blockIdx.x), tiles);
  const Split<int64_t> by_row(by_tile.outer, p.in_h);
  const int64_t y = by_row.inner, first = by_tile.inner * tile;
  const int64_t last = first + tile < p.in_w ? first + tile : p.in_w;
  const scalar_t* grad =
      static_cast<const scalar_t*>(p.from) + by_row.outer * p.out_h * p.out_w;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t column = first + thread / group;
  const bool mine = column < last && thread / group < tile;
  const Readers<T> rows(axes.down, y), readers(axes.across, mine ? column : first);
  const int64_t begin = axes.across.first_from(first - 1), end = axes.across.first_from(last);
  T total = T(0);
  for (int64_t base = begin; base < end; base += kSpan) {
    const int span = static_cast<int>(end - base < kSpan ? end - base : kSpan);
    const int pitch = (span + 31) / 32 * 32;
    const int parts = pitch < kBlockThreads ? kBlockThreads / pitch : 1;
    const int part = parts > 1 ? thread / pitch : 0;
    const int64_t count = rows.end - rows.begin;
    const int64_t row_begin = rows.begin + count * part / parts;
    const int64_t row_end = rows.begin + count * (part + 1) / parts;
    for (int x = parts > 1 ? thread % pitch : thread; x < span && part < parts;
         x += kBlockThreads) {
      T sum = T(0);
      for (int64_t row = row_begin; row < row_end; ++row) {
        const T weight = weight_of(axes.down.source(row), y);
        if (weight != T(0)) {
          sum += weight * widen(grad[row * p.out_w + base + x]);
        }
      }
      sums[part * pitch + x] = sum;
    }
    __syncthreads();
    if (mine) {
      const int64_t from = readers.begin > base ? readers.begin : base;
      const int64_t to = readers.end < base + span ? readers.end : base + span;
      for (int64_t x = from + thread % group; x < to; x += group) {
        const T weight = weight_of(axes.across.source(x), column);
        T sum = T(0);
        for (int k = 0; k < parts; ++k) {
          sum += sums[k * pitch + static_cast<int>(x - base)];
        }
        if (weight != T(0)) {
          total += weight * sum;
        }
      }
    }
    __syncthreads();
  }
  for (int offset = group / 2; offset > 0; offset /= 2) {
    total += __shfl_xor_sync(kFullWarp, total, offset);
  }
  if (mine && thread % group == 0) {
    static_cast<scalar_t*>(p.to)[(by_row.outer * p.in_h + y) * p.in_w + column] =
        Narrow<scalar_t>::from(total);
  }
}

// Many output pixels per input pixel, channels-last. A block owns an input pixel and 32 x kVector
// channels of it; each warp sums a part of the output pixels, and the parts are added in order.
template <typename scalar_t, int kVector>
__global__ void __launch_bounds__(kBlockThreads)
    resize_bwd_pixels_kernel(ResizeParams p, ResizeAxes<wide_of<scalar_t>> axes, int64_t blocks) {
  using T = wide_of<scalar_t>;
  __shared__ T sums[kResizeWarps][32 * kVector];
  const Split<int64_t> by_block(static_cast<int64_t>(blockIdx.x), blocks);
  const Split<int64_t> by_column(by_block.outer, p.in_w);
  const Split<int64_t> by_row(by_column.outer, p.in_h);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t channel = (by_block.inner * 32 + lane) * kVector;
  const Readers<T> rows(axes.down, by_row.inner), columns(axes.across, by_column.inner);
  const int64_t width = columns.end - columns.begin;
  const int64_t count = (rows.end - rows.begin) * width;
  const int64_t begin = count * warp / kResizeWarps, end = count * (warp + 1) / kResizeWarps;
  T sum[kVector] = {};
  if (channel < p.channels && begin < end) {
    const scalar_t* grad = static_cast<const scalar_t*>(p.from) +
                           by_row.outer * p.out_h * p.out_w * p.channels + channel;
    int64_t row = rows.begin + begin / width, x = columns.begin + begin % width;
    T down = weight_of(axes.down.source(row), by_row.inner);
    for (int64_t k = begin; k < end; ++k) {
      const T weight = down * weight_of(axes.across.source(x), by_column.inner);
      if (weight != T(0)) {
        const Vec<scalar_t, kVector> value =
            load_vec<scalar_t, kVector>(grad + (row * p.out_w + x) * p.channels);
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          sum[j] += weight * widen(value.lane[j]);
        }
      }
      if (++x == columns.end && k + 1 < end) {
        x = columns.begin;
        ++row;
        down = weight_of(axes.down.source(row), by_row.inner);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    sums[warp][lane * kVector + j] = sum[j];
  }
  __syncthreads();
  if (warp == 0 && channel < p.channels) {
    Vec<scalar_t, kVector> made;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      T total = T(0);
      for (int k = 0; k < kResizeWarps; ++k) {
        total += sums[k][lane * kVector + j];
      }
      made.lane[j] = Narrow<scalar_t>::from(total);
    }
    store_vec(static_cast<scalar_t*>(p.to) +
                  ((by_row.outer * p.in_h + by_row.inner) * p.in_w + by_column.inner) * p.channels +
                  channel,
              made);
  }
}

}  // namespace
}  // namespace segkern
