// Which mean field kernel runs; `launch` as in lattice_launch.cuh.
#pragma once

#include "../permutohedral/lattice_launch.cuh"
#include "mean_field.cuh"

namespace segkern {

template <typename Launch>
void mean_field_update(const MeanFieldParams& p, const Launch& launch) {
  const int64_t threads = p.batch * p.points * 32;
  if (p.labels <= 32) {
    launch(mean_field_update_kernel<1>, threads, p);
  } else if (p.labels <= 64) {
    launch(mean_field_update_kernel<2>, threads, p);
  } else if (p.labels <= 128) {
    launch(mean_field_update_kernel<4>, threads, p);
  } else {
    launch(mean_field_update_kernel<8>, threads, p);
  }
}

// Filters the marginals p.q with every term, so that the next update finds blurred sums.
// `before` holds the terms' factors before the filter.
template <typename Launch>
void mean_field_filter(MeanFieldParams& p, const float* const* before, const Launch& launch) {
  for (int t = 0; t < p.n_terms; ++t) {
    FilterParams& filter = p.terms[t].filter;
    const float* after = filter.scale;
    filter.values = p.q;
    filter.scale = before[t];
    lattice_splat_and_blur(filter, false, launch);
    filter.scale = after;
  }
}

}  // namespace segkern
