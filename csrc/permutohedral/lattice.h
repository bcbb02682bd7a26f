// The permutohedral lattice of one set of points, as arrays. Shared by building, filtering and mean
// field; includes neither torch nor CUDA.
//
// P points in d dimensions have D = d + 1 corners each, which name M <= P * D vertices; corner k of
// a simplex is congruent to k modulo D. Vertices are sorted by their coordinates, on CUDA by the
// first corner that touches them.
#pragma once

#include <cmath>
#include <cstdint>

namespace segkern {

constexpr int kMaxLatticeDims = 16;

// The factor of feature i for which the filter is a Gaussian of variance 1.
inline double embedding_scale(int dims, int i) {
  return std::sqrt(2.0 / 3.0) * (dims + 1) / std::sqrt(static_cast<double>((i + 1) * (i + 2)));
}

struct LatticeView {
  int64_t points;  // P
  int dims;        // d
  int64_t bound;   // vertices that the arrays have room for
  int64_t count;   // M
  int32_t* vertex;      // (P, D) vertices of a point's simplex
  float* weight;        // (P, D) their barycentric weights
  int32_t* slot;        // (P, D) where a corner's share is summed: see below
  int32_t* offsets;     // (bound + 1,) slots offsets[v] to offsets[v + 1] add up to vertex v
  int32_t* neighbours;  // (D, bound, 2) vertices before and after along each axis; M if missing

  int corners() const { return dims + 1; }
  // The gain of slicing.
  float alpha() const { return 1.0f / (1.0f + 1.0f / static_cast<float>(1 << dims)); }
};

// On the CPU the points are cut into slabs, by their number only, so that no result depends on how
// many threads there are. Every vertex has a slot for each slab that touches it, in slab order.
// (On CUDA slots are instead the list of all corners, sorted by vertex.)
constexpr int64_t kPointBlock = 64;

inline int64_t slab_count(int64_t points) {
  int64_t slabs = 1;
  while (slabs < 16 && points / slabs > 32768) {
    slabs *= 2;
  }
  return slabs;
}

// First point of a slab: a whole number of blocks.
inline int64_t slab_begin(int64_t points, int64_t slab) {
  const int64_t blocks = (points + kPointBlock - 1) / kPointBlock;
  const int64_t begin = blocks * slab / slab_count(points) * kPointBlock;
  return begin < points ? begin : points;
}

}  // namespace segkern
