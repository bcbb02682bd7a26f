// Which kernels of the Gaussian CRF run. Used by the CUDA launch functions and by the tests that
// run the kernels on the CPU. `launch` is called with a kernel, a number of threads and its
// arguments.
#pragma once

#include "../common/kernel_dispatch.cuh"
#include "gaussian_crf.cuh"

namespace segkern {

// Calls body(TypeTag<float | double>).
template <typename Body>
void by_precision(Element element, const Body& body) {
  if (element == Element::kFloat64) {
    body(TypeTag<double>{});
  } else {
    body(TypeTag<float>{});
  }
}

template <typename T, bool kMany, typename Launch>
void solve_in_one_launch(const CrfSolveParams& p, const Launch& launch) {
  const int64_t threads = p.items * p.systems * kBlockThreads;
  if (p.graph.nodes <= kFewCells) {
    launch(crf_solve_kernel<T, kFewCells, kMany>, threads, p);
  } else if constexpr (sizeof(T) == sizeof(float)) {
    launch(crf_solve_kernel<T, kMostCells, kMany>, threads, p);
  }
}

template <typename T, bool kMany, typename Launch>
void solve_in_many_launches(CrfSolveParams p, const Launch& launch) {
  const int64_t threads = p.items * p.systems * p.chunks() * kBlockThreads;
  launch(crf_begin_kernel<T>, threads, p);
  for (p.iteration = 0; p.iteration < p.max_iterations; ++p.iteration) {
    launch(crf_direction_kernel<T, kMany>, threads, p);
    launch(crf_step_kernel<T>, threads, p);
  }
  launch(crf_direction_kernel<T, kMany>, threads, p);
}

// In one launch where p.p is null, which needs p.fits_block().
template <typename Launch>
void crf_solve(const CrfSolveParams& p, const Launch& launch) {
  by_precision(p.element, [&](auto type) {
    using T = typename decltype(type)::type;
    const bool many = p.graph.levels > 1;
    if (p.p[0] == nullptr) {
      many ? solve_in_one_launch<T, true>(p, launch) : solve_in_one_launch<T, false>(p, launch);
    } else {
      many ? solve_in_many_launches<T, true>(p, launch)
           : solve_in_many_launches<T, false>(p, launch);
    }
  });
}

template <typename Launch>
void crf_mix(const LabelMixParams& p, const Launch& launch) {
  by_precision(p.element, [&](auto type) {
    launch(crf_mix_kernel<typename decltype(type)::type>, p.items * p.nodes, p);
  });
}

template <typename Launch>
void crf_edge_gradient(const EdgeGradientParams& p, const Launch& launch) {
  const CrfLevel& grid = p.graph.level[p.level];
  const int64_t counts[] = {grid.rights(), grid.downs(), grid.cells()};
  const int64_t planes = p.pairwise == Pairwise::kGeneral ? p.labels * p.labels : 1;
  by_precision(p.element, [&](auto type) {
    launch(crf_edge_gradient_kernel<typename decltype(type)::type>,
           p.items * planes * counts[p.set], p);
  });
}

}  // namespace segkern
