// Dense convolution on tensor cores by mma.m16n8k16, of float32 by mma.m16n8k8 in TF32: an implicit
// matrix product of pixels x (taps, input channels) by (taps, input channels) x output channels,
// without the taps that meet only padding in the tile of a block.
#pragma once

#include "../common/mma.cuh"
#include "dense_tiles.h"
#include "epilogue.cuh"

namespace segkern {
namespace {

constexpr int kDenseChannels = 128;  // output channels of a tile
constexpr int kDenseStages = 4;      // steps that are in shared memory
constexpr int kDenseRow = 4;         // 16-byte chunks of a row of a step
constexpr int kDenseTile = kDensePixels * kDenseRow;
constexpr int kDenseStage = 2 * kDenseTile;  // chunks of a step: pixels, then output channels
constexpr int kDenseShared = kDenseStages * kDenseStage * 16;  // bytes
static_assert(kDensePixels == kDenseChannels, "both operands are loaded by the same threads");

struct alignas(16) Chunk {
  uint32_t words[4];
};

// Where chunk `chunk` of row `row` lies: eight rows of one chunk fall into different banks.
__device__ __forceinline__ int dense_chunk(int row, int chunk) {
  return row * kDenseRow + (chunk ^ (row >> 1 & (kDenseRow - 1)));
}

// Whether a tap meets the input from any of `count` outputs on from `first`, along one axis.
__device__ __forceinline__ bool meets(int64_t first, int64_t count, int64_t stride, int64_t shift,
                                      int64_t length) {
  const int64_t start = first * stride + shift;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = start + i * stride;
    if (at >= 0 && at < length) {
      return true;
    }
  }
  return false;
}

// A block owns a tile of pixels and 128 output channels; a warp 32 pixels by 64 channels of it, 64
// sums a thread. Steps of 32 input channels (16 of float32) of one tap go through a ring of four
// stages in shared memory (64 KB). Each input element is read once for each tap that is not skipped and each 128
// output channels, from the L2 cache but for the first time. Bound by the tensor cores. One order
// of summation: taps in raster order, then channels.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 2)
    dense_conv_kernel(DenseParams p, DenseTiles tiles) {
  constexpr int kLanes = 16 / sizeof(T);  // of a chunk
  SEGKERN_DYNAMIC_SHARED(Chunk, ring);
  __shared__ int live[kMaxDenseTaps], shift_y[kMaxDenseTaps], shift_x[kMaxDenseTaps];
  __shared__ int live_count;
  const ConvWindow& w = p.window;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const Split<int32_t> by_channel(static_cast<int32_t>(blockIdx.x), tiles.channels);
  const Split<int32_t> by_column(by_channel.outer, tiles.across);
  const Split<int32_t> by_row(by_column.outer, tiles.down);
  const int image = by_row.outer, top = by_row.inner * tiles.height;
  const int left = by_column.inner * tiles.width;
  const int first_channel = by_channel.inner * kDenseChannels;
  const int kernel_w = static_cast<int>(w.kernel_w), taps = static_cast<int>(w.taps());
  const int below = static_cast<int>(w.out_h) - top, right = static_cast<int>(w.out_w) - left;
  const int height = below < tiles.height ? below : tiles.height;
  const int width = right < tiles.width ? right : tiles.width;

  for (int k = thread; k < taps; k += kBlockThreads) {
    const int place = p.flip ? taps - 1 - k : k;
    const int64_t down = place / kernel_w * w.dilation_h, across = place % kernel_w * w.dilation_w;
    shift_y[k] = static_cast<int>(down);
    shift_x[k] = static_cast<int>(across);
    live[k] = meets(top, height, w.stride_h, down - w.pad_h, w.in_h) &&
              meets(left, width, w.stride_w, across - w.pad_w, w.in_w);
  }
  __syncthreads();
  if (thread == 0) {
    int count = 0;
    for (int k = 0; k < taps; ++k) {
      if (live[k]) {
        live[count++] = k;
      }
    }
    live_count = count;
  }
  __syncthreads();

  // Every thread copies one chunk of two pixels and of two output channels in a step.
  const T* const in = static_cast<const T*>(p.in) + image * w.in_h * w.in_w * p.in_channels;
  const T* const weight = static_cast<const T*>(p.weight);
  const int chunk = thread % kDenseRow, row = thread / kDenseRow;
  constexpr int kRows = kBlockThreads / kDenseRow;
  const int in_h = static_cast<int>(w.in_h), in_w = static_cast<int>(w.in_w);
  const int in_channels = static_cast<int>(p.in_channels);
  int pixel_y[2], pixel_x[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Split<int32_t> at(row + i * kRows, tiles.width);
    const bool in_tile = at.outer < height && at.inner < width;
    // A row that is not of the tile is one that no tap brings inside.
    pixel_y[i] = in_tile ? static_cast<int>((top + at.outer) * w.stride_h - w.pad_h) : in_h;
    pixel_x[i] = static_cast<int>((left + at.inner) * w.stride_w - w.pad_w);
  }
  AsyncCopies copies;
  int next_tap = 0, next_channel = 0;
  const int live_taps = live_count;
  const auto load = [&](int stage) {
    if (next_tap < live_taps) {
      Chunk* const pixels = ring + stage * kDenseStage;
      Chunk* const channels = pixels + kDenseTile;
      const int tap = live[next_tap];
      const int from = next_channel + chunk * kLanes;
      const bool there = from < in_channels;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int y = pixel_y[i] + shift_y[tap], x = pixel_x[i] + shift_x[tap];
        const bool inside = there && y >= 0 && y < in_h && x >= 0 && x < in_w;
        const T* source =
            inside ? in + (static_cast<int64_t>(y) * in_w + x) * in_channels + from : in;
        copies.copy(pixels + dense_chunk(row + i * kRows, chunk), source, inside);
        const int out_channel = first_channel + row + i * kRows;
        const bool known = there && out_channel < p.out_channels;
        const int64_t weight_row = static_cast<int64_t>(out_channel) * taps + tap;
        source = known ? weight + weight_row * in_channels + from : weight;
        copies.copy(channels + dense_chunk(row + i * kRows, chunk), source, known);
      }
      next_channel += kDenseRow * kLanes;
      if (next_channel >= in_channels) {
        next_channel = 0;
        ++next_tap;
      }
    }
    copies.commit();
  };

