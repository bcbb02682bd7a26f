// Convolution of groups of a few channels, and the gradient of its weight; includes neither torch
// nor CUDA.
#pragma once

#include "conv_window.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

// activation(conv(in, weight) * scale + shift + residual). Per-channel tensors are of the
// accumulating type: double for float64 features, float for all others. The weight is of that type
// on the CPU, of the features' on CUDA; its taps lie beside each other.
struct GroupedParams {
  ConvWindow window;
  int64_t batch, groups;
  int64_t inputs, outputs;  // channels of a group
  Element element;
  bool channels_last;  // on CUDA only
  bool flip;           // weight taps in reverse order
  const void* in;      // (N, groups * inputs, in_h, in_w) in the layout
  const void* weight;
  int64_t weight_out, weight_in;  // elements to the next output channel, input channel of a group
  const void* scale;              // (groups * outputs,) or null
  const void* shift;              // (groups * outputs,) or null
  const void* residual;           // like out, or null
  const void* slope;              // (groups * outputs,) or (1,) for kPrelu
  int64_t slope_step;             // 0 for (1,)
  Activation activation;
  void* out;  // (N, groups * outputs, out_h, out_w) in the layout
};

// weight_grad[o, i, k] = sum of grad[n, o, oh, ow] * in[n, i, ih, iw] for i of the group of o; no
// `up`, no negative padding; on CUDA less than 2^31 output pixels.
struct GroupedWeightGradParams {
  ConvWindow window;
  int64_t batch, groups;
  int64_t inputs, outputs;  // channels of a group
  Element element;
  bool channels_last;  // on CUDA only
  const void* grad;    // (N, groups * outputs, out_h, out_w)
  const void* in;      // (N, groups * inputs, in_h, in_w)
  void* weight_grad;   // (groups * outputs, inputs, taps), double for float64 features, else float
};

// Every output has one order of summation, whatever the number of threads.
void grouped_conv_cpu(const GroupedParams& params);
void grouped_weight_grad_cpu(const GroupedWeightGradParams& params);

#if defined(USE_CUDA)
void launch_grouped_conv(const GroupedParams& params, cudaStream_t stream);
// `partial` is a workspace of grouped_partial_elements of the accumulating type.
int64_t grouped_partial_elements(const GroupedWeightGradParams& params);
void launch_grouped_weight_grad(const GroupedWeightGradParams& params, void* partial,
                                cudaStream_t stream);
#endif

}  // namespace segkern
