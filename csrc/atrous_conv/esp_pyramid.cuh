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

  __device__ __forceinline__ void load(const EspParams& p, int64_t channel, bool there) {
    scale = there && p.scale ? static_cast<const float*>(p.scale)[channel] : 1.0f;
    shift = there && p.shift ? static_cast<const float*>(p.shift)[channel] : 0.0f;
    slope = there && p.slope ? static_cast<const float*>(p.slope)[channel * p.slope_step] : 0.0f;
  }

  // NaNs pass.
  __device__ __forceinline__ float apply(Activation activation, float sum) const {
    sum = sum * scale + shift;
    if (activation == Activation::kNone || !(sum < 0)) {
      return sum;
    }
    return activation == Activation::kPrelu ? sum * slope : 0.0f;
  }
};

// kMost neighbours in memory, of which `count` are there; `vectors` where runs are aligned.
template <typename T, int kMost>
__device__ __forceinline__ Vec<T, kMost> esp_load_run(const T* from, int count, bool vectors) {
  if (vectors && count >= kMost) {
    return load_vec<T, kMost>(from);
  }
  Vec<T, kMost> run;
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    run.lane[i] = i < count ? from[i] : Narrow<T>::from(0.0f);
  }
  return run;
}

template <typename T, int kMost>
__device__ __forceinline__ void esp_store_run(T* to, const Vec<T, kMost>& run, int count,
                                              bool vectors) {
  if (vectors && count >= kMost) {
    store_vec(to, run);
    return;
  }
#pragma unroll
  for (int i = 0; i < kMost; ++i) {
    if (i < count) {
      to[i] = run.lane[i];
    }
  }
}

// Stores a lane's sums of one branch's channels from `channel` on, of which there are `outputs`, in
// runs of memory. All of the residual is asked for before the first of it is waited for.
template <typename T, bool kLast>
__device__ __forceinline__ void esp_store_branch(const EspParams& p, int64_t image, int y, int x,
                                                 int lane, int64_t channel, int outputs,
                                                 bool vectors, const float (&sums)[4][4]) {
  constexpr int kMost = kLast ? 4 : 2, kRuns = 16 / kMost;
  const int width = static_cast<int>(p.width);
  // Runs are pixels of four channels; or pairs of pixels, four of one channel and four of another.
  const int own = kLast ? lane % 4 * 4 : esp_output(0, lane / 4);
  const int column = kLast ? x + lane / 4 : x + lane % 4 * 2;
  const int64_t plane = p.height * p.width;
  const int64_t first = kLast ? ((image * p.height + y) * p.width + column) * p.out_channels +
                                    channel + own
                              : (image * p.out_channels + channel + own) * plane +
                                    static_cast<int64_t>(y) * p.width + column;
  const auto run_at = [&](int run) {
    return kLast ? first + 8 * run * p.out_channels : first + run / 4 * 2 * plane + 8 * (run % 4);
  };
  const auto count_of = [&](int run) {
    const int there = width - column - 8 * (run % 4);
    return kLast ? (there > 0 ? outputs - own : 0) : (own + run / 4 * 2 < outputs ? there : 0);
  };
  Vec<T, kMost> added[kRuns] = {};
  if (p.residual) {
    const T* const residual = static_cast<const T*>(p.residual);
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      added[run] = esp_load_run<T, kMost>(residual + run_at(run), count_of(run), vectors);
    }
  }
  constexpr int kNorms = kLast ? 4 : 2;
  EspNorm norms[kNorms];
#pragma unroll
  for (int i = 0; i < kNorms; ++i) {
    const int at = kLast ? own + i : own + 2 * i;
    norms[i].load(p, channel + at, at < outputs);
  }
#pragma unroll
  for (int run = 0; run < kRuns; ++run) {
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      const float sum = kLast ? sums[run / 2 * 2 + i / 2][2 * (run % 2) + i % 2]
                              : sums[run % 4][2 * (run / 4) + i];
      added[run].lane[i] = Narrow<T>::from(
          norms[kLast ? i : run / 4].apply(p.activation, sum + widen(added[run].lane[i])));
    }
    esp_store_run<T, kMost>(static_cast<T*>(p.out) + run_at(run), added[run], count_of(run),
                            vectors);
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
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              multiply_add<T>(sums[i], of, four[i].lane[0], four[i].lane[1]);
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
