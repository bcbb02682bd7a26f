// Convolution of small groups for CUDA, in both layouts; includes neither torch nor CUDA.
#pragma once

#include "conv_window.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

// activation(conv(in, weight) * scale + shift + residual) with in_channels and out_channels to each
// of `groups`. Per-channel tensors are of the accumulating type: double for float64 features, float
// for all others. The taps of a weight lie beside each other.
struct GroupedParams {
  ConvWindow window;
  int64_t batch, groups, in_channels, out_channels;
  Element element;
  bool channels_last;
  bool flip;           // weight taps in reverse order
  const void* in;      // (N, groups * in_channels, in_h, in_w) in the layout
  const void* weight;  // of the features' type
  int64_t weight_out, weight_in;  // elements to the next output channel, input channel of a group
  const void* scale;              // (groups * out_channels,) or null
  const void* shift;              // (groups * out_channels,) or null
  const void* residual;           // like out, or null
  const void* slope;              // (groups * out_channels,) or (1,) for kPrelu
  int64_t slope_step;             // 0 for (1,)
  Activation activation;
  void* out;  // (N, groups * out_channels, out_h, out_w) in the layout
};

// weight_grad[co, ci, k] = sum of grad[n, co, oh, ow] * in[n, ci, ih, iw] for ci of the group of
// co; no `up`, no negative padding; less than 2^31 output pixels.
struct GroupedWeightGradParams {
  ConvWindow window;
  int64_t batch, groups, in_channels, out_channels;
  Element element;
  bool channels_last;
  const void* grad;   // (N, groups * out_channels, out_h, out_w)
  const void* in;     // (N, groups * in_channels, in_h, in_w)
  void* weight_grad;  // (groups * out_channels, in_channels, taps), double for float64, else float
};

#if defined(USE_CUDA)
void launch_grouped_conv(const GroupedParams& params, cudaStream_t stream);
// `partial` is a workspace of grouped_partial_elements of the accumulating type.
int64_t grouped_partial_elements(const GroupedWeightGradParams& params);
void launch_grouped_weight_grad(const GroupedWeightGradParams& params, void* partial,
                                cudaStream_t stream);
#endif

}  // namespace segkern
