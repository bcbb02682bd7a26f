#include "grouped.h"

#include "../common/launch.cuh"
#include "grouped_launch.cuh"

namespace segkern {

void launch_grouped_conv(const GroupedParams& params, cudaStream_t stream) {
  grouped_conv(params, CudaLauncher{stream});
}

int64_t grouped_partial_elements(const GroupedWeightGradParams& params) {
  return grouped_partial_count(params);
}

void launch_grouped_weight_grad(const GroupedWeightGradParams& params, void* partial,
                                cudaStream_t stream) {
  grouped_weight_grad(params, partial, CudaLauncher{stream});
}

}  // namespace segkern
