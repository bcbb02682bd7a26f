// The efficient spatial pyramid in one pass: reduction, dilated branches, hierarchical sums,
// residual, affine map and activation. Also a single small dilated convolution (one branch).
#pragma once

#include "conv_window.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

constexpr int kMaxBranches = 16;

// reduced = reduce * in (1x1), or in itself. Branch b: conv(reduced, weight[b]) at rate[b], padded
// to the size of the map; from the third branch on the one before is added where `hierarchical`.
// out = activation((concat + residual) * scale + shift). Weights and per-channel tensors are of
// the accumulating type: double for float64 features, float for all others.
struct EspParams {
  int64_t batch, in_channels, height, width;
  int64_t reduced;       // channels of every branch's input
  int64_t out_channels;  // of all branches
  int64_t kernel_h, kernel_w;  // odd
  int branches;
  int64_t rate_h[kMaxBranches], rate_w[kMaxBranches];
  int64_t outputs[kMaxBranches];     // channels of each branch
  const void* weight[kMaxBranches];  // (outputs, reduced, kernel_h, kernel_w)
  bool hierarchical;
  Element element;
  bool channels_last;
  const void* in;        // (N, in_channels, H, W) in the layout
  const void* reduce;    // (reduced, in_channels) or null
  const void* residual;  // like out, or null
  const void* scale;     // (out_channels,)
  const void* shift;     // (out_channels,)
  const void* slope;     // (out_channels,)
  Activation activation;
  void* out;  // (N, out_channels, H, W) in the layout
};

// Every output has one order of summation, whatever the number of threads.
void esp_cpu(const EspParams& params);

}  // namespace segkern
