// The dilated branches of the spatial pyramid on tensor cores, their sums and what follows them.
#pragma once

#include "esp_prepare.cuh"

namespace segkern {
namespace {

template <int kCount>
struct EspCount {
  static constexpr int value = kCount;
};

// Scale, shift and slope of a lane's four channels of a branch.
struct EspNorm {
  float scale[4], shift[4], slope[4];

  __device__ __forceinline__ EspNorm(const EspParams& p, int64_t channel, int count) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const bool there = c < count;
      const auto* scales = static_cast<const float*>(p.scale);
      const auto* shifts = static_cast<const float*>(p.shift);
      const auto* slopes = static_cast<const float*>(p.slope);
      scale[c] = there && scales ? scales[channel + c] : 1.0f;
      shift[c] = there && shifts ? shifts[channel + c] : 0.0f;
      slope[c] = there && slopes ? slopes[(channel + c) * p.slope_step] : 0.0f;
    }
  }

  __device__ __forceinline__ float apply(Activation activation, int c, float sum) const {
    sum = sum * scale[c] + shift[c];
    if (activation == Activation::kNone || !(sum < 0)) {
      return sum;
    }
    return activation == Activation::kPrelu ? sum * slope[c] : 0.0f;
  }
};

// Stores a lane's four pixels by four channels of a branch, vectors along the innermost axis.
template <typename T, bool kLast>
__device__ __forceinline__ void esp_store(const EspParams& p, int64_t image, int y, int x,
                                          int64_t channel, int count, bool vectors,
                                          const float (&sums)[2][2][4]) {
  const EspNorm norm(p, channel, count);
  const int width = static_cast<int>(p.width), pixels = width - x < 4 ? width - x : 4;
  const int outers = kLast ? pixels : count, inners = kLast ? count : pixels;
  const int64_t first = kLast ? ((image * p.height + y) * p.width + x) * p.out_channels + channel
                              : ((image * p.out_channels + channel) * p.height + y) * p.width + x;
  const int64_t stride = kLast ? p.out_channels : p.height * p.width;
#pragma unroll
  for (int outer = 0; outer < 4; ++outer) {
    if (outer >= outers) {
      continue;
    }
    const int64_t at = first + outer * stride;
    const T* const residual = static_cast<const T*>(p.residual);
    const auto value = [&](int inner, float added) {
      const int i = kLast ? outer : inner, c = kLast ? inner : outer;
      return Narrow<T>::from(
          norm.apply(p.activation, c, sums[i / 2][c / 2][2 * (i % 2) + c % 2] + added));
    };
    Vec<T, 4> four;
    if (vectors && inners == 4) {
      if (residual) {
        four = load_vec<T, 4>(residual + at);
#pragma unroll
        for (int inner = 0; inner < 4; ++inner) {
          four.lane[inner] = value(inner, widen(four.lane[inner]));
        }
      } else {
#pragma unroll
        for (int inner = 0; inner < 4; ++inner) {
          four.lane[inner] = value(inner, 0.0f);
        }
      }
      store_vec(static_cast<T*>(p.out) + at, four);
      continue;
    }
#pragma unroll
    for (int inner = 0; inner < 4; ++inner) {
      if (inner < inners) {
        static_cast<T*>(p.out)[at + inner] =
            value(inner, residual ? widen(residual[at + inner]) : 0.0f);
      }
    }
  }
}

