// Gradient of a dense weight on tensor cores: for each tap a matrix product of output channels x
// pixels by pixels x input channels, over the pixels at which the tap meets the input.
#pragma once

#include "../common/mma.cuh"
#include "dense.h"

namespace segkern {
namespace {

constexpr int kGradTile = 128;   // output channels, and input channels, of a block
constexpr int kGradStages = 4;
constexpr int kGradHalf = 512;  // 16-byte chunks of an operand of a step
constexpr int kGradShared = kGradStages * 2 * kGradHalf * 16;  // bytes

template <typename T>
struct GradStep {
  static constexpr int kLanes = 16 / sizeof(T);            // channels of a chunk
  static constexpr int kRow = kGradTile / kLanes;          // chunks of a pixel
  static constexpr int kPixels = kGradHalf / kRow;         // of a step
  static constexpr int kDepth = 32 / sizeof(T);            // pixels of a product
};

struct alignas(16) GradChunk {
  uint32_t words[4];
};

// Blocks: taps x tiles of output channels x tiles of input channels x parts of the pixels.
struct DenseGradTiles {
  int32_t out_tiles, in_tiles, parts;
};

// Where chunk `chunk` of pixel `row` lies: those that a fragment reads at once fall into different
// banks, eight pixels of a chunk for 16-bit elements, four pixels of two chunks for float32.
template <typename T>
__device__ __forceinline__ int grad_chunk(int row, int chunk) {
  return row * GradStep<T>::kRow + (chunk ^ (sizeof(T) == 2 ? row & 7 : (row & 3) << 1));
}

// float32 number `channel` of pixel `row`, rounded, where grad_chunk puts it; `row` % 4 is the
// lane's.
__device__ __forceinline__ uint32_t grad_word(const GradChunk* from, int row, int channel,
                                              int lane) {
  const auto* words = reinterpret_cast<const uint32_t*>(from);
  return round_operand<float>(words[row * kGradTile + (channel ^ lane % 4 * 8)]);
}

// The fragments of multiply_add of an operand that lies with its depth, the pixels from `pixel` on,
// down its rows: `a` of 16 channels from `channel` on, b of 8 and the next 8.
template <typename T>
__device__ __forceinline__ void load_grad_a(uint32_t (&a)[4], const GradChunk* from, int pixel,
                                            int channel, int lane) {
  if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(a, from + grad_chunk<T>(pixel + lane / 16 * 8 + lane % 8,
                                                     channel / 8 + lane / 8 % 2));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = grad_word(from, pixel + lane % 4 + i / 2 * 4, channel + lane / 4 + i % 2 * 8, lane);
    }
  }
}
template <typename T>
__device__ __forceinline__ void load_grad_b(uint32_t (&b)[4], const GradChunk* from, int pixel,
                                            int channel, int lane) {
  if constexpr (sizeof(T) == 2) {
    load_matrices_transposed(b, from + grad_chunk<T>(pixel + lane / 8 % 2 * 8 + lane % 8,
                                                     channel / 8 + lane / 16));
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      b[i] = grad_word(from, pixel + lane % 4 + i % 2 * 4, channel + lane / 4 + i / 2 * 8, lane);
    }
  }
}

// The outputs [first, last) of an axis whose input at `shift` lies inside.
__device__ __forceinline__ void met_outputs(int outputs, int stride, int shift, int length,
                                            int& first, int& last) {
  first = shift < 0 ? (-shift + stride - 1) / stride : 0;
  last = length - 1 - shift < 0 ? 0 : (length - 1 - shift) / stride + 1;
  last = last < outputs ? last : outputs;
  last = last < first ? first : last;
}

