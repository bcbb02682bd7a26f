// Unpooling and its backward; the first is also the backward of pooling where windows tile the
// plane. All are bound by memory; where windows tile, every byte is touched once.
#pragma once

#include "../common/device.cuh"
#include "../max_pool/window.h"

namespace segkern {
namespace {

// Codes of kLanes neighbouring channels of window column ow, of a tiled index tensor that is not
// flat; `row` is the index row's first element for the first of the channels, `stride` the distance
// between columns. One vector load (two for eight packed lanes).
template <int kLanes>
__device__ __forceinline__ void load_lane_codes(const PoolParams& p, int64_t row, int64_t stride,
                                                int64_t ow, uint32_t (&codes)[kLanes]) {
  const PoolWindow& w = p.window;
  if (p.format == IndexFormat::kOffset) {
    const auto bytes = load_vec<uint8_t, kLanes>(static_cast<const uint8_t*>(p.indices) + row +
                                                 ow * stride);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      codes[lane] = bytes.lane[lane];
    }
    return;
  }
  constexpr int kLoad = kLanes < 4 ? kLanes : 4;
  const uint32_t* words =
      static_cast<const uint32_t*>(p.indices) + row + ow / w.per_word() * stride;
  const int shift = w.bits() * static_cast<int>(ow % w.per_word());
  const uint32_t mask = (1u << w.bits()) - 1;
#pragma unroll
  for (int part = 0; part < kLanes; part += kLoad) {
    const auto word = load_vec<uint32_t, kLoad>(words + part);
#pragma unroll
    for (int lane = 0; lane < kLoad; ++lane) {
      codes[part + lane] = word.lane[lane] >> shift & mask;
    }
  }
}

// Codes of kWindows neighbouring 2x2 windows of a contiguous row, packed or offset.
template <int kWindows>
__device__ __forceinline__ void load_row_codes(const PoolParams& p, int64_t row, int64_t ow,
                                               uint32_t (&codes)[kWindows]) {
  if (p.format == IndexFormat::kOffset) {
    const auto bytes = load_vec<uint8_t, kWindows>(static_cast<const uint8_t*>(p.indices) +
                                                   row * p.window.out_w + ow);
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      codes[i] = bytes.lane[i];
    }
    return;
  }
  const uint32_t* words = static_cast<const uint32_t*>(p.indices) + row * p.window.words_per_row();
  const uint32_t word = words[ow / 16] >> (2 * static_cast<int>(ow % 16));
#pragma unroll
  for (int i = 0; i < kWindows; ++i) {
    codes[i] = word >> (2 * i) & 3u;
  }
}

// 2x2 windows that tile contiguous planes. A thread owns the windows under one 16-byte vector of
// the plane, two rows of it: one 8-byte load, its share of a word of codes (one load for 16 /
// kWindows lanes, from the first-level cache), two 16-byte stores. Row pairs below the last window
// row are written as zeros. Out-of-range codes write nothing but zeros.
template <typename bits_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads)
    expand_2x2_kernel(PoolParams p, int64_t threads) {
  constexpr int kVector = 16 / sizeof(bits_t);
  constexpr int kWindows = kVector / 2;
  const PoolWindow& w = p.window;
  const index_t thread = thread_index<index_t>();
  if (thread >= threads) {
    return;
  }
  const Split<index_t> column(thread, w.out_w / kWindows);
  const Split<index_t> plane(column.outer, (w.in_h + 1) / 2);
  const int64_t ow = static_cast<int64_t>(column.inner) * kWindows;
  const int64_t oh = plane.inner;
  Vec<bits_t, kVector> top = {};
  Vec<bits_t, kVector> low = {};
  if (oh < w.out_h) {
    const int64_t row = plane.outer * w.out_h + oh;
    const auto y =
        load_vec<bits_t, kWindows>(static_cast<const bits_t*>(p.out) + row * w.out_w + ow);
    uint32_t codes[kWindows];
    load_row_codes(p, row, ow, codes);
#pragma unroll
    for (int i = 0; i < kWindows; ++i) {
      const uint32_t code = codes[i];
      top.lane[2 * i] = code == 0 ? y.lane[i] : bits_t{0};
      top.lane[2 * i + 1] = code == 1 ? y.lane[i] : bits_t{0};
      low.lane[2 * i] = code == 2 ? y.lane[i] : bits_t{0};
      low.lane[2 * i + 1] = code == 3 ? y.lane[i] : bits_t{0};
    }
  }
  bits_t* to =
      static_cast<bits_t*>(p.in) + (plane.outer * w.in_h + 2 * oh) * w.in_w + 2 * ow;
  store_vec(to, top);
  if (2 * oh + 1 < w.in_h) {
    store_vec(to + w.in_w, low);
  }
}

