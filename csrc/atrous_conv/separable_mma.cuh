// Depthwise and pointwise convolution in one pass: the depthwise result of a tile of pixels is made
// in shared memory, as the first operand of the tensor cores' product with the pointwise weight.
#pragma once

#include "../common/mma.cuh"
#include "epilogue.cuh"
#include "separable.h"

namespace segkern {
namespace {

constexpr int kSeparablePixels = 64;     // of a block's tile
constexpr int kSeparableChannels = 256;  // output channels of a tile
constexpr int kSeparableRow = 4;         // 16-byte chunks of channels of a step
constexpr int kSeparableStages = 3;      // steps that are in shared memory
constexpr int kSeparableHidden = kSeparablePixels * kSeparableRow;
constexpr int kSeparableStage = kSeparableHidden + kSeparableChannels * kSeparableRow;
constexpr int kSeparableShared = kSeparableStages * kSeparableStage * 16;  // bytes
static_assert(kSeparableHidden == kBlockThreads, "a thread makes one chunk of a step");

struct alignas(16) SeparableChunk {
  uint32_t words[4];
};

// Where chunk `chunk` of row `row` lies: eight rows of one chunk fall into different banks.
__device__ __forceinline__ int separable_chunk(int row, int chunk) {
  return row * kSeparableRow + (chunk ^ (row >> 1 & (kSeparableRow - 1)));
}

// A block owns 64 pixels, neighbours in memory, and 256 output channels; a warp 32 by 64 of them,
// 64 sums a thread. In a step each thread makes the depthwise result of 8 channels (4 of float32)
// of one pixel, rounded to the features' type, while the weights of a later step come in. An input
// element is read once for each tap that meets it and each 256 output channels, from the caches but
// for the first time; the hidden map is never in memory. Bound by those reads. One order of
// summation: taps in raster order, then channels.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 2)
    separable_conv_kernel(SeparableParams p, int32_t channel_tiles) {
  constexpr int kLanes = 16 / sizeof(T), kDepth = kSeparableRow * kLanes;
  SEGKERN_DYNAMIC_SHARED(SeparableChunk, ring);
  const ConvWindow& w = p.first.window;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const Split<int32_t> tile(static_cast<int32_t>(blockIdx.x), channel_tiles);
  const int first_channel = tile.inner * kSeparableChannels;
  const int64_t plane = w.out_h * w.out_w, pixels = p.first.batch * plane;
  const int64_t first_pixel = static_cast<int64_t>(tile.outer) * kSeparablePixels;
  const int channels = static_cast<int>(p.first.channels);

  // The chunk that this thread makes in every step.
  const int chunk = thread % kSeparableRow, row = thread / kSeparableRow;
  const int64_t pixel = first_pixel + row;
  const bool known = pixel < pixels;
  const Split<int64_t> by_image(known ? pixel : 0, plane);
  const Split<int32_t> by_row(static_cast<int32_t>(by_image.inner), w.out_w);
  // A pixel behind the last is one that no tap brings inside.
  const int in_h = static_cast<int>(w.in_h), in_w = static_cast<int>(w.in_w);
  const int top = known ? static_cast<int>(by_row.outer * w.stride_h - w.pad_h) : in_h;
  const int left = static_cast<int>(by_row.inner * w.stride_w - w.pad_w);
  const T* const in =
      static_cast<const T*>(p.first.in) + by_image.outer * w.in_h * w.in_w * channels;
  const auto make_hidden = [&](int step) {
    const int channel = step * kDepth + chunk * kLanes;
    float sums[kLanes] = {};
    Vec<T, kLanes> hidden;
    if (channel < channels) {
      const float* factors = static_cast<const float*>(p.first.weight) + channel;
      const int kernel_w = static_cast<int>(w.kernel_w);
      const int rate_w = kernel_w > 1 ? static_cast<int>(w.dilation_w) : 0;
      const int taps = static_cast<int>(w.taps());
      int y = top, x = left, kw = 0;
#pragma unroll 1
      for (int tap = 0; tap < taps; ++tap) {
        if (y >= 0 && y < in_h && x >= 0 && x < in_w) {
          const auto values = load_vec<T, kLanes>(
              in + (static_cast<int64_t>(y) * in_w + x) * channels + channel);
#pragma unroll
          for (int half = 0; half < kLanes / 4; ++half) {
            const auto factor = load_vec<float, 4>(factors + 4 * half);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              sums[4 * half + i] += widen(values.lane[4 * half + i]) * factor.lane[i];
            }
          }
        }
        factors += channels;
        x += rate_w;
        if (++kw == kernel_w) {
          kw = 0;
          x = left;
          y += w.kernel_h > 1 ? static_cast<int>(w.dilation_h) : 0;
        }
      }
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        // A pixel that is not there may be anything: it is never stored.
        sums[i] = finish<float>(p.first, channel + i, sums[i], 0.0f);
      }
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      hidden.lane[i] = Narrow<T>::from(sums[i]);
    }
    SeparableChunk* const to = ring + step % kSeparableStages * kSeparableStage;
    store_vec(reinterpret_cast<T*>(to + separable_chunk(row, chunk)), hidden);
  };

