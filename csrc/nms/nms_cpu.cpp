// Greedy, class by class: a box that stays takes out those behind it, whose coordinates lie in
// columns of their own so that the compiler makes vectors of the comparison.
#include <algorithm>
#include <numeric>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "nms.h"

namespace segkern {
namespace {

template <typename T>
struct Columns {
  std::vector<T> x1, y1, x2, y2, area;
  std::vector<uint8_t> gone;

  // The boxes of entries `from` to `to`.
  void gather(const NmsParams& p, const int64_t* from, const int64_t* to) {
    const auto* boxes = static_cast<const T*>(p.boxes);
    for (auto* column : {&x1, &y1, &x2, &y2, &area}) {
      column->clear();
    }
    gone.clear();
    for (const int64_t* entry = from; entry < to; ++entry) {
      const T* box = boxes + 4 * *entry;
      x1.push_back(box[0]);
      y1.push_back(box[1]);
      x2.push_back(box[2]);
      y2.push_back(box[3]);
      area.push_back((box[2] - box[0]) * (box[3] - box[1]));
      gone.push_back(!p.live[*entry]);
    }
  }

  // The comparison of overlaps(), over columns.
  void suppress(T threshold) {
    const auto n = static_cast<int64_t>(gone.size());
    const T *left = x1.data(), *top = y1.data(), *right = x2.data(), *bottom = y2.data();
    const T* areas = area.data();
    uint8_t* out = gone.data();
    for (int64_t i = 0; i < n; ++i) {
      if (out[i]) {
        continue;
      }
      const T a1 = left[i], b1 = top[i], a2 = right[i], b2 = bottom[i], own = areas[i];
#pragma GCC ivdep
      for (int64_t j = i + 1; j < n; ++j) {
        const T w = (a2 < right[j] ? a2 : right[j]) - (a1 > left[j] ? a1 : left[j]);
        const T h = (b2 < bottom[j] ? b2 : bottom[j]) - (b1 > top[j] ? b1 : top[j]);
        const T shared = (w > 0 ? w : 0) * (h > 0 ? h : 0);
        out[j] |= static_cast<uint8_t>(shared / (own + areas[j] - shared) > threshold);
      }
    }
  }
};

template <typename T>
void suppress(const NmsParams& p) {
  std::vector<int64_t> entries(p.count), starts;
  std::iota(entries.begin(), entries.end(), int64_t{0});
  if (p.labels) {
    std::stable_sort(entries.begin(), entries.end(),
                     [&](int64_t a, int64_t b) { return p.labels[a] < p.labels[b]; });
  }
  for (int64_t k = 0; k < p.count; ++k) {
    if (k == 0 || (p.labels && p.labels[entries[k]] != p.labels[entries[k - 1]])) {
      starts.push_back(k);
    }
  }
  const auto classes = static_cast<int64_t>(starts.size());
  starts.push_back(p.count);
  torch::stable::parallel_for(0, classes, 1, [&](int64_t begin, int64_t end) {
    Columns<T> columns;
    for (int64_t c = begin; c < end; ++c) {
      const int64_t* first = entries.data() + starts[c];
      columns.gather(p, first, entries.data() + starts[c + 1]);
      columns.suppress(static_cast<T>(p.threshold));
      for (size_t k = 0; k < columns.gone.size(); ++k) {
        p.keep[first[k]] = !columns.gone[k];
      }
    }
  });
}

}  // namespace

void nms_cpu(const NmsParams& p) {
  if (p.wide) {
    suppress<double>(p);
  } else {
    suppress<float>(p);
  }
}

}  // namespace segkern
