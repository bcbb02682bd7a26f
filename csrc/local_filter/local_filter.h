// Sums over a window of values weighted by the squared differences of colours and positions:
//
//   colour_j   = sum over z in the window of j of |I_j - I_z|^2 v_z
//   position_j = sum over z in the window of j of |x_j - x_z|^2 v_z      (pixels)
//   out_j      = (weights[0] colour_j + weights[1] position_j) outer_j + added_j
//
// z outside the plane counts 0. The squares are expanded, so that box sums of v, I v, |I|^2 v, x v
// and |x|^2 v give them in a time that does not depend on the window. The expansion cancels nearly
// all of its terms where colours are alike: everything is summed in double, positions are counted
// from the corner of the part that is worked on. Includes neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/host_device.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

// Channels an image may have.
constexpr int64_t kMaxColours = 4;

// Widest window on CUDA: the tile of a block of 256 threads must leave some outputs.
constexpr int64_t kMaxCudaWindow = 192;

struct LocalFilterParams {
  int64_t planes, labels;  // planes = images * labels
  int64_t height, width;
  int64_t colours;
  int64_t kernel_h, kernel_w;
  int64_t first_y, first_x;  // the window of j is j + first ... j + first + kernel - 1
  Element element;
  // (planes, height, width) of `element`; all but values may be null.
  const void* values;
  const void* factor;  // v = values * factor
  const void* outer;
  const void* paired;  // see partial
  // Of the type that sums of `element` are kept in: double for double, else float.
  const void* image;  // (images, colours, height, width)
  const void* added;  // (planes, height, width), or null
  const double* weights;
  void* out;      // of `element`, or of the type of image where `wide`
  bool wide;
  double* partial;  // or null: (parts, 2) sums over a part of paired * colour, paired * position

  SEGKERN_HOST_DEVICE int64_t plane() const { return height * width; }
};

// The window of the transposed filter.
inline LocalFilterParams mirrored(LocalFilterParams p) {
  p.first_y = -(p.first_y + p.kernel_h - 1);
  p.first_x = -(p.first_x + p.kernel_w - 1);
  return p;
}

// Rows of partial that the filter writes.
int64_t local_filter_parts_cpu(const LocalFilterParams& params);
void local_filter_cpu(const LocalFilterParams& params);

#if defined(USE_CUDA)
int64_t local_filter_parts_cuda(const LocalFilterParams& params);
void launch_local_filter(const LocalFilterParams& params, cudaStream_t stream);
// sums[0..1] = the sums of partial's columns, in a fixed order.
void launch_local_filter_sums(const double* partial, int64_t parts, double* sums,
                              cudaStream_t stream);
#endif

}  // namespace segkern
