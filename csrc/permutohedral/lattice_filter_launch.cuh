// Filtering as launches; `launch` as in lattice_build_launch.cuh.
#pragma once

#include <algorithm>
#include <utility>

#include "../common/kernel_dispatch.cuh"
#include "lattice_filter.cuh"
#include "lattice_grid.cuh"

namespace segkern {

// From rows of values to blurred sums, which end up in the terms' sums: 2 launches, and one an
// axis.
template <typename Launch>
void lattice_splat_and_blur(FilterGroup& group, bool reverse, const Launch& launch) {
  int64_t chunk_threads = 0, vertex_threads = 0;
  int axes = 0;
  for (int t = 0; t < group.n_terms; ++t) {
    const FilterParams& p = group.terms[t];
    chunk_threads = std::max(chunk_threads, p.chunks() << p.lane_bits);
    vertex_threads = std::max(vertex_threads, p.lattice.bound << p.lane_bits);
    axes = std::max(axes, p.lattice.dims + 1);
  }
  const int64_t units = group.n_terms > 0 ? group.n_terms * group.terms[0].batch : 0;
  if (units == 0) {
    return;
  }
  const auto all = [&](auto kernel, int64_t item_blocks) {
    launch(kernel, units * item_blocks * kBlockThreads, group,
           static_cast<unsigned>(item_blocks));
  };
  const int64_t blocks = striding_blocks(vertex_threads, units);
  all(lattice_splat_kernel, blocks_of(chunk_threads));
  all(lattice_join_kernel, blocks);
  for (int i = 0; i < axes; ++i) {
    for (int t = 0; t < group.n_terms; ++t) {
      FilterParams& p = group.terms[t];
      const int dims = p.lattice.dims;
      p.axis = i > dims ? -1 : reverse ? dims - i : i;
    }
    all(lattice_blur_kernel, blocks);
    for (int t = 0; t < group.n_terms; ++t) {
      if (group.terms[t].axis >= 0) {
        std::swap(group.terms[t].sums, group.terms[t].other);
      }
    }
  }
}

template <typename Launch>
void lattice_pack(const void* planes, Element element, float* rows, int64_t batch,
                  int64_t channels, int64_t points, int64_t stride, int64_t rows_item,
                  float factor, float pad, const Launch& launch) {
  const int64_t threads = batch * points * (stride / 4);
  by_type(element, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(lattice_pack_kernel<T>, threads, static_cast<const T*>(planes), rows, channels, points,
           stride, rows_item, factor, pad, threads);
  });
}

template <typename Launch>
void lattice_unpack(const float* rows, float* planes, int64_t batch, int64_t channels,
                    int64_t points, int64_t stride, float factor, const Launch& launch) {
  const int64_t threads = batch * points * (stride / 4);
  launch(lattice_unpack_kernel<float>, threads, rows, planes, channels, points, stride, factor,
         threads);
}

template <typename Launch>
void lattice_slice(const FilterParams& p, void* planes, Element element, int64_t channels,
                   const Launch& launch) {
  const int64_t threads = p.batch * p.lattice.points * (p.stride / 4);
  by_type(element, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(lattice_slice_kernel<T>, threads, p, static_cast<T*>(planes), channels, threads);
  });
}

}  // namespace segkern
