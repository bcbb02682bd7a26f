// Which resampling kernel runs, and on how many threads. `launch` is the CUDA launcher, or the one
// that runs kernels on the CPU in the tests.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../common/kernel_dispatch.cuh"
#include "resize.cuh"

namespace segkern {

// From this many output pixels per input pixel on, several threads share an input pixel's sum.
constexpr int64_t kManyReaders = 8;

// Whether rows, or pixels channels-last, and the maps' memory can be taken vector by vector.
inline bool resize_vectors(const ResizeParams& p, int64_t vector) {
  const auto at = [&](const void* data) {
    return reinterpret_cast<uintptr_t>(data) % (vector * element_size(p.element)) == 0;
  };
  return at(p.from) && at(p.to) && (p.channels_last ? p.channels : p.out_w) % vector == 0;
}

template <typename Launch>
void resize_fwd(const ResizeParams& p, const Launch& launch) {
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    constexpr int kVector = sizeof(scalar_t) == 8 ? 2 : 4;
    const int vector = resize_vectors(p, kVector) ? kVector : 1;
    const int64_t lanes = p.out_w * (p.channels_last ? p.channels : 1) / vector;
    const int64_t bands = (p.out_h + kFwdRows - 1) / kFwdRows;
    const int64_t threads = (p.channels_last ? p.items : p.planes()) * bands * lanes;
    by_index(launch, threads, [&](auto index) {
      using index_t = typename decltype(index)::type;
      const auto kernel = p.channels_last
                              ? (vector > 1 ? resize_fwd_kernel<scalar_t, index_t, true, kVector>
                                            : resize_fwd_kernel<scalar_t, index_t, true, 1>)
                              : (vector > 1 ? resize_fwd_kernel<scalar_t, index_t, false, kVector>
                                            : resize_fwd_kernel<scalar_t, index_t, false, 1>);
      launch(kernel, threads, p, resize_axes<wide_of<scalar_t>>(p), lanes, bands, threads);
    });
  });
}

template <typename Launch>
void resize_bwd(const ResizeParams& p, const Launch& launch) {
  const bool many = p.out_h * p.out_w >= kManyReaders * p.in_h * p.in_w;
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    constexpr int kVector = sizeof(scalar_t) == 8 ? 2 : 4;
    const auto axes = resize_axes<wide_of<scalar_t>>(p);
    const bool vectors = p.channels_last && resize_vectors(p, kVector);
    if (many && p.channels_last) {
      const int64_t width = vectors ? 32 * kVector : 32;
      const int64_t blocks = (p.channels + width - 1) / width;
      launch(vectors ? resize_bwd_pixels_kernel<scalar_t, kVector>
                     : resize_bwd_pixels_kernel<scalar_t, 1>,
             p.items * p.in_h * p.in_w * blocks * kBlockThreads, p, axes, blocks);
      return;
    }
    if (many) {
      const int group = p.out_w >= 16 * p.in_w ? 32 : 1;
      const int64_t tile = std::min<int64_t>(
          {p.in_w, kBlockThreads / group, std::max<int64_t>(1, (kSpan - 2) * p.in_w / p.out_w)});
      const int64_t tiles = (p.in_w + tile - 1) / tile;
      launch(resize_bwd_rows_kernel<scalar_t>, p.planes() * p.in_h * tiles * kBlockThreads, p,
             axes, tiles, static_cast<int>(tile), group);
      return;
    }
    const int vector = vectors ? kVector : 1;
    const int64_t lanes = p.in_w * (p.channels_last ? p.channels : 1) / vector;
    const int64_t bands = (p.in_h + kBwdRows - 1) / kBwdRows;
    const int64_t threads = (p.channels_last ? p.items : p.planes()) * bands * lanes;
    by_index(launch, threads, [&](auto index) {
      using index_t = typename decltype(index)::type;
      const auto kernel = p.channels_last
                              ? (vectors ? resize_bwd_kernel<scalar_t, index_t, true, kVector>
                                         : resize_bwd_kernel<scalar_t, index_t, true, 1>)
                              : resize_bwd_kernel<scalar_t, index_t, false, 1>;
      launch(kernel, threads, p, axes, lanes, bands, threads);
    });
  });
}

}  // namespace segkern
