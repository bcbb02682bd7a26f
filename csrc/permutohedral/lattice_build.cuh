// Building permutohedral lattices.
//
// Corners find their vertex in a hash table of corners: a cell names the first corner of a vertex,
// whose key, in memory since the kernel before, tells whether it is the same vertex. Which cell a
// vertex gets depends on the order of threads, which corner is its first does not; vertices are
// numbered by it. So keys of any width cost the same, and the sort that puts a vertex's corners
// together needs only the bits of a corner's number. Scan and sort are CUB's, in permutohedral.cu.
#pragma once

#include "lattice_key.cuh"
#include "simplex.cuh"

namespace segkern {
namespace {

// A thread owns a point: reads its d features, writes D weights and keys (20 bytes a corner).
// Bound by its arithmetic in double precision, D^2 comparisons among it.
template <int kDims>
__global__ void __launch_bounds__(kBlockThreads) lattice_embed_kernel(BuildParams p) {
  constexpr int kCorners = kDims + 1;
  const int64_t thread = thread_index<int64_t>();
  if (thread >= p.lattice.items * p.lattice.points) {
    return;
  }
  const Split<int64_t> at(thread, p.lattice.points);
  const DeviceKeyFormat& format = *p.format;
  const bool valid = format.valid;
  const float* from = p.features + at.outer * p.item_stride + at.inner * p.point_stride;
  const Simplex<kDims> simplex(p.scales, [&](int j) {
    return valid ? static_cast<double>(from[j * p.dim_stride]) : 0.0;
  });
  VertexKey key = {0, 0};
#pragma unroll
  for (int j = 0; j < kDims; ++j) {
    key = key +
          field(static_cast<uint32_t>(simplex.quotient[j] - format.low[j]), format.shift[j]);
  }
  const double inverse = 1.0 / kCorners;
  double before = 0, first = 0;
#pragma unroll 1
  for (int k = 0; k < kCorners; ++k) {
    double here = 0;
    int moved = kDims;  // the coordinate that falls by D on the way to this corner
#pragma unroll
    for (int j = 0; j < kCorners; ++j) {
      here = simplex.place[j] == k ? simplex.rest[j] : here;
      moved = simplex.place[j] == k - 1 ? j : moved;
    }
    const int64_t corner = thread * kCorners + k;
    if (k == 0) {
      first = here;
    } else {
      key = key + VertexKey{1, 0};
      if (moved < kDims) {
        key = key - field(1, format.shift[moved]);
      }
      p.lattice.weight[corner] = valid ? static_cast<float>((here - before) * inverse) : NAN;
    }
    before = here;
    p.keys[corner] = key;
  }
  p.lattice.weight[thread * kCorners] =
      valid ? static_cast<float>(1.0 + (first - before) * inverse) : NAN;
}

// The cell where the search for a key begins.
__device__ __forceinline__ int64_t first_cell(const BuildParams& p, const VertexKey& key) {
  return static_cast<int64_t>((static_cast<uint64_t>(key_hash(key)) *
                               static_cast<uint64_t>(p.capacity())) >> 32);
}

// A thread owns a corner: finds or takes its vertex's cell, and leaves the smallest corner there.
// Reads a key, and on average less than two cells and keys of others, in any order: bound by the
// latency of the second-level cache.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_insert_kernel(BuildParams p, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const auto corner = static_cast<int32_t>(thread);
  const int64_t capacity = p.capacity();
  int32_t* table = p.table + thread / p.lattice.item_corners() * capacity;
  const VertexKey key = p.keys[thread];
  int64_t cell = first_cell(p, key);
  while (true) {
    int32_t seen = __ldcg(table + cell);
    if (seen < 0) {
      seen = atomicCAS(table + cell, -1, corner);
      if (seen < 0) {
        break;
      }
    }
    if (p.keys[seen] == key) {
      if (corner < seen) {
        atomicMin(table + cell, corner);
      }
      break;
    }
    cell = cell + 1 < capacity ? cell + 1 : 0;
  }
  p.cells[thread] = static_cast<int32_t>(static_cast<uint32_t>(cell));
}

// A thread owns a corner, after all are in the table: the first corner of its vertex, and whether
// it is that itself. Reads 8 bytes, one of the table at random, writes 12.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_resolve_kernel(BuildParams p, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const Split<int64_t> at(thread, p.lattice.item_corners());
  const auto cell = static_cast<int64_t>(static_cast<uint32_t>(p.cells[thread]));
  const int32_t first = p.table[at.outer * p.capacity() + cell];
  p.firsts[thread] = first;
  p.numbers[thread] = static_cast<int32_t>(at.inner);
  p.ranks[thread] = first == thread;
}

// A thread owns a corner, and the corner at its place in the sorted list. It gives its corner the
// vertex, a vertex its first corner and as yet no neighbours, and a vertex whose list begins here
// its offset.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_assign_kernel(BuildParams p, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const LatticeArrays& l = p.lattice;
  const int64_t corners = l.item_corners();
  const Split<int64_t> at(thread, corners);
  const int64_t start = thread - at.inner;
  const int32_t before = start > 0 ? p.ranks[start - 1] : 0;
  const int32_t count = p.ranks[start + corners - 1] - before;
  const int32_t first = p.firsts[thread];
  const int32_t vertex = p.ranks[first] - before - 1;
  l.vertex[thread] = vertex;
  if (first == thread) {
    p.vertex_firsts[at.outer * l.bound + vertex] = first;
    for (int axis = 0; axis <= l.dims; ++axis) {
      int32_t* to = l.neighbours + ((at.outer * (l.dims + 1) + axis) * l.bound + vertex) * 2;
      to[0] = count;
      to[1] = count;
    }
  }
  int32_t* offsets = l.offsets + at.outer * (l.bound + 1);
  const int32_t sorted = p.sorted_firsts[thread];
  if (at.inner == 0 || p.sorted_firsts[thread - 1] != sorted) {
    offsets[p.ranks[sorted] - before - 1] = static_cast<int32_t>(at.inner);
  }
  if (at.inner + 1 == corners) {
    l.count[at.outer] = count;
    offsets[count] = static_cast<int32_t>(corners);
  }
}

// A thread owns pairs of an axis and a vertex of one item: looks the next vertex up and makes the
// two each other's neighbours. One key, and on average less than two cells and keys, at random.
__global__ void __launch_bounds__(kBlockThreads)
    lattice_link_kernel(BuildParams p, int64_t item_threads) {
  const LatticeArrays& l = p.lattice;
  const Split<int64_t> at(thread_index<int64_t>(), item_threads);
  const int64_t item = at.outer;
  const int64_t count = l.count[item], capacity = p.capacity();
  const int32_t* table = p.table + item * capacity;
  for (int64_t i = at.inner; i < count * (l.dims + 1); i += item_threads) {
    const Split<int64_t> pair(i, count);
    const auto axis = static_cast<int>(pair.outer);
    const VertexKey key = next_along(*p.format, l.dims, axis,
                                     p.keys[p.vertex_firsts[item * l.bound + pair.inner]]);
    int64_t cell = first_cell(p, key);
    int32_t seen = table[cell];
    while (seen >= 0 && !(p.keys[seen] == key)) {
      cell = cell + 1 < capacity ? cell + 1 : 0;
      seen = table[cell];
    }
    if (seen >= 0) {
      const int32_t next = l.vertex[seen];
      int32_t* to = l.neighbours + (item * (l.dims + 1) + axis) * l.bound * 2;
      to[2 * pair.inner + 1] = next;
      to[2 * next] = static_cast<int32_t>(pair.inner);
    }
  }
}

}  // namespace
}  // namespace segkern
