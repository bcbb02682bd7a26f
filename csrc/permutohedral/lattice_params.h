// What the CUDA kernels of the lattice are launched with. Includes neither torch nor CUDA.
#pragma once

#include "../common/host_device.h"
#include "lattice.h"

namespace segkern {

// The arrays of a lattice of `items` sets of points, one item after the other, as in LatticeView;
// slots are the list of an item's corners, sorted by vertex. Counts stay on the device.
struct LatticeArrays {
  int64_t items, points, bound;
  int32_t dims;
  int32_t* vertex;
  float* weight;
  int32_t* corners;
  int32_t* offsets;
  int32_t* neighbours;
  int64_t* count;

  SEGKERN_HOST_DEVICE int64_t item_corners() const { return points * (dims + 1); }
  SEGKERN_HOST_DEVICE float alpha() const {
    return 1.0f / (1.0f + 1.0f / static_cast<float>(1 << dims));
  }
};

// The coordinates of a vertex in 128 bits.
struct alignas(16) VertexKey {
  uint64_t low, high;
};

// Where the d stored coordinates of a vertex lie in its key, chosen on the device from the bounds
// of the features, so that nothing waits for the host. All coordinates of a vertex are congruent
// modulo D: the remainder is kept once, in the lowest bits, and of each coordinate the quotient by
// D, less the smallest there can be.
struct DeviceKeyFormat {
  int32_t low_bits[kMaxLatticeDims], high_bits[kMaxLatticeDims];  // bounds, as ordered integers
  int32_t not_finite;
  int32_t valid;  // whether the features are finite and their keys fit
  int32_t low[kMaxLatticeDims];
  int32_t shift[kMaxLatticeDims];
  int32_t remainder_bits;
};

struct BuildParams {
  LatticeArrays lattice;
  double scales[kMaxLatticeDims];  // of the embedding
  const float* features;
  int64_t item_stride, point_stride, dim_stride;
  // Scratch; (items * points * D,) where nothing else is said. Corners are numbered through all
  // items.
  DeviceKeyFormat* format;
  VertexKey* keys;
  int32_t* table;         // (items, capacity) first corner of the vertex of each cell, or -1
  int32_t* cells;         // a corner's cell in its item's part of the table
  int32_t* firsts;        // the first corner with the same vertex
  int32_t* numbers;       // corners within their item
  int32_t* ranks;         // first corners up to and with each corner
  int32_t* sorted_firsts; // firsts, sorted; may be `cells`
  int32_t* vertex_firsts; // (items, bound) a vertex's first corner

  // Cells of an item: at most half of them are taken.
  SEGKERN_HOST_DEVICE int64_t capacity() const { return 2 * lattice.item_corners(); }
};

// Rows of values over lattices of `batch` items or one that all share: sums = blur(splat(before *
// values)), and sliced values are multiplied by `after`.
struct FilterParams {
  LatticeArrays lattice;
  int64_t batch, stride;
  const float* values;  // (batch, points, stride)
  int64_t values_item;  // floats from one item's values to the next
  const float *before, *after;  // (items, points), or null
  float* sums;          // (batch, bound, stride)
  float* other;         // the same: the blur's second buffer
  float* heads;         // (batch, chunks, stride) shares of vertices that began in an earlier chunk
  float* tails;         // the same: of vertices that go on in a later one
  int32_t axis;         // that the next blur goes along, or -1
  int32_t lane_bits;    // 2^lane_bits threads share a row: enough for its vectors of 4, up to 32

  // Corners that one group of threads adds up.
  static constexpr int64_t kChunk = 32;
  SEGKERN_HOST_DEVICE int64_t chunks() const {
    return (lattice.item_corners() + kChunk - 1) / kChunk;
  }
};

// The lane_bits of rows of `stride` floats.
inline int32_t row_lane_bits(int64_t stride) {
  int32_t bits = 0;
  while (bits < 5 && (int64_t{4} << bits) < stride) {
    ++bits;
  }
  return bits;
}

// Filters of one batch that run together, a launch for all.
constexpr int kGroupTerms = 4;
struct FilterGroup {
  int32_t n_terms;
  FilterParams terms[kGroupTerms];
};

// The gradient of one filter to the features of its lattice.
struct FeatureGradParams {
  FilterParams grads, values;  // of batches of rows; sums of the grads are blurred in reverse
  double* dots;                // (items, points, D)
  bool more;                   // whether dots of other rows are there already
  double scales[kMaxLatticeDims];
  const float* features;
  int64_t item_stride, point_stride, dim_stride;
  float* out;                  // (items, points, d)
};

}  // namespace segkern
