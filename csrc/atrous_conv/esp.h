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
// the accumulating type: double for float64 features, float for all others. On CUDA the weights are
// of the features' type, float16, bfloat16 or float32 (then products are in TF32), per-channel
// tensors may be null, and all memory starts at multiples of 16 bytes.
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
  const void* slope;     // (out_channels,), on CUDA or (1,)
  int64_t slope_step;    // 0 for (1,)
  Activation activation;
  void* out;  // (N, out_channels, H, W) in the layout
};

// Every output has one order of summation, whatever the number of threads.
void esp_cpu(const EspParams& params);

#if defined(USE_CUDA)
// The buffers are those of esp_plan.h; what they hold behind the call does not matter.
void launch_esp_pyramid(const EspParams& params, void* reduced, void* packed, cudaStream_t stream);
#endif

}  // namespace segkern
