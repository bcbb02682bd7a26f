// Building permutohedral lattices and filtering over them.
//
// Building sorts the keys of all corners of all items together; the sort and the scan are CUB's,
// in permutohedral.cu. Filtering gathers in sorted order, without atomics: the same bits on every run.
// Counts of vertices stay on the device: grids are sized by a bound and threads stride over what
// is there.
#pragma once

#include "../common/device.cuh"
#include "lattice_params.h"

namespace segkern {
namespace {

// Bounds as integers that compare as the floats do.
__device__ __forceinline__ int32_t ordered_bits(float v) {
  const int32_t bits = __float_as_int(v);
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
__device__ __forceinline__ float from_ordered_bits(int32_t bits) {
  return __int_as_float(bits >= 0 ? bits : bits ^ 0x7fffffff);
}

// One thread.
__global__ void lattice_clear_format_kernel(DeviceKeyFormat* format) {
  if (thread_index<int64_t>() == 0) {
    for (int j = 0; j < kMaxCudaDims; ++j) {
      format->low_bits[j] = INT32_MAX;
      format->high_bits[j] = INT32_MIN;
    }
    format->not_finite = 0;
  }
}

// A thread owns every `threads`-th point of one dimension; reads each feature once.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_bounds_kernel(LatticeParams p, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  for (int j = 0; j < p.dims; ++j) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    int not_finite = 0;
    for (int64_t i = thread; i < p.items * p.points; i += threads) {
      const Split<int64_t> at(i, p.points);
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
    if (threadIdx.x % 32 == 0) {
      atomicMin(&p.format->low_bits[j], low);
      atomicMax(&p.format->high_bits[j], high);
      if (not_finite) {
        atomicOr(&p.format->not_finite, 1);
      }
    }
  }
}

// One thread: fields that hold every coordinate within the bounds and one step of the blur beyond,
// so that adding a step to a key never carries into the next field.
__global__ void lattice_format_kernel(LatticeParams p) {
  if (thread_index<int64_t>() != 0) {
    return;
  }
  DeviceKeyFormat& format = *p.format;
  int32_t bits = 0;
  bool valid = !format.not_finite;
  for (int j = p.dims - 1; j >= 0; --j) {
    double low = 0, high = 0;
    for (int i = j; i < p.dims; ++i) {
      low += p.scales[i] * from_ordered_bits(format.low_bits[i]);
      high += p.scales[i] * from_ordered_bits(format.high_bits[i]);
    }
    if (j > 0) {
      low -= j * p.scales[j - 1] * from_ordered_bits(format.high_bits[j - 1]);
      high -= j * p.scales[j - 1] * from_ordered_bits(format.low_bits[j - 1]);
    }
    const double margin = 2.0 * p.dims + 2 + 1e-6 * fmax(fabs(low), fabs(high));
    low = floor(low - margin);
    high = ceil(high + margin);
    valid = valid && low > -1e9 && high < 1e9;
    format.low[j] = valid ? static_cast<int64_t>(low) : 0;
    format.shift[j] = bits;
    double reach = 2;
    ++bits;
    while (valid && reach <= high - low) {
      reach *= 2;
      ++bits;
    }
  }
  int32_t item_bits = 0;
  while ((int64_t{1} << item_bits) < p.items) {
    ++item_bits;
  }
  format.valid = valid && bits + item_bits <= 63;
  format.bits = bits;
}

// The step of axis `axis` in packed form: plus one in every coordinate, minus d in its own.
__device__ __forceinline__ uint64_t axis_step(const DeviceKeyFormat& format, int dims, int axis) {
  uint64_t step = 0;
  for (int j = 0; j < dims; ++j) {
    step += uint64_t{1} << format.shift[j];
  }
  if (axis < dims) {
    step -= static_cast<uint64_t>(dims + 1) << format.shift[axis];
  }
  return step;
}

// A thread owns a point: reads its d features, writes D weights, keys and numbers. Products are
// rounded before they are added, as on the CPU: the embedding decides which vertices exist.
template <int kDims>
__global__ void __launch_bounds__(kBlockThreads) lattice_embed_kernel(LatticeParams p) {
  constexpr int kCorners = kDims + 1;
  const int64_t thread = thread_index<int64_t>();
  if (thread >= p.items * p.points) {
    return;
  }
  const Split<int64_t> at(thread, p.points);
  const DeviceKeyFormat& format = *p.format;
  const bool valid = format.valid;
  const float* from = p.features + at.outer * p.item_stride + at.inner * p.point_stride;
  double rest[kCorners];
  double total = 0;
#pragma unroll
  for (int j = kDims; j > 0; --j) {
    const double scaled =
        __dmul_rn(p.scales[j - 1], valid ? from[(j - 1) * p.dim_stride] : 0.0f);
    rest[j] = __dadd_rn(total, -__dmul_rn(static_cast<double>(j), scaled));
    total = __dadd_rn(total, scaled);
  }
  rest[0] = total;
  const double inverse = 1.0 / kCorners;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds, ties to even
  int32_t rem0[kCorners], rank[kCorners];
  int32_t whole = 0;
#pragma unroll
  for (int j = 0; j < kCorners; ++j) {
    const double v = __dadd_rn(__dadd_rn(__dmul_rn(rest[j], inverse), magic), -magic);
    whole += static_cast<int32_t>(v);
    rem0[j] = static_cast<int32_t>(v) * kCorners;
    rest[j] = __dadd_rn(rest[j], -__dmul_rn(v, kCorners));
  }
#pragma unroll
  for (int j = 0; j < kCorners; ++j) {
    rank[j] = whole;
#pragma unroll
    for (int i = 0; i < kCorners; ++i) {
      if (i != j) {
        rank[j] += i < j ? !(rest[i] < rest[j]) ? 1 : 0 : rest[j] < rest[i] ? 1 : 0;
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kCorners; ++j) {
    const int32_t move = rank[j] < 0 ? kCorners : rank[j] >= kCorners ? -kCorners : 0;
    rank[j] += move;
    rem0[j] += move;
    rest[j] -= move;
  }
  uint64_t key = valid ? static_cast<uint64_t>(at.outer) << format.bits
                       : static_cast<uint64_t>(at.outer);
  if (valid) {
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      key += static_cast<uint64_t>(rem0[j] - format.low[j]) << format.shift[j];
    }
  }
  double before = 0, first = 0;
  for (int k = 0; k < kCorners; ++k) {
    double here = 0;
    uint64_t step = 0;
#pragma unroll
    for (int j = 0; j < kCorners; ++j) {
      if (kDims - rank[j] == k) {
        here = rest[j];
      }
      if (k > 0 && kDims - rank[j] == k - 1) {
        step = axis_step(format, kDims, j);
      }
    }
    const int64_t corner = thread * kCorners + k;
    if (k == 0) {
      first = here;
    } else {
      key += valid ? step : 0;
      p.weight[corner] = valid ? static_cast<float>((here - before) * inverse) : NAN;
    }
    before = here;
    p.keys[corner] = key;
    p.numbers[corner] = static_cast<int32_t>(corner - at.outer * p.item_corners());
  }
  p.weight[thread * kCorners] =
      valid ? static_cast<float>(1.0 + (first - before) * inverse) : NAN;
}

// A thread owns a sorted key: whether it is the first of its vertex.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_heads_kernel(LatticeParams p, int64_t threads) {
  const int64_t i = thread_index<int64_t>();
  if (i < threads) {
    p.ranks[i] = i == 0 || p.keys[i] != p.keys[i - 1];
  }
}

// A thread owns a sorted key, whose rank is now the number of vertices up to it: gives its corner
// the vertex, and the vertex its first corner and its key.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_assign_kernel(LatticeParams p, int64_t threads) {
  const int64_t i = thread_index<int64_t>();
  if (i >= threads) {
    return;
  }
  const Split<int64_t> at(i, p.item_corners());
  const int64_t start = i - at.inner;
  const int32_t vertex = p.ranks[i] - p.ranks[start];
  p.vertex[start + p.numbers[i]] = vertex;
  p.corners[i] = p.numbers[i];
  if (at.inner == 0 || p.ranks[i] != p.ranks[i - 1]) {
    p.offsets[at.outer * (p.bound + 1) + vertex] = static_cast<int32_t>(at.inner);
    p.vertex_keys[at.outer * p.bound + vertex] = p.keys[i];
  }
  if (at.inner + 1 == p.item_corners()) {
    p.count[at.outer] = vertex + 1;
    p.offsets[at.outer * (p.bound + 1) + vertex + 1] = static_cast<int32_t>(p.item_corners());
  }
}

__device__ __forceinline__ int32_t find_key(const uint64_t* keys, int32_t count, uint64_t key) {
  int32_t low = 0, high = count;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < count && keys[low] == key ? low : count;
}

// A thread owns vertices of one axis after the other: two binary searches each.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_link_kernel(LatticeParams p, int64_t threads) {
  for (int64_t item = 0; item < p.items; ++item) {
    const auto count = static_cast<int32_t>(p.count[item]);
    const uint64_t* keys = p.vertex_keys + item * p.bound;
    for (int axis = 0; axis <= p.dims; ++axis) {
      const uint64_t step = p.format->valid ? axis_step(*p.format, p.dims, axis) : 0;
      int32_t* to = p.neighbours + (item * (p.dims + 1) + axis) * p.bound * 2;
      for (int64_t v = thread_index<int64_t>(); v < count; v += threads) {
        to[2 * v] = find_key(keys, count, keys[v] - step);
        to[2 * v + 1] = find_key(keys, count, keys[v] + step);
      }
    }
  }
}

