// Bilinear resampling along one axis as tables, for the CPU kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "source.h"

namespace segkern {

// For every output pixel the input pixels it reads, and for every input pixel those that read it.
template <typename T>
struct AxisTable {
  int64_t in, out;
  std::vector<int64_t> first;  // of the two input pixels
  std::vector<T> near, far;    // their weights; `far` is 0 at the last input pixel
  // Input pixel i has a weight in the output pixels from begin[i] on, with weights[start[i]] to
  // weights[start[i + 1]].
  std::vector<int64_t> begin, start;
  std::vector<T> weights;
  // Output pixels run_begin[i] to run_begin[i + 1] read input pixels i and i + 1.
  std::vector<int64_t> run_begin;

  AxisTable(int64_t in_size, int64_t out_size, bool align_corners) : in(in_size), out(out_size) {
    const AxisMap<T> map(in_size, out_size, align_corners);
    for (int64_t o = 0; o < out; ++o) {
      const Source<T> source = map.source(o);
      first.push_back(source.index);
      near.push_back(T(1) - source.weight);
      far.push_back(source.weight);
    }
  }

  void invert() {
    for (int64_t i = 0; i < in; ++i) {
      auto from = std::lower_bound(first.begin(), first.end(), i - 1);
      while (from != first.end() && *from < i && far[from - first.begin()] == T(0)) {
        ++from;
      }
      const auto to = std::upper_bound(from, first.end(), i);
      begin.push_back(from - first.begin());
      start.push_back(static_cast<int64_t>(weights.size()));
      for (auto at = from; at != to; ++at) {
        const int64_t o = at - first.begin();
        weights.push_back(*at == i ? near[o] : far[o]);
      }
    }
    start.push_back(static_cast<int64_t>(weights.size()));
    for (int64_t i = 0; i <= in; ++i) {
      run_begin.push_back(std::lower_bound(first.begin(), first.end(), i) - first.begin());
    }
  }

  int64_t count(int64_t i) const { return start[i + 1] - start[i]; }
  const T* weights_of(int64_t i) const { return weights.data() + start[i]; }

  // The output pixel after the last that reads the same two input pixels as o, at most `end`.
  int64_t run_end(int64_t o, int64_t end) const {
    const int64_t same = first[o];
    while (o < end && first[o] == same) {
      ++o;
    }
    return o;
  }
};

}  // namespace segkern
