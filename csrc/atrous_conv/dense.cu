#include "dense.h"

#include "../common/launch.cuh"
#include "dense_launch.cuh"

namespace segkern {

void launch_dense_conv(const DenseParams& params, cudaStream_t stream) {
  dense_conv(params, CudaLauncher{stream});
}

int64_t dense_partial_elements(const DenseWeightGradParams& params) {
  return dense_partial_count(params);
}

void launch_dense_weight_grad(const DenseWeightGradParams& params, float* partial,
                              cudaStream_t stream) {
  dense_weight_grad(params, partial, CudaLauncher{stream});
}

}  // namespace segkern