// A block owns one tap, 128 output by 128 input channels and a part of the pixels; a warp 32 by 64
// channels. The parts' sums (part, C_out, taps, C_in) are added by sum_parts_kernel in a fixed
// order. Each element is read once a tap and 128 channels of the other operand.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 2)
    dense_weight_grad_kernel(DenseWeightGradParams p, DenseGradTiles tiles, float* partial) {
  using Step = GradStep<T>;
  SEGKERN_DYNAMIC_SHARED(GradChunk, ring);
  const ConvWindow& w = p.window;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const Split<int32_t> by_in(static_cast<int32_t>(blockIdx.x), tiles.in_tiles);
  const Split<int32_t> by_out(by_in.outer, tiles.out_tiles);
  const int taps = static_cast<int>(w.taps()), kernel_w = static_cast<int>(w.kernel_w);
  const Split<int32_t> by_tap(by_out.outer, taps);
  const int part = by_tap.outer, tap = by_tap.inner;
  const int first_in = by_in.inner * kGradTile, first_out = by_out.inner * kGradTile;
  const int stride_h = static_cast<int>(w.stride_h), stride_w = static_cast<int>(w.stride_w);
  const int shift_h = static_cast<int>(tap / kernel_w * w.dilation_h - w.pad_h);
  const int shift_w = static_cast<int>(tap % kernel_w * w.dilation_w - w.pad_w);
  int top, bottom, left, right;
  met_outputs(static_cast<int>(w.out_h), stride_h, shift_h, static_cast<int>(w.in_h), top, bottom);
  met_outputs(static_cast<int>(w.out_w), stride_w, shift_w, static_cast<int>(w.in_w), left, right);
  const int height = bottom - top, width = right - left;
  const int64_t pixels = p.batch * height * width;  // less than 2^31
  const int first = static_cast<int>(pixels * part / tiles.parts);
  const int last = static_cast<int>(pixels * (part + 1) / tiles.parts);

  // Every thread copies one chunk of two pixels of each operand in a step.
  const T* const grad = static_cast<const T*>(p.grad);
  const T* const in = static_cast<const T*>(p.in);
  const int chunk = thread % Step::kRow, row = thread / Step::kRow;
  constexpr int kRows = kBlockThreads / Step::kRow;
  const int out_channel = first_out + chunk * Step::kLanes;
  const int in_channel = first_in + chunk * Step::kLanes;
  AsyncCopies copies;
  int next = first;
  const auto load = [&](int stage) {
    if (next < last) {
      GradChunk* const grads = ring + stage * 2 * kGradHalf;
      GradChunk* const inputs = grads + kGradHalf;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int at = row + i * kRows, pixel = next + at;
        const bool there = pixel < last;
        const Split<int32_t> across(there ? pixel : first, width);
        const Split<int32_t> down(across.outer, height);
        const int oh = top + down.inner, ow = left + across.inner;
        const int64_t image = down.outer;
        const int64_t from = (image * w.out_h + oh) * w.out_w + ow;
        const int64_t to =
            (image * w.in_h + oh * stride_h + shift_h) * w.in_w + ow * stride_w + shift_w;
        const bool of_grad = there && out_channel < p.out_channels;
        const bool of_in = there && in_channel < p.in_channels;
        copies.copy(grads + grad_chunk<T>(at, chunk),
                    of_grad ? grad + from * p.out_channels + out_channel : grad, of_grad);
        copies.copy(inputs + grad_chunk<T>(at, chunk),
                    of_in ? in + to * p.in_channels + in_channel : in, of_in);
      }
      next += Step::kPixels;
    }
    copies.commit();
  };

  float sums[2][8][4] = {};
  const int warp_out = warp / 2 * 32, warp_in = warp % 2 * 64;
  const int steps = (last - first + Step::kPixels - 1) / Step::kPixels;
#pragma unroll
  for (int stage = 0; stage < kGradStages - 1; ++stage) {
    load(stage);
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    copies.wait<kGradStages - 2>();
    __syncthreads();
    load((step + kGradStages - 1) % kGradStages);
    const GradChunk* const grads = ring + step % kGradStages * 2 * kGradHalf;
    const GradChunk* const inputs = grads + kGradHalf;
#pragma unroll
    for (int k = 0; k < Step::kPixels; k += Step::kDepth) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        load_grad_a<T>(a[m], grads, k, warp_out + 16 * m, lane);
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        uint32_t b[4];
        load_grad_b<T>(b, inputs, k, warp_in + 16 * n, lane);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          multiply_add<T>(sums[m][2 * n], a[m], b[0], b[1]);
          multiply_add<T>(sums[m][2 * n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }
  copies.wait<0>();

#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t out = first_out + warp_out + 16 * m + 8 * half + lane / 4;
      float* const to = partial + ((part * p.out_channels + out) * taps + tap) * p.in_channels;
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int channel = first_in + warp_in + 8 * n + 2 * (lane % 4);
        if (out < p.out_channels && channel < p.in_channels) {
          store_vec(to + channel, Vec<float, 2>{{sums[m][n][2 * half], sums[m][n][2 * half + 1]}});
        }
      }
    }
  }
}

}  // namespace
}  // namespace segkern
