// The dilated branches of the spatial pyramid on tensor cores, their sums and what follows them.
#pragma once

#include "esp_prepare.cuh"

namespace segkern {
namespace {

template <int kCount>
struct EspCount {
  static constexpr int value = kCount;
};

// What follows the sum of one channel.
struct EspNorm {
  float scale, shift, slope;
  Activation activation;

  __device__ __forceinline__ EspNorm(const EspParams& p, int64_t channel, bool there)
      : scale(there && p.scale ? static_cast<const float*>(p.scale)[channel] : 1.0f),
        shift(there && p.shift ? static_cast<const float*>(p.shift)[channel] : 0.0f),
        slope(there && p.slope ? static_cast<const float*>(p.slope)[channel * p.slope_step] : 0.0f),
        activation(p.activation) {}

  // NaNs pass.
  __device__ __forceinline__ float apply(float sum) const {
    sum = sum * scale + shift;
    if (activation == Activation::kNone || !(sum < 0)) {
      return sum;
    }
    return activation == Activation::kPrelu ? sum * slope : 0.0f;
  }
};

// Stores `count` neighbours in memory, at most kMost of which the i-th is value(i, residual).
template <typename T, int kMost, typename Value>
__device__ __forceinline__ void esp_store(const EspParams& p, int64_t at, int count, bool vectors,
                                          const Value& value) {
  const T* const residual = static_cast<const T*>(p.residual);
  T* const out = static_cast<T*>(p.out);
  if (vectors && count >= kMost) {
    Vec<T, kMost> run;
    if (residual) {
      run = load_vec<T, kMost>(residual + at);
    }
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const float added = residual ? widen(run.lane[i]) : 0.0f;
      run.lane[i] = Narrow<T>::from(value(i, added));
    }
    store_vec(out + at, run);
    return;
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < count) {
      const float added = residual ? widen(residual[at + i]) : 0.0f;
      out[at + i] = Narrow<T>::from(value(i, added));
    }
  }
}

// Stores a lane's sums of one branch's channels from `channel` on, of which there are `outputs`.
template <typename T, bool kLast>
__device__ __forceinline__ void esp_store_branch(const EspParams& p, int64_t image, int y, int x,
                                                 int lane, int64_t channel, int outputs,
                                                 bool vectors, const float (&sums)[4][4]) {
  const int width = static_cast<int>(p.width);
  if constexpr (kLast) {
    const int first = lane % 4 * 4;
    const EspNorm norms[4] = {{p, channel + first, first < outputs},
                              {p, channel + first + 1, first + 1 < outputs},
                              {p, channel + first + 2, first + 2 < outputs},
                              {p, channel + first + 3, first + 3 < outputs}};
    const int64_t row = (image * p.height + y) * p.width;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = x + 8 * i + lane / 4;
      if (column < width) {
        esp_store<T, 4>(
            p, (row + column) * p.out_channels + channel + first, outputs - first, vectors,
            [&](int c, float added) {
              return norms[c].apply(sums[i / 2 * 2 + c / 2][2 * (i % 2) + c % 2] + added);
            });
      }
    }
  } else {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int own = esp_output(part, lane / 4);
      if (own >= outputs) {
        continue;
      }
      const EspNorm norm(p, channel + own, true);
      const int64_t row =
          ((image * p.out_channels + channel + own) * p.height + y) * p.width;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = x + 8 * i + lane % 4 * 2;
        esp_store<T, 2>(
            p, row + column, width - column, vectors, [&](int pixel, float added) {
              return norm.apply(sums[i][2 * part + pixel] + added);
            });
      }
    }
  }
}

// A block owns 8 rows of 32 pixels and 16 channels of every branch, a warp one of the rows, a lane
// 16 sums, which go on from branch to branch where sums are hierarchical, and each of which is
// stored once: of four pixels by four neighbouring channels in channels-last, where pixels are the
// rows of the products, else of four pairs of neighbouring pixels by two channels, where channels
// are. Per tap and 32 bytes of channels a warp reads 1 KB of pixels, four runs of memory, and half
// of that of weights, both from the caches, the reduced map from beyond the first level once for
// each block that meets it. Bound by the first level's reads. One order of summation: branches,
// taps in raster order, channels.
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
  const int x = by_segment.inner * kEspPixels, group = by_group.inner;
  const int plane = plan.pitch * kDepth, line = plan.steps * plane;  // of a row and step; of a row
  const int kernel_h = static_cast<int>(p.kernel_h), kernel_w = static_cast<int>(p.kernel_w);
  // What this lane reads of its first pixel in the topmost row.
  const T* const from = reduced + static_cast<int64_t>(by_band.outer) * height * line +
                        (plan.halo + x + lane / 4) * kDepth + lane % 4 * kLanes;
  const int64_t step_words = 32 * 4, tap_words = plan.steps * step_words;

  float sums[4][4] = {};
  int64_t first = 0;  // channel of the branch
#pragma unroll 1
  for (int branch = 0; branch < p.branches; ++branch) {
    const int outputs = static_cast<int>(p.outputs[branch]) - group * kEspOutputs;
    if (branch < 2 || !p.hierarchical) {
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        sums[i / 4][i % 4] = 0.0f;
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
      const T* pixels = row + (kw - kernel_w / 2) * rate_w * kDepth;
      const uint32_t* words = of_row + kw * tap_words;
#pragma unroll 1
      for (int step = 0; step < plan.steps; ++step) {
        Vec<uint32_t, 2> map[kTaps][4];
        Vec<uint32_t, 4> weight[kTaps];
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
          weight[tap] = load_vec<uint32_t, 4>(words + tap * tap_words);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            map[tap][i] = load_vec<uint32_t, 2>(
                reinterpret_cast<const uint32_t*>(pixels + tap * rate_w * kDepth + 8 * i * kDepth));
          }
        }
#pragma unroll
        for (int tap = 0; tap < kTaps; ++tap) {
          const auto& four = map[tap];
          const auto& of = weight[tap].lane;
          if constexpr (kLast) {
#pragma unroll
            for (int m = 0; m < 2; ++m) {
              const uint32_t a[4] = {four[2 * m].lane[0], four[2 * m + 1].lane[0],
                                     four[2 * m].lane[1], four[2 * m + 1].lane[1]};
              multiply_add<T>(sums[2 * m], a, of[0], of[1]);
              multiply_add<T>(sums[2 * m + 1], a, of[2], of[3]);
            }
          } else {
            const uint32_t a[4] = {of[0], of[2], of[1], of[3]};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              multiply_add<T>(sums[i], a, four[i].lane[0], four[i].lane[1]);
            }
          }
        }
        pixels += plane;
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
    const bool vectors = kLast ? p.out_channels % 4 == 0 && first % 4 == 0 : width % 2 == 0;
    esp_store_branch<T, kLast>(p, by_band.outer, y, x, lane, first + group * kEspOutputs, outputs,
                               vectors, sums);
    first += p.outputs[branch];
  }
}

}  // namespace
}  // namespace segkern
