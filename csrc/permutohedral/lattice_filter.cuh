// Filtering over permutohedral lattices: gathers in sorted order, without atomics, so that results
// are the same bits on every run.
//
// Rows of channels are padded to whole vectors of 4 floats; 2^lane_bits threads share a row, a
// vector each. Kernels over vertices are sized by a bound and stride over what is there, as counts
// stay on the device. Filters of several terms share a launch: a block serves one item of one term.
#pragma once

#include "../common/device.cuh"
#include "lattice_params.h"

namespace segkern {
namespace {

using Vec4 = Vec<float, 4>;

__device__ __forceinline__ Vec4 zeros() { return {{0.0f, 0.0f, 0.0f, 0.0f}}; }

// to += factor * vec
__device__ __forceinline__ void add_scaled(Vec4& to, float factor, const Vec4& vec) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to.lane[i] += factor * vec.lane[i];
  }
}

// What a thread of a group's launch works on: an item of a term, and of that item's rows, which
// are dealt to groups of threads, every `step`-th from `row` on; of a row every `lanes`-th vector
// from `lane` on.
struct RowShare {
  const FilterParams& filter;
  int64_t item, lattice_item;
  int64_t row, step;
  int lane, lanes;

  __device__ __forceinline__ RowShare(const FilterGroup& group, unsigned item_blocks)
      : filter(group.terms[blockIdx.x / item_blocks /
                           static_cast<unsigned>(group.terms[0].batch)]) {
    const unsigned unit = blockIdx.x / item_blocks;
    item = unit % static_cast<unsigned>(filter.batch);
    lattice_item = filter.lattice.items == 1 ? 0 : item;
    const int64_t thread =
        static_cast<int64_t>(blockIdx.x - unit * item_blocks) * kBlockThreads + threadIdx.x;
    lanes = 1 << filter.lane_bits;
    lane = static_cast<int>(thread) & (lanes - 1);
    row = thread >> filter.lane_bits;
    step = (static_cast<int64_t>(item_blocks) * kBlockThreads) >> filter.lane_bits;
  }
};

// A group of threads owns a chunk of sorted corners, four at a time so that their loads overlap.
// Vertices that lie within the chunk are written, shares of the others kept for the join. Reads a
// row of values a corner (neighbouring points in turn, mostly from the caches) and 12 bytes of
// corner, weight and factor; bound by the latency of those gathers.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_splat_kernel(const __grid_constant__ FilterGroup group, unsigned item_blocks) {
  constexpr int kAtOnce = 4;
  const RowShare at(group, item_blocks);
  const FilterParams& p = at.filter;
  const LatticeArrays& l = p.lattice;
  if (at.row >= p.chunks()) {
    return;
  }
  const int64_t begin = at.row * FilterParams::kChunk;
  const int64_t end = min(begin + FilterParams::kChunk, l.item_corners());
  const auto corner_count = static_cast<uint32_t>(l.dims + 1);
  const int64_t first = at.lattice_item * l.item_corners();
  const int32_t* sorted = l.corners + first;
  const float* weights = l.weight + first;
  const int32_t* offsets = l.offsets + at.lattice_item * (l.bound + 1);
  const float* before = p.before ? p.before + at.lattice_item * l.points : nullptr;
  const float* values = p.values + at.item * p.values_item;
  const int64_t shares = (at.item * p.chunks() + at.row) * p.stride;
  for (int64_t channel = 4 * at.lane; channel < p.stride; channel += 4 * at.lanes) {
    int32_t vertex = l.vertex[first + sorted[begin]];
    int32_t start = offsets[vertex], stop = offsets[vertex + 1];
    Vec4 total = zeros();
    const auto emit = [&] {
      float* to = start < begin ? p.heads + shares
                  : stop > end  ? p.tails + shares
                                : p.sums + (at.item * l.bound + vertex) * p.stride;
      store_vec(to + channel, total);
    };
    for (int64_t i = begin; i < end; i += kAtOnce) {
      float factor[kAtOnce];
      Vec4 row[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int32_t corner = sorted[min(i + n, end - 1)];
        const uint32_t point = static_cast<uint32_t>(corner) / corner_count;
        factor[n] = weights[corner] * (before ? before[point] : 1.0f);
        row[n] = load_vec<float, 4>(values + point * p.stride + channel);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        if (i + n < end) {
          if (i + n == stop) {
            emit();
            ++vertex;
            start = stop;
            stop = offsets[vertex + 1];
            total = zeros();
          }
          add_scaled(total, factor[n], row[n]);
        }
      }
    }
    emit();
  }
}

// A group of threads owns vertices: adds up those of several chunks, in order, so many shares at a
// time that their loads overlap: the vertex with the most corners decides how long this takes.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_join_kernel(const __grid_constant__ FilterGroup group, unsigned item_blocks) {
  constexpr int kAtOnce = 8;
  const RowShare at(group, item_blocks);
  const FilterParams& p = at.filter;
  const LatticeArrays& l = p.lattice;
  const int32_t* offsets = l.offsets + at.lattice_item * (l.bound + 1);
  const int64_t count = l.count[at.lattice_item], shares = at.item * p.chunks();
  for (int64_t vertex = at.row; vertex < count; vertex += at.step) {
    const int64_t from = offsets[vertex] / FilterParams::kChunk;
    const int64_t to = (offsets[vertex + 1] - 1) / FilterParams::kChunk;
    if (from == to) {
      continue;
    }
    for (int64_t channel = 4 * at.lane; channel < p.stride; channel += 4 * at.lanes) {
      const float* head = p.heads + (shares + from + 1) * p.stride + channel;
      Vec4 total = load_vec<float, 4>(p.tails + (shares + from) * p.stride + channel);
      for (int64_t left = to - from; left > 0; left -= kAtOnce) {
        Vec4 row[kAtOnce];
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          row[n] = n < left ? load_vec<float, 4>(head) : zeros();
          head += p.stride;
        }
#pragma unroll
        for (int n = 0; n < kAtOnce; ++n) {
          add_scaled(total, 1.0f, row[n]);
        }
      }
      store_vec(p.sums + (at.item * l.bound + vertex) * p.stride + channel, total);
    }
  }
}

