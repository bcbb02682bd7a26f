// One axis of a box on a map: where its samples lie, what weight a bin has at a pixel. Positions are
// computed in T in the order and roundings of torchvision's CPU operator, never fused, so that every
// device agrees with it on which samples lie outside the map.
#pragma once

#include <cmath>
#include <cstdint>

#include "roi.h"

namespace segkern {

// Farther coordinates, NaN and infinity have no pixels: a box with one reads 0 and writes nothing.
constexpr double kRoiFarthest = 8388608;  // 2^23: beyond, float has no halves

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
  int64_t first;
  T weight[2];
};

template <typename T>
struct RoiAxis {
  T start, length, bin;  // in pixels of the map; bin = length / bins
  int64_t bins, size;    // size: of the map
  int64_t grid;          // samples a bin, 0 where there are none
  RoiWeights weights;

  SEGKERN_HOST_DEVICE RoiAxis(const RoiParams& p, T low, T high, double level_scale, int64_t count,
                              int64_t pixels)
      : bins(count), size(pixels), weights(p.weights) {
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
             : p.sampling_ratio > 0 ? p.sampling_ratio
             : sampled > T(0)       ? static_cast<int64_t>(sampled)
                                    : 0;
    }
    bin = length / static_cast<T>(bins);
  }

  SEGKERN_HOST_DEVICE T position(int64_t p, int64_t sample) const {
    const T inside =
        unfused_product(static_cast<T>(sample) + T(0.5), bin) / static_cast<T>(grid);
    return (start + unfused_product(static_cast<T>(p), bin)) + inside;
  }

  SEGKERN_HOST_DEVICE RoiTaps<T> taps(int64_t p, int64_t sample) const {
    RoiTaps<T> found{0, {T(0), T(0)}};
    T at = position(p, sample);
    if (!(at >= T(-1) && at <= static_cast<T>(size))) {
      return found;
    }
    at = at > T(0) ? at : T(0);
    found.first = static_cast<int64_t>(at);
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
  SEGKERN_HOST_DEVICE void samples_within(int64_t p, double low, double high, int64_t* begin,
                                          int64_t* end) const {
    *begin = 0;
    *end = grid;
    const double step = static_cast<double>(bin) / static_cast<double>(grid);
    if (grid <= 4 || step == 0) {
      return;
    }
    const double from = static_cast<double>(start) + static_cast<double>(p) * bin;
    const double one = (low - from) / step - 0.5, two = (high - from) / step - 0.5;
    // Positions are rounded to about 2^-23 of the largest term, twice.
    const double slack = 2 + 5e-7 * (std::fabs(static_cast<double>(start)) +
                                     std::fabs(static_cast<double>(length))) / std::fabs(step);
    const double least = (one < two ? one : two) - slack, most = (one < two ? two : one) + slack;
    if (least > 0) {
      *begin = least < static_cast<double>(grid) ? static_cast<int64_t>(least) : grid;
    }
    if (most < static_cast<double>(grid)) {
      *end = most < 0 ? 0 : static_cast<int64_t>(most) + 1;
    }
  }

  // Pixels low ... high hold all that bins first ... last touch; low > high where there are none.
  SEGKERN_HOST_DEVICE void window(int64_t first, int64_t last, int64_t* low, int64_t* high) const {
    *low = 0;
    *high = -1;
    if (grid <= 0) {
      return;
    }
    double from = static_cast<double>(start) + static_cast<double>(first) * bin;
    double to = static_cast<double>(start) + static_cast<double>(last + 1) * bin;
    if (weights == RoiWeights::kTent) {
      from -= 0.5 * static_cast<double>(bin) + 0.5;
      to += 0.5 * static_cast<double>(bin) - 0.5;
    }
    const double margin = 1e-6 * (std::fabs(from) + std::fabs(to) + 1);
    const double least = (from < to ? from : to) - margin, most = (from < to ? to : from) + margin;
    if (most < -1 || least > static_cast<double>(size)) {
      return;
    }
    const double bottom = std::floor(least), top = std::floor(most) + 1;
    const double limit = static_cast<double>(size - 1);
    *low = bottom < 0 ? 0 : static_cast<int64_t>(bottom < limit ? bottom : limit);
    *high = static_cast<int64_t>(top < limit ? top : limit);
  }

  // Weight of bin p at a pixel, of the pixels that bin touches; for kNorm before its division.
  SEGKERN_HOST_DEVICE T raw_weight(int64_t p, int64_t pixel) const {
    if (grid <= 0) {
      return T(0);
    }
    if (weights == RoiWeights::kTent) {
      const T at =
          (static_cast<T>(pixel) + T(0.5) - start) / length * static_cast<T>(bins) - T(0.5);
      const T away = std::fabs(at - static_cast<T>(p));
      return away < T(1) ? T(1) - away : T(0);
    }
    int64_t begin, end;
    samples_within(p, static_cast<double>(pixel) - 1, static_cast<double>(pixel) + 1, &begin, &end);
    T sum = T(0);
    for (int64_t i = begin; i < end; ++i) {
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

  SEGKERN_HOST_DEVICE T weight(int64_t p, int64_t pixel) const {
    const T own = raw_weight(p, pixel);
    if (weights != RoiWeights::kNorm || own == T(0)) {
      return own;
    }
    T total = T(0);
    for (int64_t other = 0; other < bins; ++other) {
      total += raw_weight(other, pixel);
    }
    return own / total;
  }
};

// What a row of the boxes says.
template <typename T>
struct RoiBox {
  int64_t image, level;  // image is -1 where it is none of the batch
  T x1, y1, x2, y2;

  SEGKERN_HOST_DEVICE RoiBox(const RoiParams& p, int64_t roi) {
    const T* row = static_cast<const T*>(p.boxes) + 5 * roi;
    image = row[0] >= T(0) && row[0] < static_cast<T>(p.images) ? static_cast<int64_t>(row[0]) : -1;
    x1 = row[1];
    y1 = row[2];
    x2 = row[3];
    y2 = row[4];
    const double size = std::sqrt(static_cast<double>(unfused_product(x2 - x1, y2 - y1)));
    level = 0;
    for (int64_t k = 0; k + 1 < p.levels; ++k) {
      level += size >= p.level_size[k] ? 1 : 0;
    }
  }

  SEGKERN_HOST_DEVICE RoiAxis<T> rows(const RoiParams& p) const {
    const RoiLevel& map = p.level[level];
    return RoiAxis<T>(p, y1, y2, map.scale, p.bins_h, map.height);
  }
  SEGKERN_HOST_DEVICE RoiAxis<T> columns(const RoiParams& p) const {
    const RoiLevel& map = p.level[level];
    return RoiAxis<T>(p, x1, x2, map.scale, p.bins_w, map.width);
  }
};

}  // namespace segkern
