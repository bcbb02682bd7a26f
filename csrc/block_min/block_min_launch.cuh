// Which kernel runs; `launch` as in max_pool_launch.cuh.
#pragma once

#include "../common/kernel_dispatch.cuh"
#include "block_min.cuh"

namespace segkern {

template <typename Launch>
void block_min_fwd(const BlockMinParams& p, const Launch& launch) {
  const int64_t threads = p.pixels() * p.labels;
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    by_index(launch, threads, [&](auto index) {
      launch(block_min_fwd_kernel<scalar_t, typename decltype(index)::type>, threads, p);
    });
  });
}

template <typename Launch>
void block_min_bwd(const BlockMinParams& p, const Launch& launch) {
  const int64_t threads = p.pixels() * p.labels;
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    by_index(launch, threads, [&](auto index) {
      launch(block_min_bwd_kernel<scalar_t, typename decltype(index)::type>, threads, p);
    });
  });
}

template <typename Launch>
void mean_field_pass_fwd(const BlockMinParams& p, const Launch& launch) {
  const int64_t threads = p.pixels();
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    by_index(launch, threads, [&](auto index) {
      launch(mean_field_pass_fwd_kernel<scalar_t, typename decltype(index)::type>, threads, p);
    });
  });
}

template <typename Launch>
void mean_field_pass_bwd(const BlockMinParams& p, const Launch& launch) {
  const int64_t threads = p.pixels();
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    by_index(launch, threads, [&](auto index) {
      launch(mean_field_pass_bwd_kernel<scalar_t, typename decltype(index)::type>, threads, p);
    });
  });
}

}  // namespace segkern
