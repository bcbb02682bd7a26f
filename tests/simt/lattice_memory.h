// Lattices and the buffers of filters in the memory of tests, built through the same choice of
// kernel and grid as on the device. The sort and the scan, which are CUB's there, are the standard
// library's here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "launcher.h"
#include "permutohedral/lattice_build_launch.cuh"
#include "permutohedral/lattice_filter_launch.cuh"
#include "permutohedral/rows.h"

namespace simt {

// Memory as an allocation may find it: what nobody writes must not be read.
template <typename T>
class Memory {
 public:
  T* take(int64_t size) {
    bytes_.emplace_back(static_cast<std::size_t>(size) * sizeof(T), poison_byte());
    return reinterpret_cast<T*>(bytes_.back().data());
  }

 private:
  std::vector<std::vector<unsigned char>> bytes_;
};

inline void set_scales(int dims, double* scales) {
  for (int i = 0; i < dims; ++i) {
    scales[i] = segkern::embedding_scale(dims, i);
  }
}

// The lattice of (items, points, dims) features.
struct Lattice {
  Memory<int32_t> ints;
  Memory<float> floats;
  Memory<int64_t> counts;
  segkern::LatticeArrays arrays{};

  Lattice(const float* features, int64_t items, int64_t points, int dims) {
    segkern::LatticeArrays& l = arrays;
    l.items = items;
    l.points = points;
    l.dims = dims;
    l.bound = points * (dims + 1);
    const int64_t all = items * l.bound;
    l.vertex = ints.take(all);
    l.weight = floats.take(all);
    l.corners = ints.take(all);
    l.offsets = ints.take(items * (l.bound + 1));
    l.neighbours = ints.take(all * 2 * (dims + 1));
    l.count = counts.take(items);

    segkern::BuildParams p{};
    p.lattice = l;
    set_scales(dims, p.scales);
    p.features = features;
    p.item_stride = points * dims;
    p.point_stride = dims;
    p.dim_stride = 1;
    Memory<segkern::DeviceKeyFormat> format;
    Memory<segkern::VertexKey> keys;
    Memory<int32_t> scratch;
    p.format = format.take(1);
    p.keys = keys.take(all);
    p.table = scratch.take(items * p.capacity());
    p.cells = p.sorted_firsts = scratch.take(all);
    p.firsts = scratch.take(all);
    p.numbers = scratch.take(all);
    p.ranks = scratch.take(all);
    p.vertex_firsts = scratch.take(all);
    segkern::lattice_embed(p, Launcher{});
    std::partial_sum(p.ranks, p.ranks + all, p.ranks);
    std::vector<int32_t> order(static_cast<std::size_t>(all));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return p.firsts[a] < p.firsts[b]; });
    for (int64_t i = 0; i < all; ++i) {
      p.sorted_firsts[i] = p.firsts[order[i]];
      l.corners[i] = p.numbers[order[i]];
    }
    segkern::lattice_finish(p, Launcher{});
  }
};

// The buffers of a filter over rows of `channels`.
struct FilterMemory {
  Memory<float> floats;
  segkern::FilterParams params{};

  FilterMemory(const segkern::LatticeArrays& lattice, int64_t batch, int64_t channels) {
    segkern::FilterParams& p = params;
    p.lattice = lattice;
    p.batch = batch;
    p.stride = segkern::row_stride(channels);
    p.values_item = lattice.points * p.stride;
    p.lane_bits = segkern::row_lane_bits(p.stride);
    p.sums = floats.take(batch * lattice.bound * p.stride);
    p.other = floats.take(batch * lattice.bound * p.stride);
    p.heads = floats.take(batch * p.chunks() * p.stride);
    p.tails = floats.take(batch * p.chunks() * p.stride);
  }
};

}  // namespace simt
