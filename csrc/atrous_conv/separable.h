// Depthwise convolution, pointwise convolution and what follows each, in one pass; also the
// pointwise convolution alone.
#pragma once

#include "conv_window.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

// hidden = first.activation(depthwise * scale + shift), or `first.in` where first.weight is null
// (then the window is 1x1). out = activation(pointwise * hidden * scale + shift + residual).
// Of `first`, residual and out are not used. Weights and per-channel tensors are of the
// accumulating type: double for float64 features, float for all others. On CUDA the pointwise
// weight is of the features' type, float16, bfloat16 or float32 (then products are in TF32),
// first.weight is (taps, C), the layout is channels-last and C a multiple of 16 bytes.
struct SeparableParams {
  DepthwiseParams first;
  int64_t outputs;
  const void* weight;    // (outputs, C)
  const void* scale;     // (outputs,) or null
  const void* shift;     // (outputs,) or null
  const void* residual;  // like out, or null
  const void* slope;     // (outputs,) or (1,) for kPrelu
  int64_t slope_step;    // 0 for (1,)
  Activation activation;
  void* out;  // (N, outputs, out_h, out_w) in the layout
};

// Every output has one order of summation, whatever the number of threads.
void separable_conv_cpu(const SeparableParams& params);

#if defined(USE_CUDA)
void launch_separable_conv(const SeparableParams& params, cudaStream_t stream);
#endif

}  // namespace segkern
