// The lattice's kernels as host functions.
#pragma once

#include <cstddef>

#include "lattice_params.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>

namespace segkern {

// Bytes of scratch that a build of so many corners needs for sorting and scanning.
size_t lattice_scratch_bytes(int64_t corners);

// Buffers as in LatticeParams; sorted_keys and sorted_numbers of the same sizes as theirs.
void launch_lattice_build(LatticeParams params, uint64_t* sorted_keys, int32_t* sorted_numbers,
                          void* scratch, size_t scratch_bytes, cudaStream_t stream);

void launch_lattice_splat_and_blur(FilterParams& params, bool reverse, cudaStream_t stream);
void launch_lattice_slice(const FilterParams& params, float* out, cudaStream_t stream);
void launch_lattice_pack(const float* planes, float* rows, int64_t batch, int64_t channels,
                         int64_t points, int64_t stride, cudaStream_t stream);
void launch_lattice_unpack(const float* rows, float* planes, int64_t batch, int64_t channels,
                           int64_t points, int64_t stride, cudaStream_t stream);

}  // namespace segkern
#endif
