#include "../common/launch.cuh"
#include "nms.h"
#include "nms_launch.cuh"

namespace segkern {

void launch_nms(const NmsParams& params, cudaStream_t stream) { nms(params, CudaLauncher{stream}); }

}  // namespace segkern
