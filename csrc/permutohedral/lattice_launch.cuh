// Which lattice kernel runs on how many threads. `launch(kernel, threads, args...)` is the CUDA
// launcher in permutohedral.cu, or the one that runs kernels on the CPU in the tests.
#pragma once

#include <utility>

#include "lattice.cuh"

namespace segkern {

// Threads of kernels that stride over a number of vertices known only on the device.
inline int64_t striding_threads(int64_t most) {
  constexpr int64_t kEnough = int64_t{1} << 19;
  return most < kEnough ? most : kEnough;
}

// Keys and weights of all corners. The caller sorts keys and numbers by key.
template <typename Launch>
void lattice_embed(const LatticeParams& p, const Launch& launch) {
  launch(lattice_clear_format_kernel, 1, p.format);
  const int64_t threads = striding_threads((p.items * p.points + 31) / 32 * 32);
  // Whole warps take part in the shuffles.
  const int64_t whole = (threads + kBlockThreads - 1) / kBlockThreads * kBlockThreads;
  launch(lattice_bounds_kernel, whole, p, whole);
  launch(lattice_format_kernel, 1, p);
  const int64_t points = p.items * p.points;
  switch (p.dims) {
    case 1:
      return launch(lattice_embed_kernel<1>, points, p);
    case 2:
      return launch(lattice_embed_kernel<2>, points, p);
    case 3:
      return launch(lattice_embed_kernel<3>, points, p);
    case 4:
      return launch(lattice_embed_kernel<4>, points, p);
    case 5:
      return launch(lattice_embed_kernel<5>, points, p);
    case 6:
      return launch(lattice_embed_kernel<6>, points, p);
    case 7:
      return launch(lattice_embed_kernel<7>, points, p);
    default:
      return launch(lattice_embed_kernel<8>, points, p);
  }
}

// Flags of first keys, after the sort. The caller scans them.
template <typename Launch>
void lattice_heads(const LatticeParams& p, const Launch& launch) {
  const int64_t corners = p.items * p.item_corners();
  launch(lattice_heads_kernel, corners, p, corners);
}

// Vertices, offsets and neighbours, after the scan.
template <typename Launch>
void lattice_finish(const LatticeParams& p, const Launch& launch) {
  const int64_t corners = p.items * p.item_corners();
  launch(lattice_assign_kernel, corners, p, corners);
  const int64_t threads = striding_threads(p.bound);
  launch(lattice_link_kernel, threads, p, threads);
}

// From rows of values to blurred sums, which end up in p.sums.
template <typename Launch>
void lattice_splat_and_blur(FilterParams& p, bool reverse, const Launch& launch) {
  const int64_t chunk_lanes = p.batch * p.chunks() * p.stride;
  launch(lattice_splat_kernel, chunk_lanes, p, chunk_lanes);
  const int64_t threads = striding_threads(p.lattice.bound * p.stride);
  launch(lattice_join_kernel, threads, p, threads);
  for (int i = 0; i <= p.lattice.dims; ++i) {
    p.axis = reverse ? p.lattice.dims - i : i;
    launch(lattice_blur_kernel, threads, p, threads);
    std::swap(p.sums, p.other);
  }
}

template <typename Launch>
void lattice_slice(const FilterParams& p, float* out, const Launch& launch) {
  const int64_t lanes = p.batch * p.lattice.points * p.stride;
  launch(lattice_slice_kernel, lanes, p, out, lanes);
}

template <typename Launch>
void lattice_pack(const float* planes, float* rows, int64_t batch, int64_t channels,
                  int64_t points, int64_t stride, const Launch& launch) {
  const int64_t threads = batch * points * stride;
  launch(lattice_pack_kernel, threads, planes, rows, channels, points, stride, threads);
}

template <typename Launch>
void lattice_unpack(const float* rows, float* planes, int64_t batch, int64_t channels,
                    int64_t points, int64_t stride, const Launch& launch) {
  const int64_t threads = batch * channels * points;
  launch(lattice_unpack_kernel, threads, rows, planes, channels, points, stride, threads);
}

}  // namespace segkern
