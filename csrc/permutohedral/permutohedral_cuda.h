// The lattice's kernels as host functions.
#pragma once

#include <cstddef>

#include "../common/element.h"
#include "lattice_params.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>

namespace segkern {

// Bytes of scratch that a build of so many corners needs for sorting and scanning.
size_t lattice_scratch_bytes(int64_t corners);

// Buffers as in BuildParams.
void launch_lattice_build(const BuildParams& params, void* scratch, size_t scratch_bytes,
                          cudaStream_t stream);

void launch_lattice_splat_and_blur(FilterGroup& group, bool reverse, cudaStream_t stream);
void launch_lattice_pack(const void* planes, Element element, float* rows, int64_t batch,
                         int64_t channels, int64_t points, int64_t stride, int64_t rows_item,
                         float factor, float pad, cudaStream_t stream);
void launch_lattice_unpack(const float* rows, float* planes, int64_t batch, int64_t channels,
                           int64_t points, int64_t stride, float factor, cudaStream_t stream);
void launch_lattice_slice(const FilterParams& params, void* planes, Element element,
                          int64_t channels, cudaStream_t stream);
void launch_lattice_corner_dots(const FeatureGradParams& params, cudaStream_t stream);
void launch_lattice_feature_grad(const FeatureGradParams& params, cudaStream_t stream);

}  // namespace segkern
#endif