// A thread owns one channel of a chunk of sorted corners; neighbouring threads have neighbouring
// channels, so that rows are read coalesced. Vertices that lie within the chunk are written, shares
// of the others kept for lattice_join_kernel.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_splat_kernel(FilterParams p, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const LatticeParams& l = p.lattice;
  const Split<int64_t> lane(thread, p.stride);
  const Split<int64_t> at(lane.outer, p.chunks());
  const int64_t item = l.items == 1 ? 0 : at.outer;
  const int corners = l.dims + 1;
  const int64_t first = item * l.item_corners();
  const int64_t begin = at.inner * FilterParams::kChunk;
  const int64_t end = min(begin + FilterParams::kChunk, l.item_corners());
  const int32_t* offsets = l.offsets + item * (l.bound + 1);
  const float* values = p.values + at.outer * l.points * p.stride + lane.inner;
  const auto emit = [&](int32_t v, float total) {
    if (offsets[v] < begin) {
      p.heads[thread] = total;
    } else if (offsets[v + 1] > end) {
      p.tails[thread] = total;
    } else {
      p.sums[(at.outer * l.bound + v) * p.stride + lane.inner] = total;
    }
  };
  int32_t current = l.vertex[first + l.corners[first + begin]];
  float total = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int32_t corner = l.corners[first + i];
    const int32_t v = l.vertex[first + corner];
    if (v != current) {
      emit(current, total);
      current = v;
      total = 0;
    }
    const int32_t point = corner / corners;
    const float scale = p.scale ? p.scale[item * l.points + point] : 1.0f;
    total += l.weight[first + corner] * scale * values[point * p.stride];
  }
  emit(current, total);
}

