// The non-zero weights of all bins of one axis of a box, for the CPU kernels.
#pragma once

#include <algorithm>
#include <vector>

#include "roi_axis.h"

namespace segkern {

template <typename T>
class RoiTable {
 public:
  std::vector<int64_t> begin;   // of bin p in pixels and weights; bins + 1 of them
  std::vector<int32_t> pixels;  // ascending within a bin
  std::vector<T> weights;
  int32_t low = 0, high = -1;  // pixels with a weight lie within

  explicit RoiTable(const RoiAxis<T>& axis) {
    begin.assign(axis.bins + 1, 0);
    int32_t first, last;
    axis.window(0, axis.bins - 1, &first, &last);
    if (first > last) {
      return;
    }
    std::vector<T> row(last - first + 1, T(0));
    std::vector<T> totals(axis.weights == RoiWeights::kNorm ? row.size() : 0, T(0));
    low = last;
    high = first;
    for (int32_t p = 0; p < axis.bins; ++p) {
      int32_t from, to;
      axis.window(p, p, &from, &to);
      if (axis.weights == RoiWeights::kTent) {
        for (int32_t i = from; i <= to; ++i) {
          row[i - first] = axis.raw_weight(p, i);
        }
      } else {
        add_samples(axis, p, first, last, row);
      }
      for (int32_t i = from; i <= to; ++i) {
        T& weight = row[i - first];
        if (weight != T(0)) {
          pixels.push_back(i);
          weights.push_back(weight);
          low = std::min(low, i);
          high = std::max(high, i);
          if (!totals.empty()) {
            totals[i - first] += weight;
          }
          weight = T(0);
        }
      }
      begin[p + 1] = static_cast<int64_t>(pixels.size());
    }
    if (!totals.empty()) {
      for (size_t k = 0; k < pixels.size(); ++k) {
        weights[k] /= totals[pixels[k] - first];
      }
    }
    if (pixels.empty()) {
      low = 0;
      high = -1;
    }
  }

 private:
  static void add_samples(const RoiAxis<T>& axis, int32_t p, int32_t first, int32_t last,
                          std::vector<T>& row) {
    int32_t sample, end;
    axis.samples_within(p, T(-1), static_cast<T>(axis.size), &sample, &end);
    const bool mean =
        axis.weights == RoiWeights::kAverage || axis.weights == RoiWeights::kPinvMean;
    const T count = mean ? static_cast<T>(axis.grid) : T(1);
    for (; sample < end; ++sample) {
      const RoiTaps<T> taps = axis.taps(p, sample);
      for (int32_t k = 0; k < 2; ++k) {
        const int32_t i = taps.first + k;
        if (taps.weight[k] != T(0) && i >= first && i <= last) {
          row[i - first] += taps.weight[k];
        }
      }
    }
    for (T& weight : row) {
      weight /= count;
    }
  }
};

}  // namespace segkern
