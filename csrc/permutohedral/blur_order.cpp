#include "blur_order.h"

#include <algorithm>

namespace segkern {
namespace {

// The neighbours along one axis by where they stand in the order of the vertices: vertices are
// sorted by coordinate 0 first, which only axis 0 moves against the others.
struct AxisOrder {
  AxisOrder(const LatticeView& lattice, int axis)
      : lower(axis_neighbours(lattice, axis) + (axis == 0)),
        higher(axis_neighbours(lattice, axis) + (axis != 0)) {}
  const int32_t* lower;  // at 2 v, the neighbour before vertex v
  const int32_t* higher;
};

}  // namespace

std::vector<BlurStep> blur_order(const LatticeView& lattice, bool reverse, int64_t share) {
  const auto count = static_cast<int32_t>(lattice.count);
  const int stages = lattice.corners() + 1;
  std::vector<AxisOrder> axes;
  for (int i = 0; i < lattice.corners(); ++i) {
    axes.emplace_back(lattice, blurred_axis(lattice, i, reverse));
  }
  std::vector<BlurStep> steps;
  std::vector<int32_t> done(stages, 0);
  // Of each axis, the first vertex not yet done that has a neighbour before it.
  std::vector<int32_t> reader(stages, 0);

  while (done.back() < count) {
    const int32_t begin = done[0];
    done[0] = static_cast<int32_t>(std::min<int64_t>(count, begin + share));
    if (begin < done[0]) {
      steps.push_back({0, begin, done[0]});
    }
    for (int s = 1; s < stages; ++s) {
      const int32_t ready = done[s - 1];
      // What this stage overwrites must not be read any more by the stage before it.
      int32_t limit = ready;
      if (s > 1) {
        const int32_t* previous = axes[s - 2].lower;
        int32_t& w = reader[s - 1];
        w = std::max(w, ready);
        while (w < count && previous[2 * w] == count) {
          ++w;
        }
        limit = w < count ? std::min(limit, previous[2 * w]) : limit;
      }
      const int32_t* higher = axes[s - 1].higher;
      int32_t end = done[s];
      while (end < limit && (higher[2 * end] < ready || higher[2 * end] == count)) {
        ++end;
      }
      if (end > done[s]) {
        steps.push_back({s, done[s], end});
        done[s] = end;
      }
    }
  }
  return steps;
}

}  // namespace segkern
