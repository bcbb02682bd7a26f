// Convolution with few channels a group, and the gradient of its weight. Contiguous maps.
#pragma once

#include "conv_window.h"

namespace segkern {

// activation(conv(in, weight) * scale + shift + residual). Weights and per-channel tensors are of
// the accumulating type: double for float64 features, float for all others.
struct GroupedParams {
  ConvWindow window;
  int64_t batch, groups;
  int64_t inputs, outputs;  // channels of a group
  Element element;
  bool swapped;          // weight is (groups * inputs, outputs, taps), and taps are in reverse order
  const void* in;        // (N, groups * inputs, in_h, in_w)
  const void* weight;    // (groups * outputs, inputs, taps)
  const void* scale;     // (groups * outputs,) or null
  const void* shift;     // (groups * outputs,) or null
  const void* residual;  // like out, or null
  const void* slope;     // (groups * outputs,) or (1,) for kPrelu
  int64_t slope_step;    // 0 for (1,)
  Activation activation;
  void* out;  // (N, groups * outputs, out_h, out_w)
};

// weight_grad[o, i, k] = sum of grad[n, o, oh, ow] * in[n, i, ih, iw] over a group's channels.
struct GroupedWeightGradParams {
  ConvWindow window;
  int64_t batch, groups;
  int64_t inputs, outputs;  // channels of a group
  Element element;
  const void* grad;   // (N, groups * outputs, out_h, out_w)
  const void* in;     // (N, groups * inputs, in_h, in_w)
  void* weight_grad;  // (groups * outputs, inputs, taps), double for float64 features, else float
};

// Every output has one order of summation, whatever the number of threads.
void grouped_conv_cpu(const GroupedParams& params);
void grouped_weight_grad_cpu(const GroupedWeightGradParams& params);

}  // namespace segkern
