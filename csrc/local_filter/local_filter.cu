#include "../common/launch.cuh"
#include "local_filter.h"
#include "local_filter_launch.cuh"

namespace segkern {

int64_t local_filter_parts_cuda(const LocalFilterParams& params) {
  return local_filter_blocks(params);
}

void launch_local_filter(const LocalFilterParams& params, cudaStream_t stream) {
  local_filter(params, CudaLauncher{stream});
}

void launch_local_filter_sums(const double* partial, int64_t parts, double* sums,
                              cudaStream_t stream) {
  local_filter_sums(partial, parts, sums, CudaLauncher{stream});
}

}  // namespace segkern
