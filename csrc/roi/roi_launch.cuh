// Which kernels run; `launch` as in max_pool_launch.cuh.
#pragma once

#include "../common/kernel_dispatch.cuh"
#include "roi.cuh"

namespace segkern {

inline int64_t roi_parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

template <typename Launch>
void roi_read(const RoiParams& p, const Launch& launch) {
  const int64_t blocks = p.rois * roi_parts(p.bins_h, kReadBins) * roi_parts(p.bins_w, kReadBins) *
                         roi_parts(p.channels, kReadChannels);
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    launch(p.channels_last ? roi_read_kernel<scalar_t, true> : roi_read_kernel<scalar_t, false>,
           blocks * kBlockThreads, p);
  });
}

template <typename Launch>
void roi_write(const RoiParams& p, const Launch& launch) {
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    if (p.coverage) {
      launch(roi_coverage_kernel<decltype(widen(scalar_t{}))>,
             p.images * p.level[0].height * p.level[0].width, p);
    }
    for (int64_t k = 0; k < p.levels; ++k) {
      const int64_t blocks = p.images * roi_parts(p.level[k].height, kTileSide) *
                             roi_parts(p.level[k].width, kTileSide) *
                             roi_parts(p.channels, kWriteChannels);
      launch(
          p.channels_last ? roi_write_kernel<scalar_t, true> : roi_write_kernel<scalar_t, false>,
          blocks * kBlockThreads, p, k);
    }
  });
}

}  // namespace segkern
