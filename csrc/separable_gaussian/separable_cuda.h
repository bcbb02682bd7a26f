// The separable Gaussian's kernel as a host function.
#pragma once

#include "separable_params.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>

namespace segkern {

void launch_separable_gaussian_pass(const SeparablePass& pass, cudaStream_t stream);

}  // namespace segkern
#endif
