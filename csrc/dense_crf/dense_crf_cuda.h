// Mean field's kernels as host functions.
#pragma once

#include "mean_field_params.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>

namespace segkern {

void launch_mean_field_update(const MeanFieldParams& params, cudaStream_t stream);
void launch_mean_field_filter(MeanFieldParams& params, const float* const* before,
                              cudaStream_t stream);

}  // namespace segkern
#endif