// The inverse: picks each window's element. Two 16-byte loads, one 8-byte store.
template <typename bits_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads)
    select_2x2_kernel(PoolParams p, int64_t threads) {
  constexpr int kVector = 16 / sizeof(bits_t);
  constexpr int kWindows = kVector / 2;
  const PoolWindow& w = p.window;
  const index_t thread = thread_index<index_t>();
  if (thread >= threads) {
    return;
  }
  const Split<index_t> column(thread, w.out_w / kWindows);
  const Split<index_t> plane(column.outer, w.out_h);
  const int64_t ow = static_cast<int64_t>(column.inner) * kWindows;
  const int64_t row = column.outer;
  const bits_t* from = static_cast<const bits_t*>(p.in) +
                       (plane.outer * w.in_h + 2 * static_cast<int64_t>(plane.inner)) * w.in_w +
                       2 * ow;
  const bool two_rows = 2 * static_cast<int64_t>(plane.inner) + 1 < w.in_h;
  const auto top = load_vec<bits_t, kVector>(from);
  Vec<bits_t, kVector> low = {};
  if (two_rows) {
    low = load_vec<bits_t, kVector>(from + w.in_w);
  }
  uint32_t codes[kWindows];
  load_row_codes(p, row, ow, codes);
  Vec<bits_t, kWindows> y;
#pragma unroll
  for (int i = 0; i < kWindows; ++i) {
    const uint32_t code = codes[i];
    bits_t v = code == 0 ? top.lane[2 * i] : bits_t{0};
    v = code == 1 ? top.lane[2 * i + 1] : v;
    v = code == 2 ? low.lane[2 * i] : v;
    y.lane[i] = code == 3 ? low.lane[2 * i + 1] : v;
  }
  store_vec(static_cast<bits_t*>(p.out) + row * w.out_w + ow, y);
}

// Tiles of any size, both layouts. A thread owns kLanes neighbouring channels of one tile (one
// element in contiguous planes): one load of the value and its code, a store a tap. Tiles without a
// window, at the far edges, are written as zeros.
template <typename bits_t, typename index_t, int kLanes>
__global__ void __launch_bounds__(kBlockThreads)
    expand_tile_kernel(PoolParams p, int64_t threads) {
  const PoolWindow& w = p.window;
  const index_t thread = thread_index<index_t>();
  if (thread >= threads) {
    return;
  }
  const int64_t stride = p.channels_last ? p.channels : 1;
  const Split<index_t> lanes(thread, stride / kLanes);
  const Split<index_t> column(lanes.outer, (w.in_w + w.kernel_w - 1) / w.kernel_w);
  const Split<index_t> plane(column.outer, (w.in_h + w.kernel_h - 1) / w.kernel_h);
  const int64_t channel = static_cast<int64_t>(lanes.inner) * kLanes;
  const int64_t oh = plane.inner;
  const int64_t ow = column.inner;
  Vec<bits_t, kLanes> y = {};
  uint32_t codes[kLanes] = {};
  if (oh < w.out_h && ow < w.out_w) {
    const int64_t row = plane.outer * w.out_h + oh;
    y = load_vec<bits_t, kLanes>(static_cast<const bits_t*>(p.out) +
                                 (row * w.out_w + ow) * stride + channel);
    load_lane_codes(p, row * w.index_row(p.format) * stride + channel, stride, ow, codes);
  }
  uint32_t code = 0;
  for (int64_t kh = 0; kh < w.kernel_h; ++kh) {
    const int64_t h = oh * w.kernel_h + kh;
    for (int64_t kw = 0; kw < w.kernel_w; ++kw, ++code) {
      const int64_t x = ow * w.kernel_w + kw;
      if (w.inside(h, x)) {
        Vec<bits_t, kLanes> tap;
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          tap.lane[lane] = codes[lane] == code ? y.lane[lane] : bits_t{0};
        }
        store_vec(static_cast<bits_t*>(p.in) +
                      ((plane.outer * w.in_h + h) * w.in_w + x) * stride + channel,
                  tap);
      }
    }
  }
}