// A group of threads owns vertices: one axis, from sums to other. Reads three rows (two of them
// another thread's own, from the caches) and 8 bytes, writes one: bound by memory where the
// vertices are many, else by latency.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_blur_kernel(const __grid_constant__ FilterGroup group, unsigned item_blocks) {
  const RowShare at(group, item_blocks);
  const FilterParams& p = at.filter;
  const LatticeArrays& l = p.lattice;
  if (p.axis < 0) {
    return;
  }
  const int64_t count = l.count[at.lattice_item];
  const int32_t* neighbours =
      l.neighbours + (at.lattice_item * (l.dims + 1) + p.axis) * l.bound * 2;
  const float* in = p.sums + at.item * l.bound * p.stride;
  float* out = p.other + at.item * l.bound * p.stride;
  for (int64_t vertex = at.row; vertex < count; vertex += at.step) {
    const Vec<int32_t, 2> near = load_vec<int32_t, 2>(neighbours + 2 * vertex);
    for (int64_t channel = 4 * at.lane; channel < p.stride; channel += 4 * at.lanes) {
      Vec4 sides = zeros();
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        if (near.lane[side] < count) {
          add_scaled(sides, 1.0f,
                     load_vec<float, 4>(in + near.lane[side] * p.stride + channel));
        }
      }
      Vec4 total = load_vec<float, 4>(in + vertex * p.stride + channel);
      add_scaled(total, 0.5f, sides);
      store_vec(out + vertex * p.stride + channel, total);
    }
  }
}

// Four channels of a point from its corners, times alpha and the point's factor.
__device__ __forceinline__ Vec4 sliced(const FilterParams& p, int64_t item, int64_t point,
                                       int64_t channel) {
  const LatticeArrays& l = p.lattice;
  const int64_t lattice_point = (l.items == 1 ? 0 : item) * l.points + point;
  const int corners = l.dims + 1;
  const int32_t* vertex = l.vertex + lattice_point * corners;
  const float* weight = l.weight + lattice_point * corners;
  const float* sums = p.sums + item * l.bound * p.stride + channel;
  Vec4 total = zeros();
#pragma unroll 3
  for (int k = 0; k < corners; ++k) {
    add_scaled(total, weight[k], load_vec<float, 4>(sums + vertex[k] * p.stride));
  }
  const float gain = l.alpha() * (p.after ? p.after[lattice_point] : 1.0f);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    total.lane[i] *= gain;
  }
  return total;
}

// Planes (batch, channels, points) of any floating type beside rows (batch, points, stride): a
// thread owns four channels of a point, neighbouring threads have neighbouring points, so that
// planes are read and written whole.
struct PlaneShare {
  int64_t item, channel, point;

  __device__ __forceinline__ PlaneShare(int64_t thread, int64_t points, int64_t vectors)
      : item(0), channel(0), point(0) {
    const Split<int64_t> at(thread, points);
    const Split<int64_t> plane(at.outer, vectors);
    item = plane.outer;
    channel = 4 * plane.inner;
    point = at.inner;
  }
};

// Rows = factor * planes, `pad` behind the channels, with `rows_item` floats from item to item.
// Moves each value once.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    lattice_pack_kernel(const T* planes, float* rows, int64_t channels, int64_t points,
                        int64_t stride, int64_t rows_item, float factor, float pad,
                        int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const PlaneShare at(thread, points, stride / 4);
  const T* from = planes + (at.item * channels + at.channel) * points + at.point;
  Vec4 row;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    row.lane[i] = at.channel + i < channels
                      ? factor * static_cast<float>(widen(from[i * points]))
                      : pad;
  }
  store_vec(rows + at.item * rows_item + at.point * stride + at.channel, row);
}

template <typename T>
__device__ __forceinline__ void store_planes(T* planes, const PlaneShare& at, int64_t channels,
                                             int64_t points, const Vec4& row) {
  T* to = planes + (at.item * channels + at.channel) * points + at.point;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (at.channel + i < channels) {
      to[i * points] = Narrow<T>::from(row.lane[i]);
    }
  }
}

// Planes = factor * rows. Moves each value once.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    lattice_unpack_kernel(const float* rows, T* planes, int64_t channels, int64_t points,
                          int64_t stride, float factor, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const PlaneShare at(thread, points, stride / 4);
  Vec4 row = zeros();
  add_scaled(row, factor,
             load_vec<float, 4>(rows + (at.item * points + at.point) * stride + at.channel));
  store_planes(planes, at, channels, points, row);
}

// Blurred sums to planes. Reads D vectors of 16 bytes a thread from the caches, as neighbouring
// points share vertices, and writes each value once.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads)
    lattice_slice_kernel(const __grid_constant__ FilterParams p, T* planes, int64_t channels,
                         int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const PlaneShare at(thread, p.lattice.points, p.stride / 4);
  store_planes(planes, at, channels, p.lattice.points,
               sliced(p, at.item, at.point, at.channel));
}

}  // namespace
}  // namespace segkern
