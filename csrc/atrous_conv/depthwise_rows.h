// Vectorised row kernels of depthwise convolution, for the processor at hand.
#pragma once

#include <cstdint>

#include "../common/element.h"

namespace segkern {

// Row kernels work on whole blocks of this many elements: the rows they read have room for a block
// before and behind, the rows they write for the rest of the last block.
constexpr int64_t kRowBlock = 16;

// Pixels that share their weights in registers, channels-last.
constexpr int64_t kLanePixels = 4;

// T is float or double.
template <typename T>
struct DepthwiseRows {
  // y[x] = init + sum over r < nr and taps k in [first, last) of w[r][k] * rows[r][x + offset[k]],
  // for `blocks` blocks from x0, in `count` output rows: from one to the next the inputs are
  // `row_step` and the outputs `y_step` elements further.
  void (*segment)(const T* const* rows, const T* const* w, const int64_t* offset, int nr,
                  int first, int last, T init, T* y, int64_t x0, int64_t blocks, int64_t count,
                  int64_t row_step, int64_t y_step);
  // acc[k * kRowBlock + lane] += g[x] * row[x + offset[k]] for taps k in [first, last).
  void (*weight_grad)(const T* g, const T* row, const int64_t* offset, int first, int last, T* acc,
                      int64_t x0, int64_t blocks);
  // y[j][c] = init[c] (0 if null) + sum over t < nt of w[t][c] * in[t][j * in_step + c] for the
  // pixels j < count <= kLanePixels; rows of y are y_step apart.
  void (*lanes)(const T* const* in, const T* const* w, int nt, const T* init, T* y, int64_t n,
                int64_t count, int64_t in_step, int64_t y_step);
  // acc[c] += g[c] * in[c].
  void (*lanes_weight_grad)(const T* g, const T* in, T* acc, int64_t n);
  // y = activation(y + residual), activation as in conv_window.h; residual may be null.
  // slope_step 0: one slope for all.
  void (*finish)(T* y, const T* residual, int activation, const T* slope, int64_t slope_step,
                 int64_t n);
  // Elements of a feature tensor to T and back, rounding to nearest even. Element is T's own or,
  // for float, a half type.
  void (*load)(Element element, const void* from, T* to, int64_t n);
  void (*store)(Element element, const T* from, void* to, int64_t n);
  // Copies past the caches, whole lines at a time; end with stream_fence (common/stream_store.h).
  void (*stream)(void* to, const void* from, int64_t bytes);
};

template <typename T>
const DepthwiseRows<T>& depthwise_rows();

}  // namespace segkern
