#include "../common/launch.cuh"
#include "depthwise.h"
#include "depthwise_launch.cuh"

namespace segkern {

void launch_depthwise_conv(const DepthwiseParams& params, cudaStream_t stream) {
  depthwise_conv(params, CudaLauncher{stream});
}

int64_t depthwise_partial_elements(const DepthwiseWeightGradParams& params) {
  return depthwise_partial_count(params);
}

void launch_depthwise_weight_grad(const DepthwiseWeightGradParams& params, void* partial,
                                  cudaStream_t stream) {
  depthwise_weight_grad(params, partial, CudaLauncher{stream});
}

}  // namespace segkern
