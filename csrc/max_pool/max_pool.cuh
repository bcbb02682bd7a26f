// Max pooling with indices, its backward for overlapping windows, and index conversion.
//
// All of them are bound by memory: a window of four float elements costs 16 bytes read and 4.25
// written (2-bit codes), against two comparisons a byte. Every input element is read once, except
// where windows overlap.
#pragma once

#include "../common/device.cuh"
#include "window.h"

namespace segkern {
namespace {

// torch's rule: a tap replaces the best so far if it is greater or a NaN; so ties go to the first.
template <typename scalar_t>
__device__ __forceinline__ bool beats(scalar_t v, scalar_t best) {
  const auto wide = widen(v);
  return wide > widen(best) || wide != wide;
}

// Combines the codes of the lanes of one word by or, `span` neighbouring lanes (a power of two).
__device__ __forceinline__ uint32_t merge_codes(uint32_t bits, int span) {
  for (int offset = 1; offset < span; offset *= 2) {
    bits |= __shfl_xor_sync(kFullWarp, bits, offset);
  }
  return bits;
}

// Any window, contiguous planes. A thread owns one window; threads of a row are padded to whole
// index words (`row_threads`), which lie within a warp. Reads each tap once, coalesced up to the
// stride; writes one element and one code.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads)
    max_pool_fwd_kernel(PoolParams p, int64_t row_threads, int64_t rows) {
  const PoolWindow& w = p.window;
  const Split<index_t> site(thread_index<index_t>(), row_threads);
  const int64_t row = site.outer;
  const int64_t ow = site.inner;
  const bool active = row < rows && ow < w.out_w;
  int64_t best_code = 0;
  int64_t oh = 0;
  if (active) {
    const Split<index_t> plane(site.outer, w.out_h);
    oh = plane.inner;
    const scalar_t* in = static_cast<const scalar_t*>(p.in) + plane.outer * w.in_h * w.in_w;
    scalar_t best = Narrow<scalar_t>::from(-INFINITY);
    bool any = false;
    int64_t code = 0;
    for (int64_t kh = 0; kh < w.kernel_h; ++kh) {
      const int64_t h = oh * w.stride_h - w.pad_h + kh * w.dilation_h;
      for (int64_t kw = 0; kw < w.kernel_w; ++kw, ++code) {
        const int64_t x = ow * w.stride_w - w.pad_w + kw * w.dilation_w;
        if (w.inside(h, x)) {
          const scalar_t v = in[h * w.in_w + x];
          if (!any || beats(v, best)) {
            best = v;
            best_code = code;
            any = true;
          }
        }
      }
    }
    static_cast<scalar_t*>(p.out)[row * w.out_w + ow] = best;
  }
  switch (p.format) {
    case IndexFormat::kOffset:
      if (active) {
        static_cast<uint8_t*>(p.indices)[row * w.out_w + ow] = static_cast<uint8_t>(best_code);
      }
      break;
    case IndexFormat::kFlat:
      if (active) {
        static_cast<int64_t*>(p.indices)[row * w.out_w + ow] = flat_index(w, oh, ow, best_code);
      }
      break;
    case IndexFormat::kPacked: {
      const int field = static_cast<int>(ow % w.per_word());
      const uint32_t word =
          merge_codes(static_cast<uint32_t>(best_code) << (w.bits() * field), w.per_word());
      if (active && field == 0) {
        static_cast<uint32_t*>(p.indices)[row * w.words_per_row() + ow / w.per_word()] = word;
      }
      break;
    }
  }
}

// 2x2 windows that tile contiguous planes, offset or packed codes. A thread owns the windows under
// one 16-byte vector (kWindows = 2 of float, 4 of half types, 1 of double): two 16-byte loads, one
// 8-byte store; a word of codes is assembled by 16 / kWindows neighbouring lanes. Rows of the plane
// must start at 16-byte boundaries.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads)
    max_pool_2x2_fwd_kernel(PoolParams p, int64_t row_threads, int64_t rows) {
  constexpr int kVector = 16 / sizeof(scalar_t);
  constexpr int kWindows = kVector / 2;
  const PoolWindow& w = p.window;
  const Split<index_t> site(thread_index<index_t>(), row_threads);
  const int64_t row = site.outer;
  const int64_t ow = static_cast<int64_t>(site.inner) * kWindows;
  const bool active = row < rows && ow < w.out_w;
  uint32_t codes[kWindows] = {};
  if (active) {
    const Split<index_t> plane(site.outer, w.out_h);
    const int64_t h = 2 * static_cast<int64_t>(plane.inner);
    const scalar_t* top = static_cast<const scalar_t*>(p.in) +
                          (plane.outer * w.in_h + h) * w.in_w + 2 * ow;
    const bool two_rows = h + 1 < w.in_h;  // a ceil-mode pooling may clip the last window row
    const Vec<scalar_t, kVector> a = load_vec<scalar_t, kVector>(top);
    const Vec<scalar_t, kVector> b =
        two_rows ? load_vec<scalar_t, kVector>(top + w.in_w) : a;
    Vec<scalar_t, kWindows> y;
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      scalar_t best = a.lane[2 * i];
      if (beats(a.lane[2 * i + 1], best)) {
        best = a.lane[2 * i + 1];
        codes[i] = 1;
      }
      if (two_rows && beats(b.lane[2 * i], best)) {
        best = b.lane[2 * i];
        codes[i] = 2;
      }
      if (two_rows && beats(b.lane[2 * i + 1], best)) {
        best = b.lane[2 * i + 1];
        codes[i] = 3;
      }
      y.lane[i] = best;
    }
    store_vec(static_cast<scalar_t*>(p.out) + row * w.out_w + ow, y);
  }
  if (p.format == IndexFormat::kOffset) {
    if (active) {
      Vec<uint8_t, kWindows> bytes;
#pragma unroll
      for (int i = 0; i < kWindows; ++i) {
        bytes.lane[i] = static_cast<uint8_t>(codes[i]);
      }
      store_vec(static_cast<uint8_t*>(p.indices) + row * w.out_w + ow, bytes);
    }
    return;
  }
  const int field = static_cast<int>(ow % 16);
  uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kWindows; ++i) {
    bits |= codes[i] << (2 * (field + i));
  }
  const uint32_t word = merge_codes(bits, 16 / kWindows);
  if (active && field == 0) {
    static_cast<uint32_t*>(p.indices)[row * w.words_per_row() + ow / 16] = word;
  }
}

