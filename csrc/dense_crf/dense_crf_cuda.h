// Mean field on CUDA as host functions.
#pragma once

#include "mean_field_params.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>

namespace segkern {

// Numbers of parts that sums are made of: those of the objective and of diagonal costs' gradients,
// of all items, and of a cost matrix's gradient.
int64_t mean_field_parts(const CrfRows& rows);
int64_t mean_field_outer_parts(const CrfRows& rows);

// Marginals to q, planes; the objective to kl where that is not null, over objective_parts.
void launch_mean_field(const CrfBuffers& crf, float* q, double* objective_parts, double* kl,
                       cudaStream_t stream);

// The updates before the last one again, for their marginals in the history.
void launch_mean_field_again(const CrfBuffers& crf, cudaStream_t stream);

void launch_mean_field_backward(const CrfBuffers& crf, const CrfGradBuffers& grads,
                                cudaStream_t stream);

}  // namespace segkern
#endif
