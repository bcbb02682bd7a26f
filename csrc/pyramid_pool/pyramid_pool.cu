#include "pyramid_pool.h"

#include "../common/launch.cuh"
#include "pyramid_pool_launch.cuh"

namespace segkern {

void launch_pyramid_pool_fwd(const PyramidParams& params, void* sums, cudaStream_t stream) {
  pyramid_pool_fwd(params, sums, CudaLauncher{stream});
}

void launch_pyramid_pool_bwd(const PyramidParams& params, void* sums, cudaStream_t stream) {
  pyramid_pool_bwd(params, sums, CudaLauncher{stream});
}

}  // namespace segkern
