// One axis of a box on a map: where its samples lie, what weight a bin has at a pixel. Positions
// are computed in T in the order and roundings of torchvision's CPU operator, never fused, so that
// every device agrees with it on which samples lie outside the map.
#pragma once

#include <cmath>
#include <cstdint>

#include "roi.h"

namespace segkern {

// Farther coordinates, NaN and infinity have no pixels: a box with one reads 0 and writes nothing.
constexpr int32_t kRoiFarthest = 8388608;  // 2^23: beyond, float has no halves

SEGKERN_HOST_DEVICE inline float unfused_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
SEGKERN_HOST_DEVICE inline double unfused_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// The pixels first and first + 1 that a sample at a position reads; none where weight[0] is 0 and
// weight[1] is.
template <typename T>
struct RoiTaps {
  int32_t first;
  T weight[2];
};

template <typename T>
struct RoiAxis {
  T start, length, bin;  // in pixels of the map; bin = length / bins
  int32_t bins, size;    // size: of the map
  int32_t grid;          // samples a bin, 0 where there are none
  RoiWeights weights;

  SEGKERN_HOST_DEVICE RoiAxis(const RoiParams& p, T low, T high, double level_scale, int64_t count,
                              int64_t pixels)
      : bins(static_cast<int32_t>(count)), size(static_cast<int32_t>(pixels)), weights(p.weights) {
    const T scale = static_cast<T>(level_scale);
    const T offset = p.weights != RoiWeights::kTent && p.aligned ? T(0.5) : T(0);
    start = unfused_product(low, scale) - offset;
    const T end = unfused_product(high, scale) - offset;
    length = end - start;
    const T farthest = static_cast<T>(kRoiFarthest);
    const bool near = start >= -farthest && start <= farthest && end >= -farthest &&
                      end <= farthest && size > 0;
    if (p.weights == RoiWeights::kTent) {
      grid = near && length > 0 ? 1 : 0;
    } else {
      if (!p.aligned && !(length >= T(1))) {
        length = T(1);
      }
      const T sampled = std::ceil(length / static_cast<T>(bins));
      grid = !near               ? 0
             : p.sampling_ratio > 0 ? static_cast<int32_t>(p.sampling_ratio)
             : sampled > T(0)       ? static_cast<int32_t>(sampled)
                                    : 0;
    }
    bin = length / static_cast<T>(bins);
  }

  SEGKERN_HOST_DEVICE T position(int32_t p, int32_t sample) const {
    const T inside =
        unfused_product(static_cast<T>(sample) + T(0.5), bin) / static_cast<T>(grid);
    return (start + unfused_product(static_cast<T>(p), bin)) + inside;
  }

  SEGKERN_HOST_DEVICE RoiTaps<T> taps(int32_t p, int32_t sample) const {
    RoiTaps<T> found{0, {T(0), T(0)}};
    T at = position(p, sample);
    if (!(at >= T(-1) && at <= static_cast<T>(size))) {
      return found;
    }
    at = at > T(0) ? at : T(0);
    found.first = static_cast<int32_t>(at);
    if (found.first >= size - 1) {
      found.first = size - 1;
      found.weight[0] = T(1);
    } else {
      found.weight[1] = at - static_cast<T>(found.first);
      found.weight[0] = T(1) - found.weight[1];
    }
    if (weights == RoiWeights::kPinv || weights == RoiWeights::kPinvMean) {
      const T square =
          found.weight[0] * found.weight[0] + found.weight[1] * found.weight[1];
      found.weight[0] /= square;
      found.weight[1] /= square;
    }
    return found;
  }

  // The samples of bin p that may lie in [low, high]: begin ... end - 1.
  SEGKERN_HOST_DEVICE void samples_within(int32_t p, T low, T high, int32_t* begin,
                                          int32_t* end) const {
    *begin = 0;
    *end = grid;
    if (grid <= 4 || bin == T(0)) {
      return;
    }
    const T dense = static_cast<T>(grid) / bin;  // samples a pixel
    const T from = start + static_cast<T>(p) * bin;
    const T one = (low - from) * dense - T(0.5), two = (high - from) * dense - T(0.5);
    // Positions and these estimates are rounded to a few 2^-24 of the largest term.
    const T largest = std::fabs(start) + std::fabs(length) + static_cast<T>(size);
    const T slack = T(2) + T(2e-6) * largest * std::fabs(dense);
    const T least = (one < two ? one : two) - slack, most = (one < two ? two : one) + slack;
    if (least > T(0)) {
      *begin = least < static_cast<T>(grid) ? static_cast<int32_t>(least) : grid;
    }
    if (most < static_cast<T>(grid)) {
      *end = most < T(0) ? 0 : static_cast<int32_t>(most) + 1;
    }
  }

