// Row kernels of the box operators for this processor.
#pragma once

#include <cstdint>

namespace segkern {

template <typename T>
struct RoiRows {
  // out[i] = sum over k < count of weights[k] * rows[k][i]; count 0 fills with 0.
  void (*combine)(const T* const* rows, const T* weights, int64_t count, int64_t n, T* out);
  // out[i] += weight * row[i]
  void (*accumulate)(const T* row, T weight, int64_t n, T* out);
  // to[j * to_stride + i] = from[i * from_stride + j]
  void (*transpose)(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                    int64_t to_stride);
};

const RoiRows<float>& roi_rows(float);
const RoiRows<double>& roi_rows(double);

}  // namespace segkern
