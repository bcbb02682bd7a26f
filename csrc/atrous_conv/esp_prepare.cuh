// What the pyramid's kernel reads, made in one launch: the reduced map and the branches' weights.
#pragma once

#include "../common/mma.cuh"
#include "esp_plan.h"

namespace segkern {
namespace {

// Eight bytes of channels of one pixel, or of input channels of one output: what a lane gives to a
// product over kEspDepth bytes. Lane l gives the (l % 4)-th eight of a row.
template <typename T>
struct EspPiece {
  static constexpr int kLanes = 8 / sizeof(T), kDepth = kEspDepth / sizeof(T);
  Vec<T, kLanes> values;

  __device__ __forceinline__ uint32_t word(int i) const {
    return round_operand<T>(
        load_vec<uint32_t, 2>(reinterpret_cast<const uint32_t*>(values.lane)).lane[i]);
  }
  __device__ __forceinline__ Vec<uint32_t, 2> words() const { return {{word(0), word(1)}}; }

  // From `count` elements in memory, zeros behind them; `vectors` where all eights are aligned.
  static __device__ __forceinline__ EspPiece load(const T* from, int64_t count, bool vectors) {
    EspPiece piece;
    if (vectors && count >= kLanes) {
      piece.values = load_vec<T, kLanes>(from);
    } else {
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        piece.values.lane[i] = i < count ? from[i] : Narrow<T>::from(0.0f);
      }
    }
    return piece;
  }
};

// Channel of a group of 16 that row or column `column` of half `part` makes: columns 2 (l % 4) and
// the next of both halves, a lane's, are then four neighbours.
__device__ __forceinline__ int esp_output(int part, int column) {
  return column / 2 * 4 + 2 * part + column % 2;
}

// Sixteen bytes of weights for a lane: two words of each half, by branch, group of outputs, tap,
// step and lane.
template <typename T>
__device__ __forceinline__ void esp_pack_weights(const EspParams& p, const EspPlan& plan,
                                                 uint32_t* packed) {
  using Piece = EspPiece<T>;
  const int taps = static_cast<int>(p.kernel_h * p.kernel_w);
  const Split<int32_t> by_lane(thread_index<int32_t>(), 32);
  const Split<int32_t> by_step(by_lane.outer, plan.steps), by_tap(by_step.outer, taps);
  const Split<int32_t> by_group(by_tap.outer, plan.groups);
  const int branch = by_group.outer, lane = by_lane.inner;
  if (branch >= p.branches) {
    return;
  }
  const T* const weight = static_cast<const T*>(p.weight[branch]);
  const int first = by_step.inner * Piece::kDepth + lane % 4 * Piece::kLanes;
  Vec<uint32_t, 4> words;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int64_t output = by_group.inner * kEspOutputs + esp_output(part, lane / 4);
    Piece piece;
#pragma unroll
    for (int i = 0; i < Piece::kLanes; ++i) {
      const bool there = output < p.outputs[branch] && first + i < p.reduced;
      piece.values.lane[i] =
          there ? weight[(output * p.reduced + first + i) * taps + by_tap.inner]
                : Narrow<T>::from(0.0f);
    }
    words.lane[2 * part] = piece.word(0);
    words.lane[2 * part + 1] = piece.word(1);
  }
  if (!p.channels_last) {  // both are one first operand of a product, not two second ones
    const uint32_t word = words.lane[1];
    words.lane[1] = words.lane[2];
    words.lane[2] = word;
  }
  store_vec(packed + static_cast<int64_t>(thread_index<int32_t>()) * 4, words);
}

// A lane's channels from `channel` on of four neighbouring pixels of row y, zeros outside the map.
template <typename T>
__device__ __forceinline__ void esp_load_pixels(const EspParams& p, int64_t image, int y, int x,
                                                int channel, EspPiece<T> (&pixels)[4]) {
  constexpr int kLanes = EspPiece<T>::kLanes;
  const T* const in = static_cast<const T*>(p.in);
  const int width = static_cast<int>(p.width), channels = static_cast<int>(p.in_channels);
  if (p.channels_last) {
    const T* const row = in + (image * p.height + y) * p.width * p.in_channels;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool inside = x + i >= 0 && x + i < width && channel < channels;
      const int64_t at = inside ? static_cast<int64_t>(x + i) * channels + channel : 0;
      pixels[i] =
          EspPiece<T>::load(row + at, inside ? channels - channel : 0, channels % kLanes == 0);
    }
    return;
  }
