#include "../common/launch.cuh"
#include "gaussian_crf_cuda.h"
#include "gaussian_crf_launch.cuh"

namespace segkern {

void launch_crf_solve(const CrfSolveParams& params, cudaStream_t stream) {
  crf_solve(params, CudaLauncher{stream});
}

void launch_crf_mix(const LabelMixParams& params, cudaStream_t stream) {
  crf_mix(params, CudaLauncher{stream});
}

void launch_crf_edge_gradient(const EdgeGradientParams& params, cudaStream_t stream) {
  crf_edge_gradient(params, CudaLauncher{stream});
}

void copy_to_host(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  STD_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream));
  STD_CUDA_CHECK(cudaStreamSynchronize(stream));
}

}  // namespace segkern
