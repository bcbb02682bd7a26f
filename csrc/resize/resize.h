// Bilinear resampling of feature maps, and its adjoint. Includes neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "../common/element.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

// Maps of in_h x in_w and of out_h x out_w pixels, (items, channels, h, w) or, channels-last,
// (items, h, w, channels) in memory, and dense. The forward reads the maps of in_h x in_w and
// writes the others, the backward the other way round.
struct ResizeParams {
  int64_t items, channels;
  int64_t in_h, in_w, out_h, out_w;
  Element element;
  bool channels_last;
  bool align_corners;
  const void* from;
  void* to;

  int64_t planes() const { return items * channels; }
  int64_t in_elements() const { return planes() * in_h * in_w; }
  int64_t out_elements() const { return planes() * out_h * out_w; }
};

void resize_fwd_cpu(const ResizeParams& params);
void resize_bwd_cpu(const ResizeParams& params);

#if defined(USE_CUDA)
void launch_resize_fwd(const ResizeParams& params, cudaStream_t stream);
void launch_resize_bwd(const ResizeParams& params, cudaStream_t stream);
#endif

}  // namespace segkern
