// Dense convolution as an implicit matrix product, for CUDA; includes neither torch nor CUDA.
#pragma once

#include "conv_window.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

// Most taps of a kernel: a block lists those that it needs.
constexpr int64_t kMaxDenseTaps = 256;
// Longest padded side of an input.
constexpr int64_t kMaxDenseExtent = int64_t{1} << 30;
// Input channels come in vectors of 16 bytes.
inline int64_t dense_vector(Element element) { return 16 / element_size(element); }

// out = activation(conv(in, weight) * scale + shift + residual), channels-last throughout, of
// float16, bfloat16, or float32 whose products are in TF32. in_channels must be a multiple of
// dense_vector; pointers of in and weight are multiples of 16 bytes, of out and residual of 2
// elements.
struct DenseParams {
  ConvWindow window;  // up is 1; padding may be negative, which crops
  int64_t batch, in_channels, out_channels;
  Element element;
  bool flip;             // weight taps in reverse order
  const void* in;        // (N, in_h, in_w, in_channels)
  const void* weight;    // (out_channels, taps, in_channels)
  const void* scale;     // (out_channels,) float or null
  const void* shift;     // (out_channels,) float or null
  const void* residual;  // like out, or null
  const void* slope;     // (out_channels,) or (1,) float for kPrelu
  int64_t slope_step;    // 0 for (1,)
  Activation activation;
  void* out;  // (N, out_h, out_w, out_channels)
};

// weight_grad[co, k, ci] = sum of grad[n, oh, ow, co] * in[n, ih, iw, ci]; both counts of channels
// must be multiples of dense_vector, the outputs less than 2^31 pixels.
struct DenseWeightGradParams {
  ConvWindow window;  // up is 1 and padding not negative
  int64_t batch, in_channels, out_channels;
  Element element;
  const void* grad;    // (N, out_h, out_w, out_channels)
  const void* in;      // (N, in_h, in_w, in_channels)
  float* weight_grad;  // (out_channels, taps, in_channels)
};

#if defined(USE_CUDA)
void launch_dense_conv(const DenseParams& params, cudaStream_t stream);
// The same of stride 1 by Hopper's own instructions, on devices of compute capability 9.0.
void launch_wgmma_conv(const DenseParams& params, cudaStream_t stream);
// `partial` is a workspace of dense_partial_elements floats.
int64_t dense_partial_elements(const DenseWeightGradParams& params);
void launch_dense_weight_grad(const DenseWeightGradParams& params, float* partial,
                              cudaStream_t stream);
#endif

}  // namespace segkern
