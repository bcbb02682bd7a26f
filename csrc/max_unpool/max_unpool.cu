#include "../common/launch.cuh"
#include "max_unpool.h"
#include "max_unpool_launch.cuh"

namespace segkern {
namespace {

// Elects into the workspace, which is cleared first.
int* elect(const PoolParams& params, void* workspace, cudaStream_t stream) {
  int* winners = static_cast<int*>(workspace);
  STD_CUDA_CHECK(cudaMemsetAsync(winners, 0, max_unpool_workspace(params), stream));
  elect_winners(params, winners, CudaLauncher{stream});
  return winners;
}

}  // namespace

int64_t max_unpool_workspace(const PoolParams& params) {
  return tiles(params) ? 0 : plane_elements(params) * static_cast<int64_t>(sizeof(int));
}

void launch_max_unpool_fwd(const PoolParams& params, void* workspace, cudaStream_t stream) {
  if (tiles(params)) {
    expand_tiles(params, CudaLauncher{stream});
    return;
  }
  scatter_winners(params, elect(params, workspace, stream), CudaLauncher{stream});
}

void launch_max_unpool_bwd(const PoolParams& params, bool winners_only, void* workspace,
                           cudaStream_t stream) {
  if (tiles(params)) {
    select_tiles(params, CudaLauncher{stream});
    return;
  }
  const int* winners = winners_only ? elect(params, workspace, stream) : nullptr;
  gather_windows(params, winners, CudaLauncher{stream});
}

}  // namespace segkern
