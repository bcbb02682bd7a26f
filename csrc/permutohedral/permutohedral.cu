#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "../common/launch.cuh"
#include "lattice_launch.cuh"
#include "permutohedral_cuda.h"

namespace segkern {

// The host keeps corners below 2^31.
size_t lattice_scratch_bytes(int64_t corners) {
  const auto count = static_cast<int32_t>(corners);
  size_t sort = 0, scan = 0;
  STD_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      nullptr, sort, static_cast<const uint64_t*>(nullptr), static_cast<uint64_t*>(nullptr),
      static_cast<const int32_t*>(nullptr), static_cast<int32_t*>(nullptr), count));
  STD_CUDA_CHECK(cub::DeviceScan::InclusiveSum(nullptr, scan, static_cast<const int32_t*>(nullptr),
                                               static_cast<int32_t*>(nullptr), count));
  return sort > scan ? sort : scan;
}

void launch_lattice_build(LatticeParams params, uint64_t* sorted_keys, int32_t* sorted_numbers,
                          void* scratch, size_t scratch_bytes, cudaStream_t stream) {
  const CudaLauncher launch{stream};
  const auto count = static_cast<int32_t>(params.items * params.item_corners());
  lattice_embed(params, launch);
  STD_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      scratch, scratch_bytes, static_cast<const uint64_t*>(params.keys), sorted_keys,
      static_cast<const int32_t*>(params.numbers), sorted_numbers, count, 0, 64, stream));
  params.keys = sorted_keys;
  params.numbers = sorted_numbers;
  lattice_heads(params, launch);
  STD_CUDA_CHECK(cub::DeviceScan::InclusiveSum(scratch, scratch_bytes,
                                               static_cast<const int32_t*>(params.ranks),
                                               params.ranks, count, stream));
  lattice_finish(params, launch);
}

void launch_lattice_splat_and_blur(FilterParams& params, bool reverse, cudaStream_t stream) {
  lattice_splat_and_blur(params, reverse, CudaLauncher{stream});
}

void launch_lattice_slice(const FilterParams& params, float* out, cudaStream_t stream) {
  lattice_slice(params, out, CudaLauncher{stream});
}

void launch_lattice_pack(const float* planes, float* rows, int64_t batch, int64_t channels,
                         int64_t points, int64_t stride, cudaStream_t stream) {
  lattice_pack(planes, rows, batch, channels, points, stride, CudaLauncher{stream});
}

void launch_lattice_unpack(const float* rows, float* planes, int64_t batch, int64_t channels,
                           int64_t points, int64_t stride, cudaStream_t stream) {
  lattice_unpack(rows, planes, batch, channels, points, stride, CudaLauncher{stream});
}

}  // namespace segkern
