#include "separable.h"

#include "../common/launch.cuh"
#include "separable_launch.cuh"

namespace segkern {

void launch_separable_conv(const SeparableParams& params, cudaStream_t stream) {
  separable_conv(params, CudaLauncher{stream});
}

}  // namespace segkern