  // Pixels low ... high hold all that bins first ... last touch; low > high where there are none.
  // The window of some bins lies within that of more: the margin is one for all bins.
  SEGKERN_HOST_DEVICE void window(int32_t first, int32_t last, int32_t* low, int32_t* high) const {
    *low = 0;
    *high = -1;
    if (grid <= 0) {
      return;
    }
    T from = start + static_cast<T>(first) * bin;
    T to = start + static_cast<T>(last + 1) * bin;
    if (weights == RoiWeights::kTent) {
      from -= T(0.5) * bin + T(0.5);
      to += T(0.5) * bin - T(0.5);
    }
    const T margin = T(1e-6) * (T(3) * std::fabs(start) + T(2) * std::fabs(length) + T(1));
    const T least = (from < to ? from : to) - margin, most = (from < to ? to : from) + margin;
    if (most < T(-1) || least > static_cast<T>(size)) {
      return;
    }
    const T limit = static_cast<T>(size - 1);
    const T bottom = std::floor(least), top = std::floor(most) + T(1);
    *low = bottom < T(0) ? 0 : static_cast<int32_t>(bottom < limit ? bottom : limit);
    *high = static_cast<int32_t>(top < limit ? top : limit);
  }

  // Weight of bin p at a pixel, of the pixels that bin touches; for kNorm before its division.
  SEGKERN_HOST_DEVICE T raw_weight(int32_t p, int32_t pixel) const {
    if (grid <= 0) {
      return T(0);
    }
    if (weights == RoiWeights::kTent) {
      const T at =
          (static_cast<T>(pixel) + T(0.5) - start) / length * static_cast<T>(bins) - T(0.5);
      const T away = std::fabs(at - static_cast<T>(p));
      return away < T(1) ? T(1) - away : T(0);
    }
    int32_t begin, end;
    samples_within(p, static_cast<T>(pixel) - T(1), static_cast<T>(pixel) + T(1), &begin, &end);
    T sum = T(0);
    for (int32_t i = begin; i < end; ++i) {
      const RoiTaps<T> found = taps(p, i);
      if (found.first == pixel) {
        sum += found.weight[0];
      } else if (found.first + 1 == pixel) {
        sum += found.weight[1];
      }
    }
    return weights == RoiWeights::kAverage || weights == RoiWeights::kPinvMean
               ? sum / static_cast<T>(grid)
               : sum;
  }

  SEGKERN_HOST_DEVICE T weight(int32_t p, int32_t pixel) const {
    const bool norm = weights == RoiWeights::kNorm;
    T own = T(0), total = T(0);
    for (int32_t other = norm ? 0 : p; other < (norm ? bins : p + 1); ++other) {
      const T raw = raw_weight(other, pixel);
      total += raw;
      own = other == p ? raw : own;
    }
    return norm && own != T(0) ? own / total : own;
  }
};

// Whether a box's value takes the place of the largest so far: the first of equals stays, the first
// NaN is larger than all. `chosen` is -1 where there is none yet.
template <typename T>
SEGKERN_HOST_DEVICE bool replaces_largest(T value, T largest, int32_t chosen) {
  return chosen < 0 || value > largest || (value != value && largest == largest);
}

// What a row of the boxes says.
template <typename T>
struct RoiBox {
  int32_t image, level;  // image is -1 where it is none of the batch
  T x1, y1, x2, y2;

  SEGKERN_HOST_DEVICE RoiBox(const RoiParams& p, int64_t roi) {
    const T* row = static_cast<const T*>(p.boxes) + 5 * roi;
    image = row[0] >= T(0) && row[0] < static_cast<T>(p.images) ? static_cast<int32_t>(row[0]) : -1;
    x1 = row[1];
    y1 = row[2];
    x2 = row[3];
    y2 = row[4];
    const T size = std::sqrt(unfused_product(x2 - x1, y2 - y1));
    level = 0;
    for (int32_t k = 0; k + 1 < p.levels; ++k) {
      level += size >= static_cast<T>(p.level_size[k]) ? 1 : 0;
    }
  }

  // The axis of rows, or of columns.
  SEGKERN_HOST_DEVICE RoiAxis<T> axis(const RoiParams& p, bool rows) const {
    const RoiLevel& map = p.level[level];
    return RoiAxis<T>(p, rows ? y1 : x1, rows ? y2 : x2, map.scale, rows ? p.bins_h : p.bins_w,
                      rows ? map.height : map.width);
  }
  SEGKERN_HOST_DEVICE RoiAxis<T> rows(const RoiParams& p) const { return axis(p, true); }
  SEGKERN_HOST_DEVICE RoiAxis<T> columns(const RoiParams& p) const { return axis(p, false); }
};

}  // namespace segkern