// Channels-last. A thread owns kLanes neighbouring channels of one window, or of all windows of one
// index word in the packed format: every access is a vector of channels, coalesced across threads,
// and the codes of a word gather in registers. kTile2x2 unrolls the common window, so that its four
// loads are in flight together.
template <typename scalar_t, typename index_t, int kLanes, bool kTile2x2>
__global__ void __launch_bounds__(kBlockThreads, 3)
    max_pool_channels_last_fwd_kernel(PoolParams p, int64_t threads) {
  using Lanes = Vec<scalar_t, kLanes>;
  const PoolWindow& w = p.window;
  const index_t thread = thread_index<index_t>();
  if (thread >= threads) {
    return;
  }
  const bool packed = p.format == IndexFormat::kPacked;
  const int per_thread = packed ? w.per_word() : 1;
  const int64_t columns = w.index_row(p.format);
  const Split<index_t> lanes(thread, p.channels / kLanes);
  const Split<index_t> column(lanes.outer, columns);
  const Split<index_t> image(column.outer, w.out_h);
  const int64_t channel = static_cast<int64_t>(lanes.inner) * kLanes;
  const int64_t oh = image.inner;
  const scalar_t* in = static_cast<const scalar_t*>(p.in) +
                       image.outer * w.in_h * w.in_w * p.channels + channel;
  const int64_t row = static_cast<int64_t>(column.outer);
  uint32_t words[kLanes] = {};
  for (int i = 0; i < per_thread; ++i) {
    const int64_t ow = static_cast<int64_t>(column.inner) * per_thread + i;
    if (ow >= w.out_w) {
      break;
    }
    Lanes best;
    uint32_t codes[kLanes] = {};
    bool any = false;
    const auto compete = [&](const Lanes& tap, uint32_t code) {
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        if (!any || beats(tap.lane[lane], best.lane[lane])) {
          best.lane[lane] = tap.lane[lane];
          codes[lane] = code;
        }
      }
      any = true;
    };
    if (kTile2x2 && 2 * oh + 1 < w.in_h && 2 * ow + 1 < w.in_w) {
      const scalar_t* top = in + (2 * oh * w.in_w + 2 * ow) * p.channels;
      const scalar_t* low = top + w.in_w * p.channels;
      const Lanes taps[4] = {
          load_vec<scalar_t, kLanes>(top), load_vec<scalar_t, kLanes>(top + p.channels),
          load_vec<scalar_t, kLanes>(low), load_vec<scalar_t, kLanes>(low + p.channels)};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        compete(taps[k], k);
      }
    } else {
      for (int64_t k = 0; k < w.taps(); ++k) {
        const int64_t h = w.row(oh, k);
        const int64_t x = w.col(ow, k);
        if (w.inside(h, x)) {
          compete(load_vec<scalar_t, kLanes>(in + (h * w.in_w + x) * p.channels),
                  static_cast<uint32_t>(k));
        }
      }
      if (!any) {
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          best.lane[lane] = Narrow<scalar_t>::from(-INFINITY);
        }
      }
    }
    const int64_t to = (row * w.out_w + ow) * p.channels + channel;
    store_vec(static_cast<scalar_t*>(p.out) + to, best);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      if (packed) {
        words[lane] |= codes[lane] << (w.bits() * i);
      } else if (p.format == IndexFormat::kOffset) {
        static_cast<uint8_t*>(p.indices)[to + lane] = static_cast<uint8_t>(codes[lane]);
      } else {
        static_cast<int64_t*>(p.indices)[to + lane] = flat_index(w, oh, ow, codes[lane]);
      }
    }
  }
  if (packed) {
    Vec<uint32_t, kLanes> out;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      out.lane[lane] = words[lane];
    }
    uint32_t* to = static_cast<uint32_t*>(p.indices) +
                   (row * columns + column.inner) * p.channels + channel;
    constexpr int kStore = kLanes < 4 ? kLanes : 4;
