// Boxes on feature maps: reading the bins of a box from a map (RoIAlign) and writing bins to a map
// (RoIUpsample), each the other's transpose. For a box, a channel and bin (p, q)
//
//   bins[p, q] = sum over y, x of W[p, y] V[q, x] map[y, x]       read
//   map[y, x] += sum over p, q of W[p, y] V[q, x] bins[p, q]      write
//
// In every mode the weights are products of one factor an axis (roi_axis.h), short rows of few
// non-zeros; that many multiplications, not the square of the sampling ratio, are what a bin costs.
// Includes neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/host_device.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

constexpr int kMaxRoiLevels = 8;

// How the samples or pixels of a bin are weighted.
enum class RoiWeights : int32_t {
  kAverage,   // bilinear samples, their mean: RoIAlign
  kPinv,      // the minimum-norm pixels of which a bilinear sample reads the value, summed
  kPinvMean,  // and divided by the number of samples
  kNorm,      // bilinear samples, divided by the sum of the weights that a pixel gets
  kTent,      // a pixel's centre, interpolated between the bins' centres
};
constexpr int64_t kRoiWeightKinds = 5;

// One map, (images, channels, height, width); an image pixel is `scale` of its pixels.
struct RoiLevel {
  void* data;
  int64_t height, width;
  double scale;
};

struct RoiParams {
  RoiLevel level[kMaxRoiLevels];
  int64_t levels;
  // Boxes of sqrt(area) >= level_size[k], in image pixels, are not for levels 0 ... k.
  double level_size[kMaxRoiLevels - 1];
  int64_t images, channels;
  int64_t rois, bins_h, bins_w;
  int64_t sampling_ratio;  // samples a bin and axis; 0: one a pixel, rounded up
  bool aligned;            // pixel centres at integers; else at halves, and sizes of at least 1
  bool channels_last;      // of maps and bins
  RoiWeights weights;
  Element element;
  const void* boxes;  // (rois, 5): image, x1, y1, x2, y2; double for double elements, else float
  void* bins;         // (rois, channels, bins_h, bins_w)
  int32_t* coverage;  // write, or null: (images, height, width) boxes with a weight at a pixel, by
                      // which sums are divided; first filled by the coverage kernel
  // Write, or null: a pixel is the largest of what the boxes with a weight at it write (the first
  // of equals, a NaN before all), and this, of the map's shape and layout, tells which box that
  // was, -1 for none. Read, or null: a box reads only the elements that say it here.
  int32_t* chosen;

  SEGKERN_HOST_DEVICE int64_t bin_count() const { return bins_h * bins_w; }
};

void roi_read_cpu(const RoiParams& params);
void roi_write_cpu(const RoiParams& params);

#if defined(USE_CUDA)
void launch_roi_read(const RoiParams& params, cudaStream_t stream);
void launch_roi_write(const RoiParams& params, cudaStream_t stream);
#endif

}  // namespace segkern
