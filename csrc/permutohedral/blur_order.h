// In which order a lattice is blurred on the CPU, so that large ones stay in the cache.
//
// Blurring axis after axis reads and writes the whole table of vertices d + 1 times. But vertices
// are sorted and a neighbour's place rises with the vertex's, so an axis can begin on a share of
// the vertices soon after the axis before it has passed there: all of them run through the table
// together, and it travels through memory once. Two buffers are enough.
#pragma once

#include <vector>

#include "lattice.h"

namespace segkern {

// One step: stage 0 sums slots into the first buffer; stage s blurs along the s-th axis, from
// buffer (s - 1) % 2 to buffer s % 2. Vertices begin to end.
struct BlurStep {
  int stage;
  int32_t begin, end;
};

// Steps that stage 0 advances by `share` vertices each. Within a step vertices are independent.
std::vector<BlurStep> blur_order(const LatticeView& lattice, bool reverse, int64_t share);

// The i-th axis to be blurred, and its table.
inline int blurred_axis(const LatticeView& lattice, int i, bool reverse) {
  return reverse ? lattice.dims - i : i;
}
inline const int32_t* axis_neighbours(const LatticeView& lattice, int axis) {
  return lattice.neighbours + axis * lattice.bound * 2;
}

}  // namespace segkern