// A block owns 8 rows of 32 pixels and 16 channels of every branch, a warp one of the rows, a lane
// four neighbouring pixels by four neighbouring channels: 16 sums, which go on from branch to
// branch where sums are hierarchical, and each of which is stored once. Per tap and 32 bytes of
// channels a lane reads 8 bytes of each of its pixels and 16 of weights, both from the caches, the
// reduced map from beyond the first level once for each block that meets it. Bound by the first
// level's reads. One order of summation: branches, taps in raster order, channels.
template <typename T, bool kLast>
__global__ void __launch_bounds__(kBlockThreads, 2)
    esp_pyramid_kernel(EspParams p, EspPlan plan, const uint32_t* packed, const T* reduced) {
  constexpr int kLanes = EspPiece<T>::kLanes, kDepth = EspPiece<T>::kDepth;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const Split<int32_t> by_group(static_cast<int32_t>(blockIdx.x), plan.groups);
  const Split<int32_t> by_segment(by_group.outer, (p.width + kEspPixels - 1) / kEspPixels);
  const Split<int32_t> by_band(by_segment.outer, (p.height + kEspRows - 1) / kEspRows);
  const int height = static_cast<int>(p.height), width = static_cast<int>(p.width);
  const int y = by_band.inner * kEspRows + thread / 32;
  if (y >= height) {
    return;
  }
  const int x = by_segment.inner * kEspPixels + lane / 4 * 4;
  const int group = by_group.inner, depth = plan.steps * kDepth, line = plan.pitch * depth;
  const int kernel_h = static_cast<int>(p.kernel_h), kernel_w = static_cast<int>(p.kernel_w);
  // This lane's part of its first pixel of the topmost row.
  const T* const from = reduced + static_cast<int64_t>(by_band.outer) * height * line +
                        (plan.halo + x) * depth + lane % 4 * kLanes;
  const int64_t step_words = 32 * 4, tap_words = plan.steps * step_words;

  float sums[2][2][4] = {};
  int64_t first = 0;  // channel of the branch
#pragma unroll 1
  for (int branch = 0; branch < p.branches; ++branch) {
    const int outputs = static_cast<int>(p.outputs[branch]) - group * kEspOutputs;
    if (branch < 2 || !p.hierarchical) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        sums[i / 8][i / 4 % 2][i % 4] = 0.0f;
      }
    }
    if (outputs <= 0) {
      first += p.outputs[branch];
      continue;
    }
    const int rate_h = static_cast<int>(p.rate_h[branch]);
    const int rate_w = static_cast<int>(p.rate_w[branch]);
    const uint32_t* weights =
        packed + (static_cast<int64_t>(branch) * plan.groups + group) * kernel_h * kernel_w *
                     tap_words + lane * 4;
    // Adds kTaps taps of a row from column kw on, whose rows of pixels and weights these are.
    const auto add_taps = [&](auto count, const T* row, const uint32_t* of_row, int kw) {
      constexpr int kTaps = decltype(count)::value;
      const T* pixels = row + (kw - kernel_w / 2) * rate_w * depth;
      const uint32_t* words = of_row + kw * tap_words;
#pragma unroll 1
      for (int step = 0; step < plan.steps; ++step) {
        uint32_t a[kTaps][2][4];
        Vec<uint32_t, 4> b[kTaps];
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
          b[tap] = load_vec<uint32_t, 4>(words + tap * tap_words);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const auto two = load_vec<uint32_t, 2>(
                reinterpret_cast<const uint32_t*>(pixels + (tap * rate_w + i) * depth));
            a[tap][i / 2][i % 2] = two.lane[0];
            a[tap][i / 2][i % 2 + 2] = two.lane[1];
          }
        }
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
          for (int part = 0; part < 2; ++part) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              multiply_add<T>(sums[m][part], a[tap][m], b[tap].lane[2 * part],
                              b[tap].lane[2 * part + 1]);
            }
          }
        }
        pixels += kDepth;
        words += step_words;
      }
    };
#pragma unroll 1
    for (int kh = 0; kh < kernel_h; ++kh) {
      const int at = y + (kh - kernel_h / 2) * rate_h;
      if (at < 0 || at >= height) {
        continue;
      }
      const T* const row = from + static_cast<int64_t>(at) * line;
      const uint32_t* const of_row = weights + kh * kernel_w * tap_words;
      if (kernel_w == 3 && rate_w < width) {
        add_taps(EspCount<3>{}, row, of_row, 0);
        continue;
      }
#pragma unroll 1
      for (int kw = 0; kw < kernel_w; ++kw) {
        const int shift = (kw - kernel_w / 2) * rate_w;
        if (shift > -width && shift < width) {
          add_taps(EspCount<1>{}, row, of_row, kw);
        }
      }
    }
    const int count = outputs - lane % 4 * 4 < 4 ? outputs - lane % 4 * 4 : 4;
    if (count > 0 && x < width) {
      const bool vectors = kLast ? p.out_channels % 4 == 0 && first % 4 == 0 : width % 4 == 0;
      esp_store<T, kLast>(p, by_band.outer, y, x, first + group * kEspOutputs + lane % 4 * 4,
                          count, vectors, sums);
    }
    first += p.outputs[branch];
  }
}

}  // namespace
}  // namespace segkern
