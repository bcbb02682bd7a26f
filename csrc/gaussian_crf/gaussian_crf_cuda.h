// The Gaussian CRF's kernels as host functions.
#pragma once

#include "solve_params.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>

namespace segkern {

void launch_crf_solve(const CrfSolveParams& params, cudaStream_t stream);
void launch_crf_mix(const LabelMixParams& params, cudaStream_t stream);
void launch_crf_edge_gradient(const EdgeGradientParams& params, cudaStream_t stream);

// Waits for the stream, and copies `bytes` from the device.
void copy_to_host(void* to, const void* from, size_t bytes, cudaStream_t stream);

}  // namespace segkern
#endif
