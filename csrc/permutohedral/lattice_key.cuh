// Keys of vertices: how many bits each coordinate needs, and arithmetic on 128 of them.
#pragma once

#include "../common/device.cuh"
#include "lattice_params.h"

namespace segkern {
namespace {

__device__ __forceinline__ bool operator==(const VertexKey& a, const VertexKey& b) {
  return a.low == b.low && a.high == b.high;
}
__device__ __forceinline__ VertexKey operator+(const VertexKey& a, const VertexKey& b) {
  const uint64_t low = a.low + b.low;
  return {low, a.high + b.high + (low < a.low)};
}
__device__ __forceinline__ VertexKey operator-(const VertexKey& a, const VertexKey& b) {
  return {a.low - b.low, a.high - b.high - (a.low < b.low)};
}

// A number below 2^32 in the field that begins at bit `shift`.
__device__ __forceinline__ VertexKey field(uint32_t value, int shift) {
  const uint64_t wide = value;
  if (shift >= 64) {
    return {0, wide << (shift - 64)};
  }
  return {wide << shift, shift == 0 ? 0 : wide >> (64 - shift)};
}

// The neighbour of a vertex along `axis`: one is added to every coordinate, and d + 1 = D taken
// from its own. The remainder of the highest coordinates wraps into the quotients.
__device__ __forceinline__ VertexKey next_along(const DeviceKeyFormat& format, int dims, int axis,
                                                VertexKey key) {
  const auto remainder = static_cast<int>(key.low & ((1u << format.remainder_bits) - 1));
  if (remainder < dims) {
    key = key + VertexKey{1, 0};
  } else {
    key = key - VertexKey{static_cast<uint64_t>(dims), 0};
    for (int j = 0; j < dims; ++j) {
      key = key + field(1, format.shift[j]);
    }
  }
  return axis < dims ? key - field(1, format.shift[axis]) : key;
}

// Every bit of a key reaches the upper half of the product, which picks the cell.
__device__ __forceinline__ uint32_t key_hash(const VertexKey& key) {
  uint64_t mixed = key.low * 0x9e3779b97f4a7c15u ^ (key.high + 0x632be59bd9b4e019u);
  mixed = (mixed ^ mixed >> 32) * 0xd6e8feb86659fd93u;
  mixed = (mixed ^ mixed >> 32) * 0xd6e8feb86659fd93u;
  return static_cast<uint32_t>(mixed >> 32);
}

// Bounds as integers that compare as the floats do.
__device__ __forceinline__ int32_t ordered_bits(float v) {
  const int32_t bits = __float_as_int(v);
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
__device__ __forceinline__ float from_ordered_bits(int32_t bits) {
  return __int_as_float(bits >= 0 ? bits : bits ^ 0x7fffffff);
}

// A thread owns every `threads`-th cell of the table; the first one the format too. Writes 8 bytes
// a corner: bound by memory.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_clear_kernel(BuildParams p, int64_t cells, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  for (int64_t i = thread; i < cells; i += threads) {
    p.table[i] = -1;
  }
  if (thread == 0) {
    for (int j = 0; j < kMaxLatticeDims; ++j) {
      p.format->low_bits[j] = INT32_MAX;
      p.format->high_bits[j] = INT32_MIN;
    }
    p.format->not_finite = 0;
  }
}

// A thread owns every `threads`-th point of one dimension after the other; reads each feature once.
// A block has one atomic a bound, as all blocks meet in the same few words.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_bounds_kernel(BuildParams p, int64_t threads) {
  constexpr int kWarps = kBlockThreads / 32;
  __shared__ int32_t lows[kWarps], highs[kWarps], bad[kWarps];
  const int64_t thread = thread_index<int64_t>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int j = 0; j < p.lattice.dims; ++j) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    int32_t not_finite = 0;
    for (int64_t i = thread; i < p.lattice.items * p.lattice.points; i += threads) {
      const Split<int64_t> at(i, p.lattice.points);
      const float v = p.features[at.outer * p.item_stride + at.inner * p.point_stride +
                                 j * p.dim_stride];
      not_finite |= v - v != 0.0f;
      low = min(low, ordered_bits(v));
      high = max(high, ordered_bits(v));
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      low = min(low, __shfl_xor_sync(kFullWarp, low, offset));
      high = max(high, __shfl_xor_sync(kFullWarp, high, offset));
      not_finite |= __shfl_xor_sync(kFullWarp, not_finite, offset);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
      lows[warp] = low;
      highs[warp] = high;
      bad[warp] = not_finite;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < kWarps; ++w) {
        low = min(low, lows[w]);
        high = max(high, highs[w]);
        not_finite |= bad[w];
      }
      atomicMin(&p.format->low_bits[j], low);
      atomicMax(&p.format->high_bits[j], high);
      if (not_finite) {
        atomicOr(&p.format->not_finite, 1);
      }
    }
  }
}

// Lays the fields out for features within given bounds; returns whether they fit. A field holds
// every coordinate that such points can have, and one step of the blur beyond it, so that a step
// never carries into the next field. Whatever fits 127 bits of whole coordinates fits here too.
__device__ inline bool lay_out(DeviceKeyFormat& format, const double* scales, int dims,
                               bool bounded) {
  const int size = dims + 1;
  int32_t bits = 0;
  while ((1 << bits) < size) {
    ++bits;
  }
  format.remainder_bits = bits;
  for (int j = dims - 1; j >= 0; --j) {
    double low = 0, high = 0;
    for (int i = j; bounded && i < dims; ++i) {
      low += scales[i] * from_ordered_bits(format.low_bits[i]);
      high += scales[i] * from_ordered_bits(format.high_bits[i]);
    }
    if (bounded && j > 0) {
      low -= j * scales[j - 1] * from_ordered_bits(format.high_bits[j - 1]);
      high -= j * scales[j - 1] * from_ordered_bits(format.low_bits[j - 1]);
    }
    const double margin = 2.0 * size + 1e-6 * fmax(fabs(low), fabs(high));
    low = floor(low - margin);
    high = ceil(high + margin);
    // Beyond this the embedding has no fraction left in int32 arithmetic.
    if (!(low > -1e9 && high < 1e9)) {
      return false;
    }
    const double first = floor(low / size), last = floor(high / size);
    format.low[j] = static_cast<int32_t>(first);
    format.shift[j] = bits;
    double reach = 2;
    ++bits;
    while (reach <= last - first) {
      reach *= 2;
      ++bits;
    }
  }
  return bits <= 128;
}

// One thread. Where the features do not fit, keys are those of points at the origin.
__global__ void lattice_format_kernel(BuildParams p) {
  if (thread_index<int64_t>() != 0) {
    return;
  }
  DeviceKeyFormat& format = *p.format;
  format.valid = !format.not_finite && lay_out(format, p.scales, p.lattice.dims, true);
  if (!format.valid) {
    lay_out(format, p.scales, p.lattice.dims, false);
  }
}

}  // namespace
}  // namespace segkern
