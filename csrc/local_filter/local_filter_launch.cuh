// Which kernel runs; `launch` as in max_pool_launch.cuh.
#pragma once

#include "../common/kernel_dispatch.cuh"
#include "local_filter.cuh"

namespace segkern {

inline int64_t local_filter_blocks(const LocalFilterParams& p) {
  const FilterGrid grid(p);
  return p.planes * grid.bands * grid.tiles;
}

template <typename Launch>
void local_filter(const LocalFilterParams& p, const Launch& launch) {
  const int64_t threads = local_filter_blocks(p) * kBlockThreads;
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    launch(p.colours == 1   ? local_filter_kernel<scalar_t, 1>
           : p.colours == 2 ? local_filter_kernel<scalar_t, 2>
           : p.colours == 3 ? local_filter_kernel<scalar_t, 3>
                            : local_filter_kernel<scalar_t, 4>,
           threads, p);
  });
}

template <typename Launch>
void local_filter_sums(const double* partial, int64_t parts, double* sums, const Launch& launch) {
  launch(local_filter_sums_kernel, kBlockThreads, partial, parts, sums);
}

}  // namespace segkern
