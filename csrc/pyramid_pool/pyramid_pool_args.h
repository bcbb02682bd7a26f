// The arguments of pyramid_pool and its backward, checked; common to both devices.
#pragma once

#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/layout.h"
#include "pyramid_pool.h"

namespace segkern {

using IntList = std::vector<int64_t>;

struct PyramidCall {
  Tensor from, to;
  PyramidParams params;

  bool has_work() const { return params.planes() > 0; }
};

inline PyramidParams pyramid_params(const char* op, const char* name, const Tensor& from,
                                    const IntList& bins, int64_t h, int64_t w) {
  SEGKERN_CHECK(!bins.empty() && bins.size() <= kMaxGrids, op, ": bins must be 1 to ", kMaxGrids,
                " numbers, got ", shape_string(bins));
  PyramidParams p{};
  int64_t sides = 0;
  for (const int64_t b : bins) {
    SEGKERN_CHECK(b >= 1 && b <= kMaxBins, op, ": bins must be from 1 to ", kMaxBins, ", got ",
                  shape_string(bins));
    p.bins[p.grids++] = b;
    p.cells += b * b;
    sides += b;
  }
  SEGKERN_CHECK(sides <= kMaxAllBins, op, ": bins must add up to at most ", kMaxAllBins, ", got ",
                shape_string(bins));
  SEGKERN_CHECK(h <= INT32_MAX && w <= INT32_MAX, op, ": ", name,
                " must have fewer than 2^31 rows and columns, got (", h, ", ", w, ")");
  p.items = from.size(0);
  p.channels = from.size(1);
  p.height = h;
  p.width = w;
  p.element = element_of(from, op, name);
  p.channels_last = is_channels_last(from) && p.channels > 1;  // with one they are the same memory
  return p;
}

inline PyramidCall prepare_pyramid(const Tensor& from, const PyramidParams& params,
                                   const std::vector<int64_t>& sizes) {
  PyramidCall call{};
  const bool channels_last = is_channels_last(from);
  call.params = params;
  call.from = as_layout(from, channels_last);
  call.to = empty_in_layout(sizes, from.scalar_type(), from, channels_last);
  call.params.from = call.from.data_ptr();
  call.params.to = call.to.data_ptr();
  return call;
}

// The averages are (N, C, cells, 1), so that they can lie channels-last.
inline PyramidCall prepare_pyramid_pool(const Tensor& input, const IntList& bins) {
  constexpr const char* op = "pyramid_pool";
  SEGKERN_CHECK(input.dim() == 4 && input.size(2) > 0 && input.size(3) > 0, op,
                ": input must be (N, C, H, W) with at least one row and column, got ",
                shape_string(sizes_of(input)));
  const PyramidParams p =
      pyramid_params(op, "input", input, bins, input.size(2), input.size(3));
  return prepare_pyramid(input, p, {p.items, p.channels, p.cells, 1});
}

inline PyramidCall prepare_pyramid_pool_backward(const Tensor& grad, const IntList& bins, int64_t h,
                                                 int64_t w) {
  constexpr const char* op = "_pyramid_pool_backward";
  SEGKERN_CHECK(grad.dim() == 4 && h > 0 && w > 0, op,
                ": grad must be (N, C, cells, 1) and the sizes positive, got ",
                shape_string(sizes_of(grad)), " for (", h, ", ", w, ")");
  const PyramidParams p = pyramid_params(op, "grad", grad, bins, h, w);
  SEGKERN_CHECK(grad.size(2) == p.cells && grad.size(3) == 1, op, ": grad must be (N, C, ", p.cells,
                ", 1), got ", shape_string(sizes_of(grad)));
  return prepare_pyramid(grad, p, {p.items, p.channels, h, w});
}

}  // namespace segkern
