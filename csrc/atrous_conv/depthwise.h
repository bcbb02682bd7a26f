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

}  // namespace segkern
