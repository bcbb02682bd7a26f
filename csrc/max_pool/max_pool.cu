#include "../common/launch.cuh"
#include "../max_unpool/max_unpool.h"
#include "../max_unpool/max_unpool_launch.cuh"
#include "max_pool.h"

namespace segkern {

void launch_max_pool_fwd(const PoolParams& params, cudaStream_t stream) {
  max_pool_fwd(params, CudaLauncher{stream});
}

void launch_max_pool_bwd(const PoolParams& params, cudaStream_t stream) {
  if (tiles(params)) {  // each element belongs to one window: nothing to add up
    launch_max_unpool_fwd(params, nullptr, stream);
  } else {
    max_pool_bwd(params, CudaLauncher{stream});
  }
}

void launch_convert_pool_indices(const ConvertParams& params, cudaStream_t stream) {
  convert_pool_indices(params, CudaLauncher{stream});
}

}  // namespace segkern
