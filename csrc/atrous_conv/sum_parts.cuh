// Sums of a split reduction, in a fixed order.
#pragma once

#include "../common/device.cuh"

namespace segkern {
namespace {

// sums[i] = partial[0][i] + partial[1][i] + ..., in double. A thread owns one i.
template <typename acc_t>
__global__ void __launch_bounds__(kBlockThreads)
    sum_parts_kernel(const acc_t* partial, int64_t parts, int64_t count, acc_t* sums) {
  const int64_t i = thread_index<int64_t>();
  if (i >= count) {
    return;
  }
  double total = 0;
  for (int64_t part = 0; part < parts; ++part) {
    total += static_cast<double>(partial[part * count + i]);
  }
  sums[i] = static_cast<acc_t>(total);
}

}  // namespace
}  // namespace segkern
