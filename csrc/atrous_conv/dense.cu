#include "dense.h"

#include "../common/launch.cuh"
#include "dense_launch.cuh"

namespace segkern {

void launch_dense_conv(const DenseParams& params, cudaStream_t stream) {
  dense_conv(params, CudaLauncher{stream});
}

}  // namespace segkern
