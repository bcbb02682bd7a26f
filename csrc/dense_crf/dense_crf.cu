#include "../common/launch.cuh"
#include "dense_crf_cuda.h"
#include "mean_field_run.cuh"

namespace segkern {

int64_t mean_field_parts(const CrfRows& rows) { return part_blocks(rows); }

int64_t mean_field_outer_parts(const CrfRows& rows) { return OuterShape(rows).chunks; }

void launch_mean_field(const CrfBuffers& crf, float* q, double* objective_parts, double* kl,
                       cudaStream_t stream) {
  const CudaLauncher launch{stream};
  MeanFieldRun<CudaLauncher> run(crf, launch);
  run.forward(crf.iterations);
  run.finish(q);
  if (kl) {
    run.objective(objective_parts, kl);
  }
}

void launch_mean_field_again(const CrfBuffers& crf, cudaStream_t stream) {
  const CudaLauncher launch{stream};
  MeanFieldRun<CudaLauncher>(crf, launch).forward(crf.iterations - 1);
}

void launch_mean_field_backward(const CrfBuffers& crf, const CrfGradBuffers& grads,
                                cudaStream_t stream) {
  const CudaLauncher launch{stream};
  MeanFieldRun<CudaLauncher>(crf, launch).backward(grads);
}

}  // namespace segkern
