// Building as launches. `launch(kernel, threads, args...)` is the CUDA
// launcher of common/launch.cuh, or the one that runs kernels on the CPU in the tests.
#pragma once

#include "lattice_build.cuh"
#include "lattice_grid.cuh"

namespace segkern {

// Weights, keys and first corners of all corners, and which are first. The caller sums the ranks
// up, and sorts firsts and numbers by firsts into sorted_firsts and the lattice's corners.
template <typename Launch>
void lattice_embed(const BuildParams& p, const Launch& launch) {
  const int64_t points = p.lattice.items * p.lattice.points;
  const int64_t corners = p.lattice.items * p.lattice.item_corners();
  const int64_t cells = p.lattice.items * p.capacity();
  const int64_t clearing = striding_blocks(cells, 1) * kBlockThreads;
  launch(lattice_clear_kernel, clearing, p, cells, clearing);
  constexpr int64_t kBoundsBlocks = 512;
  const int64_t threads =
      (blocks_of(points) < kBoundsBlocks ? blocks_of(points) : kBoundsBlocks) * kBlockThreads;
  launch(lattice_bounds_kernel, threads, p, threads);
  launch(lattice_format_kernel, 1, p);
  by_dims(p.lattice.dims, [&](auto dims) {
    launch(lattice_embed_kernel<decltype(dims)::value>, points, p);
  });
  launch(lattice_insert_kernel, corners, p, corners);
  launch(lattice_resolve_kernel, corners, p, corners);
}

// Vertices, offsets and neighbours, after the sum and the sort.
template <typename Launch>
void lattice_finish(const BuildParams& p, const Launch& launch) {
  const int64_t corners = p.lattice.items * p.lattice.item_corners();
  launch(lattice_assign_kernel, corners, p, corners);
  const int64_t pairs = p.lattice.bound * (p.lattice.dims + 1);
  const int64_t threads = striding_blocks(pairs, p.lattice.items) * kBlockThreads;
  launch(lattice_link_kernel, p.lattice.items * threads, p, threads);
}

}  // namespace segkern