#pragma unroll
    for (int lane = 0; lane < kLanes; lane += kStore) {
      Vec<uint32_t, kStore> part;
#pragma unroll
      for (int i = 0; i < kStore; ++i) {
        part.lane[i] = out.lane[lane + i];
      }
      store_vec(to + lane, part);
    }
  }
}

// Backward for windows that may overlap, both layouts. A thread owns one input element and adds the
// gradients of the windows that name it, in raster order: no atomics, the same bits every time.
// Reads each code once per element of its window.
template <typename scalar_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads, 4)
    max_pool_bwd_kernel(PoolParams p, int64_t threads) {
  const PoolWindow& w = p.window;
  const index_t thread = thread_index<index_t>();
  if (thread >= threads) {
    return;
  }
  const int64_t stride = p.channels_last ? p.channels : 1;
  const Split<index_t> lane(thread, stride);
  const Split<index_t> column(lane.outer, w.in_w);
  const Split<index_t> plane(column.outer, w.in_h);
  const int64_t h = plane.inner;
  const int64_t x = column.inner;
  decltype(widen(scalar_t{})) sum = 0;
  for (int64_t kh = w.kernel_h - 1; kh >= 0; --kh) {
    const int64_t start_h = h + w.pad_h - kh * w.dilation_h;
    if (start_h < 0 || start_h % w.stride_h || start_h / w.stride_h >= w.out_h) {
      continue;
    }
    const int64_t oh = start_h / w.stride_h;
    const int64_t row = plane.outer * w.out_h + oh;
    for (int64_t kw = w.kernel_w - 1; kw >= 0; --kw) {
      const int64_t start_x = x + w.pad_w - kw * w.dilation_w;
      if (start_x < 0 || start_x % w.stride_w || start_x / w.stride_w >= w.out_w) {
        continue;
      }
      const int64_t ow = start_x / w.stride_w;
      const int64_t index =
          stored_index(w, p.format, p.indices,
                       row * w.index_row(p.format) * stride + lane.inner, stride, ow);
      const int64_t own =
          p.format == IndexFormat::kFlat ? h * w.in_w + x : kh * w.kernel_w + kw;
      if (index == own) {
        sum += widen(
            static_cast<const scalar_t*>(p.out)[(row * w.out_w + ow) * stride + lane.inner]);
      }
    }
  }
  static_cast<scalar_t*>(p.in)[thread] = Narrow<scalar_t>::from(sum);
}

// Index conversion. A thread owns one element of the target: a code, a plane index, or a word.
// What is no element of its window becomes 255 (offset), -1 (flat) or code 0 (packed).
template <typename index_t>
__global__ void __launch_bounds__(kBlockThreads)
    convert_pool_indices_kernel(ConvertParams p, int64_t threads) {
  const PoolWindow& w = p.from.window;
  const index_t thread = thread_index<index_t>();
  if (thread >= threads) {
    return;
  }
  const int64_t stride = p.from.channels_last ? p.from.channels : 1;
  const Split<index_t> lane(thread, stride);
  const Split<index_t> column(lane.outer, p.row());
  const Split<index_t> plane(column.outer, w.out_h);
  const int64_t source =
      static_cast<int64_t>(column.outer) * w.index_row(p.from.format) * stride + lane.inner;
  uint32_t word = 0;
  for (int i = 0; i < p.per_element(); ++i) {
    const int64_t ow = static_cast<int64_t>(column.inner) * p.per_element() + i;
    if (ow >= w.out_w) {
      break;
    }
    const int64_t index = stored_index(w, p.from.format, p.from.indices, source, stride, ow);
    const int64_t code = window_code(w, p.from.format, plane.inner, ow, index);
    switch (p.to) {
      case IndexFormat::kOffset:
        static_cast<uint8_t*>(p.indices)[thread] = static_cast<uint8_t>(code < 0 ? 255 : code);
        break;
      case IndexFormat::kFlat:
        static_cast<int64_t*>(p.indices)[thread] =
            code < 0 ? -1 : flat_index(w, plane.inner, ow, code);
        break;
      case IndexFormat::kPacked:
        word |= static_cast<uint32_t>(code < 0 ? 0 : code) << (w.bits() * i);
        break;
    }
  }
  if (p.to == IndexFormat::kPacked) {
    static_cast<uint32_t*>(p.indices)[thread] = word;
  }
}

}  // namespace
}  // namespace segkern
