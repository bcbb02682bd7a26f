// Depthwise convolution and the gradient of its weight.
#pragma once

#include "conv_window.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

// Every output has one order of summation, whatever the number of threads.
void depthwise_conv_cpu(const DepthwiseParams& params);
void depthwise_weight_grad_cpu(const DepthwiseWeightGradParams& params);

#if defined(USE_CUDA)
// The weight is (taps, C) in channels-last.
void launch_depthwise_conv(const DepthwiseParams& params, cudaStream_t stream);
// `partial` is a workspace of depthwise_partial_elements, of weight_grad's type.
int64_t depthwise_partial_elements(const DepthwiseWeightGradParams& params);
void launch_depthwise_weight_grad(const DepthwiseWeightGradParams& params, void* partial,
                                  cudaStream_t stream);
#endif

}  // namespace segkern