// The inverse for tiles of any size. Channels of a window take different taps, so all taps are
// read; each plane element once.
template <typename bits_t, typename index_t, int kLanes>
__global__ void __launch_bounds__(kBlockThreads)
    select_tile_kernel(PoolParams p, int64_t threads) {
  const PoolWindow& w = p.window;
  const index_t thread = thread_index<index_t>();
  if (thread >= threads) {
    return;
  }
  const int64_t stride = p.channels_last ? p.channels : 1;
  const Split<index_t> lanes(thread, stride / kLanes);
  const Split<index_t> column(lanes.outer, w.out_w);
  const Split<index_t> plane(column.outer, w.out_h);
  const int64_t channel = static_cast<int64_t>(lanes.inner) * kLanes;
  const int64_t oh = plane.inner;
  const int64_t ow = column.inner;
  const int64_t row = column.outer;
  uint32_t codes[kLanes];
  load_lane_codes(p, row * w.index_row(p.format) * stride + channel, stride, ow, codes);
  Vec<bits_t, kLanes> y = {};
  uint32_t code = 0;
  for (int64_t kh = 0; kh < w.kernel_h; ++kh) {
    const int64_t h = oh * w.kernel_h + kh;
    for (int64_t kw = 0; kw < w.kernel_w; ++kw, ++code) {
      const int64_t x = ow * w.kernel_w + kw;
      if (w.inside(h, x)) {
        const auto tap = load_vec<bits_t, kLanes>(
            static_cast<const bits_t*>(p.in) +
            ((plane.outer * w.in_h + h) * w.in_w + x) * stride + channel);
#pragma unroll
        for (int lane = 0; lane < kLanes; ++lane) {
          y.lane[lane] = codes[lane] == code ? tap.lane[lane] : y.lane[lane];
        }
      }
    }
  }
  store_vec(static_cast<bits_t*>(p.out) + (row * w.out_w + ow) * stride + channel, y);
}

// ---- windows that overlap, and flat indices ---------------------------------------------------

// A window of the memory-order element `thread` of the window side, and what it names.
template <typename index_t>
struct WindowSite {
  int64_t window;    // in raster order, within the plane
  int64_t position;  // in the plane, -1 if none
  int64_t target;    // memory-order element of the plane side

  __device__ __forceinline__ WindowSite(const PoolParams& p, index_t thread) {
    const PoolWindow& w = p.window;
    const int64_t stride = p.channels_last ? p.channels : 1;
    const Split<index_t> lane(thread, stride);
    const Split<index_t> column(lane.outer, w.out_w);
    const Split<index_t> plane(column.outer, w.out_h);
    const int64_t row =
        static_cast<int64_t>(column.outer) * w.index_row(p.format) * stride + lane.inner;
    window = static_cast<int64_t>(plane.inner) * w.out_w + column.inner;
    position = plane_position(w, p.format, plane.inner, column.inner,
                              stored_index(w, p.format, p.indices, row, stride, column.inner));
    target = (plane.outer * w.in_h * w.in_w + position) * stride + lane.inner;
  }
};

// Elects, for every plane element, the last window in raster order that names it: an integer
// maximum, so the outcome does not depend on the order of the atomics. A thread owns one window;
// `winners` starts at zero and holds window + 1.
template <typename index_t>
__global__ void __launch_bounds__(kBlockThreads)
    elect_winners_kernel(PoolParams p, int* winners, int64_t threads) {
  const index_t thread = thread_index<index_t>();
  if (thread >= threads) {
    return;
  }
  const WindowSite<index_t> site(p, thread);
  if (site.position >= 0) {
    atomicMax(winners + site.target, static_cast<int>(site.window + 1));
  }
}

// A thread owns one plane element and writes its winner's value, or zero.
template <typename bits_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads)
    scatter_winners_kernel(PoolParams p, const int* winners, int64_t threads) {
  const PoolWindow& w = p.window;
  const index_t thread = thread_index<index_t>();
  if (thread >= threads) {
    return;
  }
  const int64_t stride = p.channels_last ? p.channels : 1;
  const Split<index_t> lane(thread, stride);
  const Split<index_t> plane(lane.outer, w.in_h * w.in_w);
  const int winner = winners[thread];
  bits_t v = 0;
  if (winner > 0) {
    v = static_cast<const bits_t*>(
        p.out)[(plane.outer * w.out_h * w.out_w + winner - 1) * stride + lane.inner];
  }
  static_cast<bits_t*>(p.in)[thread] = v;
}

// A thread owns one window and reads the element that it names; zero if it names none, or if
// `winners` is given and another window won it.
template <typename bits_t, typename index_t>
__global__ void __launch_bounds__(kBlockThreads)
    gather_kernel(PoolParams p, const int* winners, int64_t threads) {
  const index_t thread = thread_index<index_t>();
  if (thread >= threads) {
    return;
  }
  const WindowSite<index_t> site(p, thread);
  const bool take = site.position >= 0 &&
                    (winners == nullptr || winners[site.target] == static_cast<int>(site.window + 1));
  bits_t v = 0;
  if (take) {
    v = static_cast<const bits_t*>(p.in)[site.target];
  }
  static_cast<bits_t*>(p.out)[thread] = v;
}

}  // namespace
}  // namespace segkern