  float sums[2][8][4] = {};
  const int warp_row = warp / 2 * 32, warp_channel = warp % 2 * 64;
  const int steps = live_taps * ((in_channels + kDenseRow * kLanes - 1) / (kDenseRow * kLanes));
#pragma unroll
  for (int stage = 0; stage < kDenseStages - 1; ++stage) {
    load(stage);
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    copies.wait<kDenseStages - 2>();
    __syncthreads();
    load((step + kDenseStages - 1) % kDenseStages);
    const Chunk* const pixels = ring + step % kDenseStages * kDenseStage;
    const Chunk* const channels = pixels + kDenseTile;
#pragma unroll
    for (int k = 0; k < kDenseRow; k += 2) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        load_matrices(a[m], pixels + dense_chunk(warp_row + 16 * m + lane % 16, k + lane / 16));
        round_operands<T>(a[m]);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        load_matrices(b, channels + dense_chunk(warp_channel + 16 * n + lane / 16 * 8 + lane % 8,
                                                k + lane / 8 % 2));
        round_operands<T>(b);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_add<T>(sums[m][2 * n], a[m], b[0], b[1]);
          multiply_add<T>(sums[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
  copies.wait<0>();

  const bool pairs = p.out_channels % 2 == 0;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Split<int32_t> at(warp_row + 16 * m + 8 * half + lane / 4, tiles.width);
      if (at.outer >= height || at.inner >= width) {
        continue;
      }
      const int64_t line = static_cast<int64_t>(image) * w.out_h + top + at.outer;
      const int64_t pixel = line * w.out_w + left + at.inner;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int64_t channel = first_channel + warp_channel + 8 * n + 2 * (lane % 4);
        const int64_t element = pixel * p.out_channels + channel;
        const float pair[2] = {sums[m][n][2 * half], sums[m][n][2 * half + 1]};
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

}  // namespace
}  // namespace segkern
