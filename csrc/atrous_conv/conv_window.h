// The geometry of a depthwise convolution and the params its kernels take. Without torch, so that
// kernels of every device can include it.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/host_device.h"

namespace segkern {

// Output (oh, ow) reads input (oh * stride - pad + k * dilation) for k along each axis. `up` zeros
// are understood between input elements (the gradient of a strided convolution): input element i
// lies at i * up. Padding may be negative there, which crops.
struct ConvWindow {
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  int64_t up_h, up_w;
  int64_t in_h, in_w;
  int64_t out_h, out_w;

  SEGKERN_HOST_DEVICE int64_t taps() const { return kernel_h * kernel_w; }
};

enum class Activation : int32_t { kNone, kRelu, kPrelu };

// activation(conv(in, weight) * scale + shift + residual). Per-channel tensors are of the
// accumulating type: double for float64 features, float for all others.
struct DepthwiseParams {
  ConvWindow window;
  int64_t batch, channels;
  Element element;
  bool channels_last;
  bool flip;             // weight taps in reverse order
  const void* in;        // (N, C, in_h, in_w) in the layout
  const void* weight;    // (C, kernel_h * kernel_w)
  const void* scale;     // (C,) or null
  const void* shift;     // (C,) or null
  const void* residual;  // like out, or null
  const void* slope;     // (C,) or (1,) for kPrelu
  int64_t slope_step;    // 0 for (1,)
  Activation activation;
  void* out;  // (N, C, out_h, out_w) in the layout
};

// weight_grad[c, k] = sum of grad[n, c, oh, ow] * in[n, c, ih, iw]; no `up`, no negative padding.
struct DepthwiseWeightGradParams {
  ConvWindow window;
  int64_t batch, channels;
  Element element;
  bool channels_last;
  const void* grad;   // (N, C, out_h, out_w)
  const void* in;     // (N, C, in_h, in_w)
  void* weight_grad;  // (C, taps), double for float64 features, else float
};

}  // namespace segkern
