// Overlaps of pairs of packed masks, and Matrix NMS.
//
// A block owns a tile of 8 x 8 pairs, a warp a column of it: its lanes go over the words of the
// rows that the boxes share, each word of the column's mask met with the same word of up to eight
// others. So a tile reads 16 masks for 64 pairs (the others come from the first-level cache for
// seven of the eight warps) and is bound by the count of bits, 16 words a cycle and multiprocessor.
// Pairs of two classes, or of boxes that do not meet, cost nothing: a warp leaves them out as one.
#pragma once

#include "../common/device.cuh"
#include "masks.h"

namespace segkern {
namespace {

constexpr int kTile = 8;
static_assert(kTile * 32 == kBlockThreads, "a warp for each column of a tile");

struct RowSpan {
  int32_t y1, y2;
};

// The rows that two boxes share; none where they do not meet.
__device__ __forceinline__ RowSpan shared_rows(const int32_t* a, const int32_t* b,
                                               int64_t height) {
  const int32_t limit = static_cast<int32_t>(height);
  const bool meet = (a[0] > b[0] ? a[0] : b[0]) < (a[2] < b[2] ? a[2] : b[2]);
  const int32_t y1 = a[1] > b[1] ? a[1] : b[1], y2 = a[3] < b[3] ? a[3] : b[3];
  return meet ? RowSpan{y1 > 0 ? y1 : 0, y2 < limit ? y2 : limit} : RowSpan{0, 0};
}

// Shared pixels of mask j of b with the masks i[t] of a, -1 for none; the same i in all lanes, and
// all lanes get the counts.
__device__ __forceinline__ void count_tile(const MaskSet& a, const int64_t (&i)[kTile],
                                           const MaskSet& b, int64_t j, int64_t height,
                                           int64_t words, int32_t (&shared)[kTile]) {
  const uint32_t* rows[kTile];
  RowSpan span{INT32_MAX, 0};
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
    shared[t] = 0;
    rows[t] = nullptr;
    if (i[t] >= 0) {
      const RowSpan with = shared_rows(a.boxes + 4 * i[t], b.boxes + 4 * j, height);
      if (with.y1 < with.y2) {
        rows[t] = a.bits + i[t] * height * words;
        span.y1 = with.y1 < span.y1 ? with.y1 : span.y1;
        span.y2 = with.y2 > span.y2 ? with.y2 : span.y2;
      }
    }
  }
  const uint32_t* column = b.bits + j * height * words;
  const int64_t end = span.y2 * words;
  for (int64_t k = span.y1 * words + threadIdx.x % 32; k < end; k += 32) {
    const uint32_t word = column[k];
#pragma unroll
    for (int t = 0; t < kTile; ++t) {
      if (rows[t]) {
        shared[t] += __popc(word & rows[t][k]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
    for (int step = 16; step > 0; step /= 2) {
      shared[t] += __shfl_xor_sync(kFullWarp, shared[t], step);
    }
  }
}

// The overlap of the tile's pair t, from its count.
__device__ __forceinline__ float tile_overlap(const MaskSet& a, int64_t i, const MaskSet& b,
                                              int64_t j, int32_t shared, bool crowd) {
  const int64_t area = a.areas[i];
  return overlap_of(shared, crowd ? area : area + b.areas[j] - shared);
}

__global__ void __launch_bounds__(kBlockThreads) mask_iou_kernel(MaskIouParams p) {
  const int64_t tiles = (p.a.count + kTile - 1) / kTile;
  const Split<int64_t> tile(blockIdx.x, tiles);
  const int64_t j = tile.outer * kTile + threadIdx.x / 32;
  if (j >= p.b.count) {
    return;
  }
  int64_t i[kTile];
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
    i[t] = tile.inner * kTile + t < p.a.count ? tile.inner * kTile + t : -1;
  }
  int32_t shared[kTile];
  count_tile(p.a, i, p.b, j, p.height, p.words, shared);
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
    if (i[t] >= 0 && static_cast<int>(threadIdx.x % 32) == t) {
      p.iou[i[t] * p.b.count + j] =
          tile_overlap(p.a, i[t], p.b, j, shared[t], p.crowd && p.crowd[j]);
    }
  }
}

// Overlaps of all pairs i < j of the tile, 0 for those of two classes.
__global__ void __launch_bounds__(kBlockThreads) class_overlap_kernel(MatrixNmsParams p) {
  const int64_t tiles = (p.count + kTile - 1) / kTile;
  const Split<int64_t> tile(blockIdx.x, tiles);
  const int64_t j = tile.outer * kTile + threadIdx.x / 32;
  if (tile.inner > tile.outer || j >= p.count) {
    return;
  }
  const int64_t column = p.mask(j), label = p.labels[j];
  const bool live = column >= 0 && p.scores[j] != -INFINITY;
  int64_t i[kTile];
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
    const int64_t entry = tile.inner * kTile + t;
    i[t] = live && entry < j && p.labels[entry] == label ? p.mask(entry) : -1;
  }
  int32_t shared[kTile];
  count_tile(p.masks, i, p.masks, live ? column : 0, p.height, p.words, shared);
#pragma unroll
  for (int t = 0; t < kTile; ++t) {
    const int64_t entry = tile.inner * kTile + t;
    if (entry < j && static_cast<int>(threadIdx.x % 32) == t) {
      p.overlaps[j * p.count + entry] =
          i[t] < 0 ? 0.0f : tile_overlap(p.masks, i[t], p.masks, column, shared[t], false);
    }
  }
}

__device__ __forceinline__ float warp_largest(float value) {
  for (int step = 16; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kFullWarp, value, step));
  }
  return value;
}

// A warp an entry: its largest overlap with better ones.
__global__ void __launch_bounds__(kBlockThreads) largest_overlap_kernel(MatrixNmsParams p) {
  const int64_t j = thread_index<int64_t>() / 32;
  if (j >= p.count) {
    return;
  }
  float most = 0;
  for (int64_t i = threadIdx.x % 32; i < j; i += 32) {
    most = fmaxf(most, p.overlaps[j * p.count + i]);
  }
  most = warp_largest(most);
  if (threadIdx.x % 32 == 0) {
    p.largest[j] = most;
  }
}

// A warp an entry: its decayed score.
__global__ void __launch_bounds__(kBlockThreads) decay_kernel(MatrixNmsParams p) {
  const int64_t j = thread_index<int64_t>() / 32;
  if (j >= p.count) {
    return;
  }
  const int64_t label = p.labels[j];
  float most = no_blame(p.linear);
  for (int64_t i = threadIdx.x % 32; i < j; i += 32) {
    if (p.labels[i] == label) {
      most = fmaxf(most, blame(p.linear, p.overlaps[j * p.count + i], p.largest[i]));
    }
  }
  most = warp_largest(most);
  if (threadIdx.x % 32 == 0) {
    const float score = p.scores[j];
    p.out[j] = score == -INFINITY ? score : score * (p.linear ? -most : expf(-p.sigma * most));
  }
}

}  // namespace
}  // namespace segkern
