// Which unpooling kernel runs at which shape; `launch` as in max_pool_launch.cuh.
#pragma once

#include "../max_pool/max_pool_launch.cuh"
#include "max_unpool.cuh"

namespace segkern {

// Windows that tile the plane and codes inside them: no winners to elect.
inline bool tiles(const PoolParams& p) {
  return p.window.tiled() && p.format != IndexFormat::kFlat;
}

inline int64_t plane_elements(const PoolParams& p) {
  return p.batch * p.channels * p.window.in_h * p.window.in_w;
}
inline int64_t window_elements(const PoolParams& p) {
  return p.batch * p.channels * p.window.out_h * p.window.out_w;
}

template <typename Launch>
void expand_tiles(const PoolParams& p, const Launch& launch) {
  const PoolWindow& w = p.window;
  by_bits(p.element, [&](auto type) {
    using bits_t = typename decltype(type)::type;
    constexpr int kVector = 16 / sizeof(bits_t);
    const bool vector = vector_2x2(p);
    const int lanes = p.channels_last && vector_lanes(p) ? kVector : 1;
    const int64_t tile_rows = (w.in_h + w.kernel_h - 1) / w.kernel_h;
    const int64_t tile_columns = (w.in_w + w.kernel_w - 1) / w.kernel_w;
    const int64_t threads =
        vector ? p.batch * p.channels * ((w.in_h + 1) / 2) * (w.out_w / (kVector / 2))
               : p.batch * (p.channels / lanes) * tile_rows * tile_columns;
    by_index(launch, threads, [&](auto index) {
      using index_t = typename decltype(index)::type;
      launch(vector      ? expand_2x2_kernel<bits_t, index_t>
             : lanes > 1 ? expand_tile_kernel<bits_t, index_t, kVector>
                         : expand_tile_kernel<bits_t, index_t, 1>,
             threads, p, threads);
    });
  });
}

template <typename Launch>
void select_tiles(const PoolParams& p, const Launch& launch) {
  by_bits(p.element, [&](auto type) {
    using bits_t = typename decltype(type)::type;
    constexpr int kVector = 16 / sizeof(bits_t);
    const bool vector = vector_2x2(p);
    const int lanes = p.channels_last && vector_lanes(p) ? kVector : 1;
    const int64_t threads = window_elements(p) / (vector ? kVector / 2 : lanes);
    by_index(launch, threads, [&](auto index) {
      using index_t = typename decltype(index)::type;
      launch(vector      ? select_2x2_kernel<bits_t, index_t>
             : lanes > 1 ? select_tile_kernel<bits_t, index_t, kVector>
                         : select_tile_kernel<bits_t, index_t, 1>,
             threads, p, threads);
    });
  });
}

// `winners` holds one int for each plane element, all zero.
template <typename Launch>
void elect_winners(const PoolParams& p, int* winners, const Launch& launch) {
  const int64_t threads = window_elements(p);
  by_index(launch, threads, [&](auto index) {
    launch(elect_winners_kernel<typename decltype(index)::type>, threads, p, winners, threads);
  });
}

template <typename Launch>
void scatter_winners(const PoolParams& p, const int* winners, const Launch& launch) {
  const int64_t threads = plane_elements(p);
  by_bits(p.element, [&](auto type) {
    by_index(launch, threads, [&](auto index) {
      launch(scatter_winners_kernel<typename decltype(type)::type, typename decltype(index)::type>,
             threads, p, winners, threads);
    });
  });
}

template <typename Launch>
void gather_windows(const PoolParams& p, const int* winners, const Launch& launch) {
  const int64_t threads = window_elements(p);
  by_bits(p.element, [&](auto type) {
    by_index(launch, threads, [&](auto index) {
      launch(gather_kernel<typename decltype(type)::type, typename decltype(index)::type>, threads,
             p, winners, threads);
    });
  });
}

}  // namespace segkern