#pragma unroll
  for (int c = 0; c < kLanes; ++c) {
    const bool there = channel + c < channels;
    const T* const row =
        in + ((image * channels + (there ? channel + c : 0)) * p.height + y) * p.width;
    if (there && width % 4 == 0 && x >= 0 && x < width) {
      const auto four = load_vec<T, 4>(row + x);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pixels[i].values.lane[c] = four.lane[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool inside = there && x + i >= 0 && x + i < width;
        pixels[i].values.lane[c] = inside ? row[x + i] : Narrow<T>::from(0.0f);
      }
    }
  }
}

// The first blocks pack weights, a thread 16 bytes. In the others a warp owns 32 pixels of a padded
// row of the reduced map, and 16 of its channels where there is a reduction (all of them where the
// input is the map and is only copied): a lane has four neighbours of each. The input is read once,
// by a second group of channels from the caches. Bound by that. Zeros outside the map and behind
// its channels, whatever the input holds. Sums in the order of the channels.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 2)
    esp_prepare_kernel(EspParams p, EspPlan plan, uint32_t* packed, T* reduced) {
  using Piece = EspPiece<T>;
  if (static_cast<int>(blockIdx.x) < plan.weight_blocks) {
    esp_pack_weights<T>(p, plan, packed);
    return;
  }
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int64_t unit =
      (static_cast<int64_t>(blockIdx.x) - plan.weight_blocks) * kEspRows + thread / 32;
  const Split<int64_t> by_group(unit, plan.in_groups);
  const Split<int64_t> by_segment(by_group.outer, plan.pitch / kEspPixels);
  const Split<int64_t> by_row(by_segment.outer, p.height);
  if (by_row.outer >= p.batch) {
    return;
  }
  const int y = static_cast<int>(by_row.inner), width = static_cast<int>(p.width);
  const int column = static_cast<int>(by_segment.inner) * kEspPixels + lane / 4 * 4;
  const int x = column - plan.halo;
  const int64_t plane = static_cast<int64_t>(plan.pitch) * Piece::kDepth;  // of a row and step
  T* const to = reduced + by_segment.outer * plan.steps * plane + column * Piece::kDepth;
  Piece pixels[4];
  if (!p.reduce) {
    for (int step = 0; step < plan.steps; ++step) {
      const int within = lane % 4 * Piece::kLanes;
      esp_load_pixels<T>(p, by_row.outer, y, x, step * Piece::kDepth + within, pixels);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        store_vec(reinterpret_cast<uint32_t*>(to + step * plane + i * Piece::kDepth + within),
                  pixels[i].words());
      }
    }
    return;
  }

  const int first = static_cast<int>(by_group.inner) * kEspOutputs;
  const int channels = static_cast<int>(p.in_channels);
  float sums[2][2][4] = {};
#pragma unroll 2
  for (int channel = lane % 4 * Piece::kLanes; channel - lane % 4 * Piece::kLanes < channels;
       channel += Piece::kDepth) {
    esp_load_pixels<T>(p, by_row.outer, y, x, channel, pixels);
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i / 2][i % 2] = pixels[i].word(0);
      a[i / 2][i % 2 + 2] = pixels[i].word(1);
    }
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int output = first + esp_output(part, lane / 4);
      const bool there = output < p.reduced && channel < channels;
      const int64_t at = there ? static_cast<int64_t>(output) * channels + channel : 0;
      const Piece b = Piece::load(static_cast<const T*>(p.reduce) + at,
                                  there ? channels - channel : 0, channels % Piece::kLanes == 0);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_add<T>(sums[m][part], a[m], b.word(0), b.word(1));
      }
    }
  }
  const int channel = first + lane % 4 * 4;
  const int step = channel / Piece::kDepth, within = channel % Piece::kDepth;
  if (step >= plan.steps) {
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    EspPiece<T> halves[sizeof(T) / 2];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const bool there = channel + c < p.reduced && x + i >= 0 && x + i < width;
      halves[c / Piece::kLanes].values.lane[c % Piece::kLanes] =
          Narrow<T>::from(there ? sums[i / 2][c / 2][2 * (i % 2) + c % 2] : 0.0f);
    }
#pragma unroll
    for (int h = 0; h < static_cast<int>(sizeof(T) / 2); ++h) {
      T* const at = to + step * plane + i * Piece::kDepth + within + h * Piece::kLanes;
      store_vec(reinterpret_cast<uint32_t*>(at), halves[h].words());
    }
  }
}

}  // namespace
}  // namespace segkern
