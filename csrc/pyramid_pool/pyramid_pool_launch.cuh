// Which pyramid pooling kernels run, and on how many threads. `launch` is the CUDA launcher, or the
// one that runs kernels on the CPU in the tests; `sums` has pyramid_sums(p) numbers of the type of
// the sums, double for double and float for the others.
#pragma once

#include "../common/kernel_dispatch.cuh"
#include "pyramid_pool.cuh"

namespace segkern {

template <typename T>
Pieces<T> pyramid_pieces(const PyramidParams& p, void* sums) {
  return {Segments(p, p.height), Segments(p, p.width), static_cast<T*>(sums)};
}

// Whether channels can be taken vector by vector.
inline bool pyramid_vectors(const PyramidParams& p, const void* map, int64_t vector) {
  return p.channels_last && p.channels % vector == 0 &&
         reinterpret_cast<uintptr_t>(map) % (vector * element_size(p.element)) == 0;
}

template <typename Launch>
void pyramid_pool_fwd(const PyramidParams& p, void* sums, const Launch& launch) {
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    constexpr int kVector = sizeof(scalar_t) == 8 ? 2 : 4;
    const auto pieces = pyramid_pieces<decltype(widen(scalar_t{}))>(p, sums);
    if (p.channels_last) {
      const bool vectors = pyramid_vectors(p, p.from, kVector);
      const int64_t width = vectors ? 32 * kVector : 32;
      const int64_t blocks = (p.channels + width - 1) / width;
      launch(vectors ? pyramid_sum_pixels_kernel<scalar_t, kVector>
                     : pyramid_sum_pixels_kernel<scalar_t, 1>,
             p.items * pieces.count() * blocks * kBlockThreads, p, pieces, blocks);
    } else {
      launch(pyramid_sum_planes_kernel<scalar_t>, p.planes() * pieces.count() * 32, p, pieces);
    }
    launch(pyramid_average_kernel<scalar_t>, p.planes() * p.cells, p, pieces);
  });
}

template <typename Launch>
void pyramid_pool_bwd(const PyramidParams& p, void* sums, const Launch& launch) {
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    constexpr int kVector = sizeof(scalar_t) == 8 ? 2 : 4;
    const auto pieces = pyramid_pieces<decltype(widen(scalar_t{}))>(p, sums);
    launch(pyramid_piece_grad_kernel<scalar_t>, p.planes() * pieces.count(), p, pieces);
    const bool vectors = pyramid_vectors(p, p.to, kVector);
    const int64_t threads = p.planes() * pieces.down.count * p.width / (vectors ? kVector : 1);
    launch(vectors ? pyramid_fill_kernel<scalar_t, kVector> : pyramid_fill_kernel<scalar_t, 1>,
           threads, p, pieces, threads);
  });
}

}  // namespace segkern
