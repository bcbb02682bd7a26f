// Copies a map from one memory format to the other in tiles that stay in the first-level cache.
#include <algorithm>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "conv_args.h"
#include "mix_rows.h"

namespace segkern {
namespace {

constexpr int64_t kTile = 64;
// Columns that are written at once where rows of the result are a multiple of kPitch bytes apart:
// more of them would drive each other out of the first-level cache.
constexpr int64_t kNarrow = 16;
constexpr int64_t kPitch = 512;

// to[j][i] = from[i][j] for a matrix with rows of `columns` elements, in tiles.
template <typename T, typename Transpose>
void transpose_matrix(const Transpose& transpose, const T* from, T* to, int64_t rows,
                      int64_t columns, int64_t first, int64_t last) {
  const bool aligned = rows * static_cast<int64_t>(sizeof(T)) % kPitch == 0;
  const int64_t together = aligned ? kNarrow : kTile;
  for (int64_t j = first; j < last; j += kTile) {
    for (int64_t i = 0; i < rows; i += kTile) {
      const int64_t end = std::min(last, j + kTile);
      for (int64_t k = j; k < end; k += together) {
        transpose(from + i * columns + k, columns, to + k * rows + i, rows,
                  std::min(kTile, rows - i), std::min(together, end - k));
      }
    }
  }
}

// (N, rows, columns) to (N, columns, rows).
template <typename T, typename Transpose>
void transpose_batch(const Transpose& transpose, const void* in, void* out, int64_t batch,
                     int64_t rows, int64_t columns) {
  const int64_t tiles = (columns + kTile - 1) / kTile;
  torch::stable::parallel_for(0, batch * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t offset = task / tiles * rows * columns;
      const int64_t first = task % tiles * kTile;
      transpose_matrix(transpose, static_cast<const T*>(in) + offset,
                       static_cast<T*>(out) + offset, rows, columns, first,
                       std::min(columns, first + kTile));
    }
  });
}

Tensor relayout_cpu(const Tensor& input, bool channels_last) {
  constexpr const char* op = "_relayout";
  check_map(op, "input", input);
  const Tensor in = as_layout(input, !channels_last);
  Tensor out = empty_in_layout(sizes_of(input), input.scalar_type(), input, channels_last);
  const int64_t pixels = input.size(2) * input.size(3);
  if (input.size(0) == 0 || pixels == 0) {
    return out;
  }
  const int64_t rows = channels_last ? input.size(1) : pixels;
  const int64_t columns = channels_last ? pixels : input.size(1);
  const MixRows<float>& mix = mix_rows<float>();
  switch (element_size(element_of(input, op, "input"))) {
    case 8:
      transpose_batch<double>(mix_rows<double>().transpose, in.data_ptr(), out.data_ptr(),
                              input.size(0), rows, columns);
      break;
    case 4:
      transpose_batch<float>(mix.transpose, in.data_ptr(), out.data_ptr(), input.size(0), rows,
                             columns);
      break;
    default:
      transpose_batch<uint16_t>(mix.transpose_halves, in.data_ptr(), out.data_ptr(),
                                input.size(0), rows, columns);
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("_relayout", TORCH_BOX(&relayout_cpu));
}

}  // namespace segkern