  const int steps = (channels + kDepth - 1) / kDepth;
  AsyncCopies copies;
  const T* const weight = static_cast<const T*>(p.weight);
  const auto load_weights = [&](int step) {
    if (step < steps) {
      SeparableChunk* const to =
          ring + step % kSeparableStages * kSeparableStage + kSeparableHidden;
      const int channel = step * kDepth + chunk * kLanes;
#pragma unroll
      for (int i = 0; i < kSeparableChannels / kSeparablePixels; ++i) {
        const int at = row + i * kSeparablePixels, output = first_channel + at;
        const bool there = output < p.outputs && channel < channels;
        const T* const from =
            there ? weight + static_cast<int64_t>(output) * channels + channel : weight;
        copies.copy(to + separable_chunk(at, chunk), from, there);
      }
    }
    copies.commit();
  };

  float sums[2][8][4] = {};
  const int warp_row = warp / 4 * 32, warp_channel = warp % 4 * 64;
  // Where this lane's row of the first matrices lies; 16 rows further the pattern is the same.
  const int a_at = separable_chunk(warp_row + lane % 16, lane / 16);
  const int b_at = separable_chunk(warp_channel + lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
  for (int step = 0; step < kSeparableStages - 1; ++step) {
    load_weights(step);
  }
  make_hidden(0);
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    copies.wait<kSeparableStages - 2>();
    __syncthreads();
    load_weights(step + kSeparableStages - 1);
    if (step + 1 < steps) {
      make_hidden(step + 1);
    }
    const SeparableChunk* const hidden = ring + step % kSeparableStages * kSeparableStage;
    const SeparableChunk* const weights = hidden + kSeparableHidden;
#pragma unroll
    for (int k = 0; k < kSeparableRow; k += 2) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        load_matrices(a[m], hidden + (a_at ^ k) + 16 * m * kSeparableRow);
        round_operands<T>(a[m]);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        load_matrices(b, weights + (b_at ^ k) + 16 * n * kSeparableRow);
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

  const bool pairs = p.outputs % 2 == 0;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t at = first_pixel + warp_row + 16 * m + 8 * half + lane / 4;
      if (at >= pixels) {
        continue;
      }
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int64_t channel = first_channel + warp_channel + 8 * n + 2 * (lane % 4);
        const int64_t element = at * p.outputs + channel;
        const float pair[2] = {sums[m][n][2 * half], sums[m][n][2 * half + 1]};
        if (pairs && channel < p.outputs) {
          finish_and_store<T, 2, float>(p, channel, element, pair);
        } else {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            if (channel + i < p.outputs) {
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
