// Which kernel runs; `launch` as in max_pool_launch.cuh.
#pragma once

#include "nms.cuh"

namespace segkern {

template <typename Launch>
void nms(const NmsParams& p, const Launch& launch) {
  const int64_t threads = p.count * p.words * 32;
  if (p.wide) {
    launch(nms_pairs_kernel<double>, threads, p);
  } else {
    launch(nms_pairs_kernel<float>, threads, p);
  }
  launch(nms_keep_kernel, int64_t{kBlockThreads}, p);
}

}  // namespace segkern
