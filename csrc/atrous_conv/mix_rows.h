// Vectorised kernels that mix several input rows into several output rows (1x1 convolutions, small
// dilated convolutions), for the processor at hand.
#pragma once

#include <cstdint>
#include <vector>

namespace segkern {

// Output rows that are summed in registers together, at most.
constexpr int kMixOutputs = 14;
// Row lengths are multiples of this many elements.
constexpr int64_t kMixBlock = 16;

// T is float or double.
template <typename T>
struct MixRows {
  // y[o][i] = init[o][i] (0 if null) + sum over t < nt of w[t * no + o] * in[t][x + i], for
  // o < no <= kMixOutputs and i < n. Rows of y and init are `y_step` and `init_step` apart.
  void (*mix)(const T* const* in, int64_t x, int64_t nt, const T* w, int no, const T* init,
              int64_t init_step, T* y, int64_t y_step, int64_t n);
  // to[j][i] = from[i][j] for i < rows, j < columns.
  void (*transpose)(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows,
                    int64_t columns);
  // The same for elements of two bytes.
  void (*transpose_halves)(const uint16_t* from, int64_t from_step, uint16_t* to, int64_t to_step,
                           int64_t rows, int64_t columns);
  // y = activation((y + residual) * scale + shift); residual may be null. The step is 0 where one
  // scale, shift and slope hold for all elements, 1 where each has its own. The same for `count`
  // rows of n elements behind each other.
  void (*finish)(T* y, const T* residual, const T* scale, const T* shift, int activation,
                 const T* slope, int64_t step, int64_t n, int64_t count);
  // acc[(o * ni + i) * kMixBlock + lane] += g[o][x] * in[i][x] for o < no, i < ni and x < n; rows of
  // g and in are `g_step` and `in_step` apart.
  void (*products)(const T* g, int64_t g_step, int64_t no, const T* in, int64_t in_step, int64_t ni,
                   T* acc, int64_t n);
};

// A count in balanced blocks of at most `most`.
inline std::vector<int64_t> balanced_blocks(int64_t count, int64_t most) {
  const int64_t number = (count + most - 1) / most;
  std::vector<int64_t> blocks;
  for (int64_t b = 0; b < number; ++b) {
    blocks.push_back(count * (b + 1) / number - count * b / number);
  }
  return blocks;
}

template <typename T>
const MixRows<T>& mix_rows();

}  // namespace segkern
