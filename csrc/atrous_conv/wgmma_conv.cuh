// Dense convolution of stride 1 on Hopper's tensor cores: the implicit matrix product of dense.cuh,
// with operands brought by the copy engine and products of whole warpgroups. The pixels of a tap
// are a box of the input, shifted by rate x tap, that the copy engine fills with zeros outside the
// image; any rate is one.
#pragma once

#include "../common/hopper.cuh"
#include "dense_tiles.h"
#include "epilogue.cuh"

namespace segkern {
namespace {

constexpr int kWgmmaConsumers = 2;  // warpgroups that multiply, 64 pixels each
constexpr int kWgmmaThreads = 128 * (kWgmmaConsumers + 1);
constexpr int kWgmmaDepth = static_cast<int>(kBoxDepth);  // input channels of a step
static_assert(64 * kWgmmaConsumers == kDensePixels, "the consumers share the pixels of a tile");
static_assert(kWgmmaDepth * 2 == kSwizzleRow, "a step is a row of the swizzled pattern");

// Shared memory of a block: pixels, then output channels, of every stage, in whole patterns; behind
// them the barriers, a full and an empty one a stage.
template <int kChannels>
struct WgmmaRing {
  static constexpr int kStages = kChannels == 256 ? 4 : 6;
  static constexpr int kPixelBytes = kDensePixels * kSwizzleRow;
  static constexpr int kStageBytes = kPixelBytes + kChannels * kSwizzleRow;
  static constexpr int kBytes = kSwizzleAlignment + kStages * kStageBytes + 2 * kStages * 8;
  static_assert(kBytes <= 227 * 1024, "more shared memory than a block may have");
};

// Bytes of static shared memory by which the host knows a kernel that was compiled for another
// architecture, and only says so.
constexpr int kWgmmaAbsent = 4096;

// The taps [first, last) along one axis that bring any of the inputs [start + tap * rate, + count)
// inside [0, length).
struct LiveTaps {
  int first, last;
  __device__ __forceinline__ int count() const { return last - first; }
};

__device__ __forceinline__ LiveTaps live_taps(int64_t start, int64_t count, int64_t rate,
                                              int64_t taps, int64_t length) {
  const int64_t least = 1 - count - start, most = length - 1 - start;
  const int64_t after = most < 0 ? 0 : most / rate + 1;
  const int64_t last = after < taps ? after : taps;
  const int64_t first = least <= 0 ? 0 : (least + rate - 1) / rate;
  return {static_cast<int>(first < last ? first : last), static_cast<int>(last)};
}

// One tile: where it lies and what it needs.
struct WgmmaTile {
  int image, top, left, channel;
  LiveTaps down, across;
};

__device__ __forceinline__ WgmmaTile wgmma_tile(const DenseParams& p, const DenseTiles& tiles,
                                                int number, int channels) {
  const ConvWindow& w = p.window;
  const Split<int32_t> by_channel(number, tiles.channels);
  const Split<int32_t> by_column(by_channel.outer, tiles.across);
  const Split<int32_t> by_row(by_column.outer, tiles.down);
  WgmmaTile tile;
  tile.image = by_row.outer;
  tile.top = by_row.inner * tiles.height;
  tile.left = by_column.inner * tiles.width;
  tile.channel = by_channel.inner * channels;
  tile.down = live_taps(tile.top - w.pad_h, tiles.height, w.dilation_h, w.kernel_h, w.in_h);
  tile.across = live_taps(tile.left - w.pad_w, tiles.width, w.dilation_w, w.kernel_w, w.in_w);
  return tile;
}

// A block works tiles blockIdx.x, + gridDim.x and so on of 128 pixels x kChannels output channels.
// One thread asks for the boxes, 64 input channels of one tap a step; two warpgroups multiply, 64
// pixels each, and finish while the next tile's boxes come in. 192 KB of shared memory, one block a
// multiprocessor. Each input element is read once for each tap that meets the tile and each
// kChannels output channels, from the L2 cache but for the first time. Bound by the tensor cores.
// One order of summation: taps in raster order, then channels.
template <typename T, int kChannels>
__global__ void __launch_bounds__(kWgmmaThreads, 1)
    wgmma_conv_kernel(DenseParams p, DenseTiles tiles, const __grid_constant__ TensorMap pixels,
                      const __grid_constant__ TensorMap weights) {
#if SEGKERN_ON_HOPPER
  using Ring = WgmmaRing<kChannels>;
  SEGKERN_DYNAMIC_SHARED(unsigned char, shared);
  const uint32_t behind = shared_address(shared) % kSwizzleAlignment;
  unsigned char* const ring = shared + (behind == 0 ? 0 : kSwizzleAlignment - behind);
  auto* const full = reinterpret_cast<uint64_t*>(ring + Ring::kStages * Ring::kStageBytes);
  uint64_t* const empty = full + Ring::kStages;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int count = static_cast<int>(p.batch) * tiles.down * tiles.across * tiles.channels;

  if (thread == 0) {
    for (int stage = 0; stage < Ring::kStages; ++stage) {
      init_barrier(full + stage, 1);
      init_barrier(empty + stage, 4 * kWgmmaConsumers);  // a lane of each consuming warp
    }
    publish_barriers();
  }
  __syncthreads();

  if (thread >= 128 * kWgmmaConsumers) {
    shrink_registers<40>();
    if (thread == 128 * kWgmmaConsumers) {
      const ConvWindow& w = p.window;
      const int taps = static_cast<int>(w.taps()), kernel_w = static_cast<int>(w.kernel_w);
      const int bytes = (tiles.height * tiles.width + kChannels) * kSwizzleRow;
      int stage = 0;
      uint32_t parity = 1;  // every stage starts empty
      for (int number = static_cast<int>(blockIdx.x); number < count;
           number += static_cast<int>(gridDim.x)) {
        const WgmmaTile tile = wgmma_tile(p, tiles, number, kChannels);
        for (int i = tile.down.first; i < tile.down.last; ++i) {
          const int y = static_cast<int>(tile.top - w.pad_h + i * w.dilation_h);
          for (int j = tile.across.first; j < tile.across.last; ++j) {
            const int x = static_cast<int>(tile.left - w.pad_w + j * w.dilation_w);
            const int tap = p.flip ? taps - 1 - (i * kernel_w + j) : i * kernel_w + j;
            for (int channel = 0; channel < p.in_channels; channel += kWgmmaDepth) {
              unsigned char* const to = ring + stage * Ring::kStageBytes;
              wait_for(empty + stage, parity);
              arrive_expecting(full + stage, bytes);
              load_box(to, pixels, full + stage, channel, x, y, tile.image);
              load_box(to + Ring::kPixelBytes, weights, full + stage, channel, tap, tile.channel);
              if (++stage == Ring::kStages) {
                stage = 0;
                parity ^= 1;
              }
            }
          }
        }
      }
    }
  } else {
    grow_registers<232>();
    const int depth = static_cast<int>((p.in_channels + kWgmmaDepth - 1) / kWgmmaDepth);
    const int warp_row = thread / 32 * 16 + lane / 4;  // and the row 8 below
    WarpgroupProducts products;
    float sums[kChannels / 2];
    int stage = 0;
    uint32_t parity = 0;
    for (int number = static_cast<int>(blockIdx.x); number < count;
         number += static_cast<int>(gridDim.x)) {
      const WgmmaTile tile = wgmma_tile(p, tiles, number, kChannels);
      const int steps = tile.down.count() * tile.across.count() * depth;
#pragma unroll
      for (int i = 0; i < kChannels / 2; ++i) {
        sums[i] = 0;
      }
      int before = -1;  // the stage of the step before
#pragma unroll 1
      for (int step = 0; step < steps; ++step) {
        wait_for(full + stage, parity);
        const unsigned char* const at = ring + stage * Ring::kStageBytes;
        const uint64_t a = operand_rows(at + thread / 128 * 64 * kSwizzleRow);
        const uint64_t b = operand_rows(at + Ring::kPixelBytes);
        products.begin();
#pragma unroll
        for (int k = 0; k < kWgmmaDepth / 16; ++k) {
          products.multiply<T>(sums, a + k * kNextDepth, b + k * kNextDepth);
        }
        products.commit();
        products.wait<1>(sums);
        if (before >= 0 && lane == 0) {
          arrive(empty + before);
        }
        before = stage;
        if (++stage == Ring::kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
      products.wait<0>(sums);
      if (before >= 0 && lane == 0) {
        arrive(empty + before);
      }

      const bool pairs = p.out_channels % 2 == 0;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Split<int32_t> at(warp_row + 8 * half, tiles.width);
        const int64_t y = tile.top + at.outer, x = tile.left + at.inner;
        if (at.outer >= tiles.height || y >= p.window.out_h || x >= p.window.out_w) {
          continue;
        }
        const int64_t pixel = (tile.image * p.window.out_h + y) * p.window.out_w + x;
#pragma unroll
        for (int n = 0; n < kChannels / 8; ++n) {
          const int64_t channel = tile.channel + 8 * n + 2 * (lane % 4);
          const int64_t element = pixel * p.out_channels + channel;
          const float pair[2] = {sums[4 * n + 2 * half], sums[4 * n + 2 * half + 1]};
          if (pairs && channel < p.out_channels) {
            finish_and_store<T, 2, float>(p, channel, element, pair);
          } else {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              if (channel + i < p.out_channels) {
                const float one[1] = {pair[i]};
                finish_and_store<T, 1, float>(p, channel + i, element + i, one);
              }
            }
          }
        }
      }
    }
  }
#else
  __shared__ unsigned char absent[kWgmmaAbsent];
  asm volatile("" ::"l"(absent) : "memory");
  __trap();
#endif
}

}  // namespace
}  // namespace segkern
