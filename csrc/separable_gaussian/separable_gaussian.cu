#include "../common/launch.cuh"
#include "separable.cuh"
#include "separable_cuda.h"

namespace segkern {

void launch_separable_gaussian_pass(const SeparablePass& pass, cudaStream_t stream) {
  separable_gaussian_pass(pass, CudaLauncher{stream});
}

}  // namespace segkern
