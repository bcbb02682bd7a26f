// Where along an axis an output pixel of bilinear resampling reads; shared by the kernels of both
// devices.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/host_device.h"

namespace segkern {

// An output pixel is (1 - weight) * in[index] + weight * in[index + 1].
template <typename T>
struct Source {
  int64_t index;
  T weight;  // 0 at the last input pixel, which has none behind it
};

// torch's coordinates, computed in T as torch does: float for all types but double, the product and
// the difference in one operation, as its kernels are compiled. They do not fall where the output
// pixel grows, rounding included, and `source` is never out of range.
template <typename T>
struct AxisMap {
  int64_t in, out;
  T scale;
  bool align_corners;

  AxisMap(int64_t in_size, int64_t out_size, bool corners)
      : in(in_size),
        out(out_size),
        scale(!corners         ? static_cast<T>(in_size) / static_cast<T>(out_size)
              : out_size > 1 ? static_cast<T>(in_size - 1) / static_cast<T>(out_size - 1)
                             : T(0)),
        align_corners(corners) {}

  SEGKERN_HOST_DEVICE Source<T> source(int64_t pixel) const {
    T at = align_corners ? scale * static_cast<T>(pixel)
                         : std::fma(scale, static_cast<T>(pixel) + T(0.5), T(-0.5));
    at = at > T(0) ? at : T(0);
    const int64_t index = static_cast<int64_t>(at);
    if (index >= in - 1) {
      return {in - 1, T(0)};
    }
    return {index, at - static_cast<T>(index)};
  }

  // The first output pixel whose source index is at least `index`; `out` if there is none. The
  // guess from the coordinate's inverse is off by the rounding of both, and corrected.
  SEGKERN_HOST_DEVICE int64_t first_from(int64_t index) const {
    if (index <= 0) {
      return 0;
    }
    if (index >= in) {
      return out;
    }
    const T place = static_cast<T>(index);
    const T guess = !(scale > T(0)) ? static_cast<T>(out)
                    : align_corners ? place / scale
                                    : (place + T(0.5)) / scale - T(0.5);
    int64_t pixel = guess >= static_cast<T>(out) ? out : static_cast<int64_t>(guess);
    while (pixel > 0 && source(pixel - 1).index >= index) {
      --pixel;
    }
    while (pixel < out && source(pixel).index < index) {
      ++pixel;
    }
    return pixel;
  }
};

}  // namespace segkern
