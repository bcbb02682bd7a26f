// Which kernel runs at which shape, and on how many threads. `launch(kernel, threads, args...)` is
// the CUDA launcher in max_pool.cu, or the one that runs kernels on the CPU in the tests.
#pragma once

#include "../common/kernel_dispatch.cuh"
#include "max_pool.cuh"

namespace segkern {

inline bool aligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// Contiguous planes whose rows are whole 16-byte vectors of 2x2 windows.
inline bool vector_2x2(const PoolParams& p) {
  const PoolWindow& w = p.window;
  return !p.channels_last && w.tiled_2x2() && p.format != IndexFormat::kFlat &&
         w.out_w * 2 == w.in_w && w.in_w * element_size(p.element) % 16 == 0 &&
         aligned16(p.in) && aligned16(p.out) && aligned16(p.indices);
}

// Channels of a thread in channels-last: a 16-byte vector where that divides them.
inline bool vector_lanes(const PoolParams& p) {
  return p.channels * element_size(p.element) % 16 == 0 && aligned16(p.in) && aligned16(p.out) &&
         aligned16(p.indices);
}

template <typename Launch>
void max_pool_fwd(const PoolParams& p, const Launch& launch) {
  const PoolWindow& w = p.window;
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    constexpr int kVector = 16 / sizeof(scalar_t);
    if (p.channels_last) {
      const int64_t positions = p.batch * w.out_h * w.index_row(p.format);
      const int lanes = vector_lanes(p) ? kVector : 1;
      const int64_t threads = positions * (p.channels / lanes);
      by_index(launch, threads, [&](auto index) {
        using index_t = typename decltype(index)::type;
        const auto kernel =
            lanes == 1      ? max_pool_channels_last_fwd_kernel<scalar_t, index_t, 1, false>
            : w.tiled_2x2() ? max_pool_channels_last_fwd_kernel<scalar_t, index_t, kVector, true>
                            : max_pool_channels_last_fwd_kernel<scalar_t, index_t, kVector, false>;
        launch(kernel, threads, p, threads);
      });
      return;
    }
    const int64_t rows = p.batch * p.channels * w.out_h;
    const bool vector = vector_2x2(p);
    const int64_t padded =
        p.format == IndexFormat::kPacked ? w.words_per_row() * w.per_word() : w.out_w;
    const int64_t row_threads = vector ? padded / (kVector / 2) : padded;
    by_index(launch, rows * row_threads, [&](auto index) {
      using index_t = typename decltype(index)::type;
      launch(vector ? max_pool_2x2_fwd_kernel<scalar_t, index_t>
                    : max_pool_fwd_kernel<scalar_t, index_t>,
             rows * row_threads, p, row_threads, rows);
    });
  });
}

template <typename Launch>
void max_pool_bwd(const PoolParams& p, const Launch& launch) {
  const int64_t threads = p.batch * p.channels * p.window.in_h * p.window.in_w;
  by_type(p.element, [&](auto type) {
    by_index(launch, threads, [&](auto index) {
      launch(max_pool_bwd_kernel<typename decltype(type)::type, typename decltype(index)::type>,
             threads, p, threads);
    });
  });
}

template <typename Launch>
void convert_pool_indices(const ConvertParams& p, const Launch& launch) {
  const int64_t threads = p.from.batch * p.from.channels * p.from.window.out_h * p.row();
  by_index(launch, threads, [&](auto index) {
    launch(convert_pool_indices_kernel<typename decltype(index)::type>, threads, p, threads);
  });
}

}  // namespace segkern
