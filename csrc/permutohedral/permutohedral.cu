#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "../common/launch.cuh"
#include "lattice_build_launch.cuh"
#include "lattice_feature_grad.cuh"
#include "lattice_filter_launch.cuh"
#include "permutohedral_cuda.h"

namespace segkern {
namespace {

// Bits of the largest number of a corner.
int corner_bits(int64_t corners) {
  int bits = 1;
  while ((int64_t{1} << bits) < corners) {
    ++bits;
  }
  return bits;
}

}  // namespace

// The host keeps corners below 2^31.
size_t lattice_scratch_bytes(int64_t corners) {
  const auto count = static_cast<int32_t>(corners);
  const int32_t* from = nullptr;
  int32_t* to = nullptr;
  size_t sort = 0, scan = 0;
  STD_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(nullptr, sort, from, to, from, to, count, 0,
                                                 corner_bits(corners)));
  STD_CUDA_CHECK(cub::DeviceScan::InclusiveSum(nullptr, scan, from, to, count));
  return sort > scan ? sort : scan;
}

void launch_lattice_build(const BuildParams& p, void* scratch, size_t scratch_bytes,
                          cudaStream_t stream) {
  const CudaLauncher launch{stream};
  const int64_t corners = p.lattice.items * p.lattice.item_corners();
  const auto count = static_cast<int32_t>(corners);
  lattice_embed(p, launch);
  const int32_t* flags = p.ranks;
  STD_CUDA_CHECK(
      cub::DeviceScan::InclusiveSum(scratch, scratch_bytes, flags, p.ranks, count, stream));
  const int32_t *firsts = p.firsts, *numbers = p.numbers;
  STD_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(scratch, scratch_bytes, firsts, p.sorted_firsts,
                                                 numbers, p.lattice.corners, count, 0,
                                                 corner_bits(corners), stream));
  lattice_finish(p, launch);
}

void launch_lattice_splat_and_blur(FilterGroup& group, bool reverse, cudaStream_t stream) {
  lattice_splat_and_blur(group, reverse, CudaLauncher{stream});
}

void launch_lattice_pack(const void* planes, Element element, float* rows, int64_t batch,
                         int64_t channels, int64_t points, int64_t stride, int64_t rows_item,
                         float factor, float pad, cudaStream_t stream) {
  lattice_pack(planes, element, rows, batch, channels, points, stride, rows_item, factor,
               pad, CudaLauncher{stream});
}

void launch_lattice_unpack(const float* rows, float* planes, int64_t batch, int64_t channels,
                           int64_t points, int64_t stride, float factor, cudaStream_t stream) {
  lattice_unpack(rows, planes, batch, channels, points, stride, factor, CudaLauncher{stream});
}

void launch_lattice_slice(const FilterParams& params, void* planes, Element element,
                          int64_t channels, cudaStream_t stream) {
  lattice_slice(params, planes, element, channels, CudaLauncher{stream});
}

void launch_lattice_corner_dots(const FeatureGradParams& params, cudaStream_t stream) {
  lattice_corner_dots(params, CudaLauncher{stream});
}

void launch_lattice_feature_grad(const FeatureGradParams& params, cudaStream_t stream) {
  lattice_feature_grad(params, CudaLauncher{stream});
}

}  // namespace segkern
