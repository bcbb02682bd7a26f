// What the CUDA kernels of the lattice are launched with. Includes neither torch nor CUDA.
#pragma once

#include "../common/host_device.h"
#include "lattice.h"

namespace segkern {

constexpr int kMaxCudaDims = 8;

// How the d stored coordinates of a vertex and the number of its item make one 64-bit key, chosen
// on the device from the bounds of the features, so that nothing waits for the host.
struct DeviceKeyFormat {
  int32_t low_bits[kMaxCudaDims], high_bits[kMaxCudaDims];  // bounds of the features, ordered ints
  int32_t not_finite;
  int64_t low[kMaxCudaDims];
  int32_t shift[kMaxCudaDims];
  int32_t bits;   // of the coordinates; the item lies above
  int32_t valid;  // whether everything fits
};

// All items of a batch: arrays as in LatticeView, one item after the other.
struct LatticeParams {
  int64_t items, points, bound;
  int32_t dims;
  double scales[kMaxCudaDims];  // of the embedding
  const float* features;
  int64_t item_stride, point_stride, dim_stride;
  int32_t* vertex;
  float* weight;
  int32_t* corners;  // (points * D,) an item's corners, sorted by vertex
  int32_t* offsets;
  int32_t* neighbours;
  int64_t* count;
  // Scratch of the build.
  DeviceKeyFormat* format;
  uint64_t* keys;         // (items * points * D,) of all corners; then sorted
  uint64_t* vertex_keys;  // (items, bound)
  int32_t* numbers;       // (items * points * D,) corners; sorted with the keys
  int32_t* ranks;         // distinct keys up to and with each sorted key

  SEGKERN_HOST_DEVICE int64_t item_corners() const { return points * (dims + 1); }
};

// Rows of values over lattices of `items` items or one that all share.
struct FilterParams {
  LatticeParams lattice;
  int64_t batch, channels, stride;
  const float* values;  // (batch, points, stride)
  const float* scale;   // (items, points), or null
  float* sums;          // (batch, bound, stride)
  float* other;         // the same: the blur's second buffer
  float* heads;         // (batch, chunks, stride) shares of vertices that began in an earlier chunk
  float* tails;         // the same: of vertices that go on in a later one
  int32_t axis;

  // Corners that one thread adds up.
  static constexpr int64_t kChunk = 32;
  SEGKERN_HOST_DEVICE int64_t chunks() const {
    return (lattice.item_corners() + kChunk - 1) / kChunk;
  }
};

}  // namespace segkern
