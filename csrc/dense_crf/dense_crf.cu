#include "../common/launch.cuh"
#include "dense_crf_cuda.h"
#include "mean_field_launch.cuh"

namespace segkern {

void launch_mean_field_update(const MeanFieldParams& params, cudaStream_t stream) {
  mean_field_update(params, CudaLauncher{stream});
}

void launch_mean_field_filter(MeanFieldParams& params, const float* const* before,
                              cudaStream_t stream) {
  mean_field_filter(params, before, CudaLauncher{stream});
}

}  // namespace segkern
