// Which kernels run; `launch` as in max_pool_launch.cuh.
#pragma once

#include <type_traits>

#include "../common/kernel_dispatch.cuh"
#include "roi.cuh"

namespace segkern {

inline int64_t roi_parts(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// The layout and whether elements are chosen, as constants.
template <typename Run>
void roi_variant(const RoiParams& p, const Run& run) {
  const auto by_choice = [&](auto last) {
    if (p.chosen) {
      run(last, std::true_type{});
    } else {
      run(last, std::false_type{});
    }
  };
  if (p.channels_last) {
    by_choice(std::true_type{});
  } else {
    by_choice(std::false_type{});
  }
}

template <typename Launch>
void roi_read(const RoiParams& p, const Launch& launch) {
  const int64_t blocks = p.rois * roi_parts(p.bins_h, kReadBins) * roi_parts(p.bins_w, kReadBins) *
                         roi_parts(p.channels, kReadChannels);
  by_type(p.element, [&](auto type) {
    using scalar_t = typename decltype(type)::type;
    roi_variant(p, [&](auto last, auto chosen) {
      launch(roi_read_kernel<scalar_t, last.value, chosen.value>, blocks * kBlockThreads, p);
    });
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
      roi_variant(p, [&](auto last, auto largest) {
        launch(roi_write_kernel<scalar_t, last.value, largest.value>, blocks * kBlockThreads, p,
               k);
      });
    }
  });
}

}  // namespace segkern