// A thread owns a channel of vertices: adds up those of several chunks, in order.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_join_kernel(FilterParams p, int64_t threads) {
  const LatticeParams& l = p.lattice;
  for (int64_t n = 0; n < p.batch; ++n) {
    const int64_t item = l.items == 1 ? 0 : n;
    const int32_t* offsets = l.offsets + item * (l.bound + 1);
    const int64_t work = l.count[item] * p.stride;
    for (int64_t i = thread_index<int64_t>(); i < work; i += threads) {
      const Split<int64_t> at(i, p.stride);
      const int64_t from = offsets[at.outer] / FilterParams::kChunk;
      const int64_t to = (offsets[at.outer + 1] - 1) / FilterParams::kChunk;
      if (from < to) {
        const int64_t chunk = n * p.chunks();
        float total = p.tails[(chunk + from) * p.stride + at.inner];
        for (int64_t c = from + 1; c <= to; ++c) {
          total += p.heads[(chunk + c) * p.stride + at.inner];
        }
        p.sums[(n * l.bound + at.outer) * p.stride + at.inner] = total;
      }
    }
  }
}

// A thread owns a channel of vertices: one axis, from sums to other. Reads three rows, writes one.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_blur_kernel(FilterParams p, int64_t threads) {
  const LatticeParams& l = p.lattice;
  for (int64_t n = 0; n < p.batch; ++n) {
    const int64_t item = l.items == 1 ? 0 : n;
    const int64_t count = l.count[item];
    const int32_t* neighbours = l.neighbours + (item * (l.dims + 1) + p.axis) * l.bound * 2;
    const float* in = p.sums + n * l.bound * p.stride;
    float* out = p.other + n * l.bound * p.stride;
    for (int64_t i = thread_index<int64_t>(); i < count * p.stride; i += threads) {
      const Split<int64_t> at(i, p.stride);
      const int64_t before = neighbours[2 * at.outer], after = neighbours[2 * at.outer + 1];
      const float a = before < count ? in[before * p.stride + at.inner] : 0.0f;
      const float b = after < count ? in[after * p.stride + at.inner] : 0.0f;
      out[i] = in[i] + 0.5f * (a + b);
    }
  }
}

