// Packing and measuring masks.
//
// Bound by memory: every pixel is read once, an eighth of a byte of it written. A warp makes a word
// of 32 neighbouring pixels by a ballot, kUnroll words at a time so that as many loads are under
// way; a block measures a part of a mask (some rows), and a warp a mask adds its parts in their
// order, so that sums do not depend on the schedule.
#pragma once

#include "../common/device.cuh"
#include "masks.h"

namespace segkern {
namespace {

constexpr int kWarps = kBlockThreads / 32;
constexpr int kUnroll = 8;

__device__ __forceinline__ MaskPart no_part() {
  return MaskPart{0, INT32_MAX, INT32_MAX, 0, 0, 0.0f};
}

__device__ __forceinline__ MaskPart joined(const MaskPart& a, const MaskPart& b) {
  return MaskPart{a.area + b.area,
                  a.x1 < b.x1 ? a.x1 : b.x1,
                  a.y1 < b.y1 ? a.y1 : b.y1,
                  a.x2 > b.x2 ? a.x2 : b.x2,
                  a.y2 > b.y2 ? a.y2 : b.y2,
                  a.sum + b.sum};
}

// All lanes get the whole.
__device__ __forceinline__ MaskPart warp_joined(MaskPart part) {
  for (int step = 16; step > 0; step /= 2) {
    MaskPart other;
    other.area = __shfl_xor_sync(kFullWarp, part.area, step);
    other.x1 = __shfl_xor_sync(kFullWarp, part.x1, step);
    other.y1 = __shfl_xor_sync(kFullWarp, part.y1, step);
    other.x2 = __shfl_xor_sync(kFullWarp, part.x2, step);
    other.y2 = __shfl_xor_sync(kFullWarp, part.y2, step);
    other.sum = __shfl_xor_sync(kFullWarp, part.sum, step);
    part = joined(part, other);
  }
  return part;
}

// The block's whole, written by its first thread.
__device__ __forceinline__ void write_part(MaskPart part, MaskPart* to) {
  __shared__ MaskPart warps[kWarps];
  part = warp_joined(part);
  if (threadIdx.x % 32 == 0) {
    warps[threadIdx.x / 32] = part;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kWarps; ++w) {
      part = joined(part, warps[w]);
    }
    *to = part;
  }
}

// Where a block's part lies.
struct PartAt {
  int64_t mask, first_row;
  int32_t words;  // of the part

  __device__ __forceinline__ explicit PartAt(const PackParams& p)
      : mask(blockIdx.x / p.parts), first_row(blockIdx.x % p.parts * p.part_rows) {
    const int64_t left = p.height - first_row;
    words = static_cast<int32_t>((left < p.part_rows ? left : p.part_rows) * p.words);
  }
};

__device__ __forceinline__ void extend(MaskPart& part, int32_t x, int32_t y) {
  part = joined(part, MaskPart{1, x, y, x + 1, y + 1, 0.0f});
}

template <typename scalar_t>
struct LogitPixel {
  using wide_t = decltype(widen(scalar_t{}));
  wide_t threshold;

  __device__ __forceinline__ explicit LogitPixel(const PackParams& p)
      : threshold(static_cast<wide_t>(p.threshold)) {}
  __device__ __forceinline__ bool inside(scalar_t v) const { return widen(v) > threshold; }
  static __device__ __forceinline__ float probability(scalar_t v) {
    return 1.0f / (1.0f + expf(-static_cast<float>(widen(v))));
  }
};

struct BytePixel {
  __device__ __forceinline__ explicit BytePixel(const PackParams&) {}
  __device__ __forceinline__ bool inside(uint8_t v) const { return v != 0; }
  static __device__ __forceinline__ float probability(uint8_t) { return 1.0f; }
};

// A block packs and measures a part.
template <typename scalar_t, typename Pixel>
__global__ void __launch_bounds__(kBlockThreads) pack_masks_kernel(PackParams p) {
  const PartAt at(p);
  const Pixel pixel(p);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int32_t row_words = static_cast<int32_t>(p.words);
  const int64_t plane = p.rows ? p.rows[at.mask] : at.mask;
  const bool known = plane >= 0 && plane < p.planes;
  const scalar_t* in = static_cast<const scalar_t*>(p.masks) +
                       ((known ? plane : 0) * p.height + at.first_row) * p.width;
  uint32_t* out = p.bits + (at.mask * p.height + at.first_row) * p.words;
  MaskPart part = no_part();
  for (int32_t first = warp * kUnroll; first < at.words; first += kWarps * kUnroll) {
    scalar_t value[kUnroll];
    bool there[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t k = first + u, y = k / row_words, x = (k - y * row_words) * 32 + lane;
      there[u] = known && k < at.words && x < p.width;
      if (there[u]) {
        value[u] = in[y * p.width + x];
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int32_t k = first + u, y = k / row_words, x = (k - y * row_words) * 32 + lane;
      const bool inside = there[u] && pixel.inside(value[u]);
      const uint32_t word = __ballot_sync(kFullWarp, inside);
      if (inside) {
        extend(part, x, static_cast<int32_t>(at.first_row) + y);
        if (p.maskness) {
          part.sum += Pixel::probability(value[u]);
        }
      }
      if (lane == 0 && k < at.words) {
        out[k] = word;
      }
    }
  }
  write_part(part, p.partial + blockIdx.x);
}

// A block measures a part of masks that are packed already.
__global__ void __launch_bounds__(kBlockThreads) measure_masks_kernel(PackParams p) {
  const PartAt at(p);
  const int32_t row_words = static_cast<int32_t>(p.words);
  const uint32_t* bits = p.bits + (at.mask * p.height + at.first_row) * p.words;
  MaskPart part = no_part();
  for (int32_t k = threadIdx.x; k < at.words; k += kBlockThreads) {
    const uint32_t word = bits[k];
    if (word) {
      const int32_t y = k / row_words, x = (k - y * row_words) * 32;
      const int32_t row = static_cast<int32_t>(at.first_row) + y;
      part = joined(part, MaskPart{__popc(word), x + __ffs(static_cast<int>(word)) - 1, row,
                                   x + 32 - __clz(static_cast<int>(word)), row + 1, 0.0f});
    }
  }
  write_part(part, p.partial + blockIdx.x);
}

// A warp a mask adds its parts.
__global__ void __launch_bounds__(kBlockThreads) join_parts_kernel(PackParams p) {
  const int64_t mask = thread_index<int64_t>() / 32;
  if (mask >= p.count) {
    return;
  }
  const int lane = threadIdx.x % 32;
  MaskPart part = no_part();
  for (int64_t k = lane; k < p.parts; k += 32) {
    part = joined(part, p.partial[mask * p.parts + k]);
  }
  part = warp_joined(part);
  if (lane == 0) {
    const bool some = part.area > 0;
    p.areas[mask] = part.area;
    int32_t* box = p.boxes + 4 * mask;
    box[0] = some ? part.x1 : 0;
    box[1] = some ? part.y1 : 0;
    box[2] = part.x2;
    box[3] = part.y2;
    if (p.maskness) {
      p.maskness[mask] = some ? part.sum / static_cast<float>(part.area) : 0.0f;
    }
  }
}

// A thread a pixel.
__global__ void __launch_bounds__(kBlockThreads) unpack_masks_kernel(PackParams p, bool* out) {
  const int64_t index = thread_index<int64_t>();
  if (index >= p.count * p.height * p.width) {
    return;
  }
  const Split<int64_t> at(index, p.width);
  out[index] = p.bits[at.outer * p.words + at.inner / 32] >> (at.inner % 32) & 1u;
}

}  // namespace
}  // namespace segkern
