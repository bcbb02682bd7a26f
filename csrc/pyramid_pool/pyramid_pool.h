// Averages of feature maps over the cells of several grids, and their adjoint. Includes neither
// torch nor CUDA.
//
// Grid k has bins[k] x bins[k] cells. Cell i of b along an axis of n pixels holds the pixels from
// floor(i n / b) to ceil((i + 1) n / b) - 1: torch's adaptive pooling, whose cells share a pixel at
// most where b does not divide n.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/host_device.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

constexpr int kMaxGrids = 8;
// Cells a side of one grid, and of all of them together.
constexpr int64_t kMaxBins = 64;
constexpr int64_t kMaxAllBins = 128;

// Pixels [begin, end) of cell `i` of `cells` along an axis.
struct CellRange {
  int64_t begin, end;
  SEGKERN_HOST_DEVICE CellRange(int64_t i, int64_t cells, int64_t pixels)
      : begin(i * pixels / cells), end(((i + 1) * pixels + cells - 1) / cells) {}
};

// Maps are (items, channels, height, width) or, channels-last, (items, height, width, channels) in
// memory, averages (items, channels, cells) or (items, cells, channels): grid after grid, row by
// row.
struct PyramidParams {
  int64_t items, channels, height, width;
  int64_t cells;
  int grids;
  int64_t bins[kMaxGrids];
  Element element;
  bool channels_last;
  const void* from;
  void* to;

  SEGKERN_HOST_DEVICE int64_t planes() const { return items * channels; }
};

void pyramid_pool_fwd_cpu(const PyramidParams& params);
void pyramid_pool_bwd_cpu(const PyramidParams& params);

#if defined(USE_CUDA)
// `sums`: a number of the type of the sums for every plane and piece (pieces.h).
void launch_pyramid_pool_fwd(const PyramidParams& params, void* sums, cudaStream_t stream);
void launch_pyramid_pool_bwd(const PyramidParams& params, void* sums, cudaStream_t stream);
#endif

}  // namespace segkern
