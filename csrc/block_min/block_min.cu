#include "../common/launch.cuh"
#include "block_min.h"
#include "block_min_launch.cuh"

namespace segkern {

void launch_block_min_fwd(const BlockMinParams& params, cudaStream_t stream) {
  block_min_fwd(params, CudaLauncher{stream});
}

void launch_block_min_bwd(const BlockMinParams& params, cudaStream_t stream) {
  block_min_bwd(params, CudaLauncher{stream});
}

void launch_mean_field_pass_fwd(const BlockMinParams& params, cudaStream_t stream) {
  mean_field_pass_fwd(params, CudaLauncher{stream});
}

void launch_mean_field_pass_bwd(const BlockMinParams& params, cudaStream_t stream) {
  mean_field_pass_bwd(params, CudaLauncher{stream});
}

}  // namespace segkern
