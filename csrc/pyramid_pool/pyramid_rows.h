// The vectorised row kernel of pyramid pooling, for the processor at hand.
#pragma once

#include <cstdint>

namespace segkern {

// T is float or double.
template <typename T>
struct PyramidRows {
  // out[x] = sum of in[r * row_step + k * step + x] over rows r and pixels k, in raster order, for
  // x < n.
  void (*sum)(const T* in, int64_t row_step, int64_t rows, int64_t step, int64_t pixels, int64_t n,
              T* out);
};

template <typename T>
const PyramidRows<T>& pyramid_rows();

}  // namespace segkern
