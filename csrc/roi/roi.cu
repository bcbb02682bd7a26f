#include "../common/launch.cuh"
#include "roi.h"
#include "roi_launch.cuh"

namespace segkern {

void launch_roi_read(const RoiParams& params, cudaStream_t stream) {
  roi_read(params, CudaLauncher{stream});
}

void launch_roi_write(const RoiParams& params, cudaStream_t stream) {
  roi_write(params, CudaLauncher{stream});
}

}  // namespace segkern