// The value of one channel of a point, times alpha and the point's scale.
__device__ __forceinline__ float sliced(const FilterParams& p, int64_t n, int64_t point,
                                        int64_t channel) {
  const LatticeParams& l = p.lattice;
  const int64_t item = l.items == 1 ? 0 : n;
  const int corners = l.dims + 1;
  const int64_t first = (item * l.points + point) * corners;
  float total = 0;
  for (int k = 0; k < corners; ++k) {
    total += l.weight[first + k] *
             p.sums[(n * l.bound + l.vertex[first + k]) * p.stride + channel];
  }
  const float alpha = 1.0f / (1.0f + 1.0f / static_cast<float>(1 << l.dims));
  return total * alpha * (p.scale ? p.scale[item * l.points + point] : 1.0f);
}

// A thread owns one channel of a point, in rows. Reads D values, writes one.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_slice_kernel(FilterParams p, float* out, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread < threads) {
    const Split<int64_t> lane(thread, p.stride);
    const Split<int64_t> at(lane.outer, p.lattice.points);
    out[thread] = sliced(p, at.outer, at.inner, lane.inner);
  }
}

// Between planes (batch, channels, points) and rows (batch, points, stride): a thread owns an
// element of the rows; those behind the channels become zero.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_pack_kernel(const float* planes, float* rows, int64_t channels, int64_t points,
                        int64_t stride, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread < threads) {
    const Split<int64_t> lane(thread, stride);
    const Split<int64_t> at(lane.outer, points);
    rows[thread] = lane.inner < channels
                       ? planes[(at.outer * channels + lane.inner) * points + at.inner]
                       : 0.0f;
  }
}

// A thread owns an element of the planes.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_unpack_kernel(const float* rows, float* planes, int64_t channels, int64_t points,
                          int64_t stride, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread < threads) {
    const Split<int64_t> at(thread, points);
    const Split<int64_t> plane(at.outer, channels);
    planes[thread] = rows[(plane.outer * points + at.inner) * stride + plane.inner];
  }
}

}  // namespace
}  // namespace segkern
