// Non-maximum suppression of boxes that are ordered by falling score: a box goes if its overlap
// with one that stays, of its class where there are classes, exceeds the threshold. Includes
// neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

struct NmsParams {
  int64_t count;
  bool wide;              // boxes are double, else float
  const void* boxes;      // (count, 4): x1, y1, x2, y2
  const int64_t* labels;  // (count,), or null: one class
  const bool* live;       // (count,): boxes that are not take no part and do not stay
  double threshold;
  bool* keep;             // (count,)
  // CUDA: the words of pairs, (count, words), and of boxes that go, (words,).
  int64_t words;
  uint32_t* pairs;
  uint32_t* gone;
};

// Whether the IoU of two boxes exceeds the threshold; a NaN never does.
template <typename T>
SEGKERN_HOST_DEVICE inline bool overlaps(const T* a, const T* b, T threshold) {
  const T w = (a[2] < b[2] ? a[2] : b[2]) - (a[0] > b[0] ? a[0] : b[0]);
  const T h = (a[3] < b[3] ? a[3] : b[3]) - (a[1] > b[1] ? a[1] : b[1]);
  const T shared = (w > 0 ? w : T(0)) * (h > 0 ? h : T(0));
  const T area_a = (a[2] - a[0]) * (a[3] - a[1]), area_b = (b[2] - b[0]) * (b[3] - b[1]);
  return shared / (area_a + area_b - shared) > threshold;
}

void nms_cpu(const NmsParams& params);

#if defined(USE_CUDA)
void launch_nms(const NmsParams& params, cudaStream_t stream);
#endif

}  // namespace segkern
