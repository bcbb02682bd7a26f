#include "resize.h"

#include "../common/launch.cuh"
#include "resize_launch.cuh"

namespace segkern {

void launch_resize_fwd(const ResizeParams& params, cudaStream_t stream) {
  resize_fwd(params, CudaLauncher{stream});
}

void launch_resize_bwd(const ResizeParams& params, cudaStream_t stream) {
  resize_bwd(params, CudaLauncher{stream});
}

}  // namespace segkern
