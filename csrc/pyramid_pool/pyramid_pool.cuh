// Pyramid pooling kernels over the pieces of pieces.h; layouts are those of pyramid_pool.h.
//
// The map is read or written once and bounds them; the pieces' numbers, kept between the two
// kernels of each direction in the type of the sums, are few. Sums have one order: no atomics.
#pragma once

#include "../common/device.cuh"
#include "pieces.h"

namespace segkern {
namespace {

constexpr int kPyramidWarps = kBlockThreads / 32;

// A call's pieces: `sums` are (planes, pieces), or (items, pieces, channels) channels-last.
template <typename T>
struct Pieces {
  Segments down, across;
  T* sums;

  SEGKERN_HOST_DEVICE int64_t count() const { return down.count * across.count; }
};

// Contiguous planes. A warp owns a piece: its lanes take every 32nd pixel in raster order, and
// their sums are added up as a tree.
template <typename scalar_t>
__global__ void __launch_bounds__(kBlockThreads)
    pyramid_sum_planes_kernel(PyramidParams p, Pieces<decltype(widen(scalar_t{}))> pieces) {
  using T = decltype(widen(scalar_t{}));
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kPyramidWarps + threadIdx.x / 32;
  if (warp >= p.planes() * pieces.count()) {
    return;
  }
  const Split<int64_t> by_piece(warp, pieces.count());
  const Split<int64_t> by_segment(by_piece.inner, pieces.across.count);
  const int64_t band = by_segment.outer, segment = by_segment.inner;
  const int64_t width = pieces.across.length(segment);
  const int64_t pixels = pieces.down.length(band) * width;
  const scalar_t* in = static_cast<const scalar_t*>(p.from) +
                       (by_piece.outer * p.height + pieces.down.edges[band]) * p.width +
                       pieces.across.edges[segment];
  T sum = T(0);
  for (int64_t k = threadIdx.x % 32; k < pixels; k += 32) {
    const Split<int64_t> at(k, width);
    sum += widen(in[at.outer * p.width + at.inner]);
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, offset);
  }
  if (threadIdx.x % 32 == 0) {
    pieces.sums[warp] = sum;
  }
}

// Channels-last. A block owns a piece and 32 x kVector channels; each warp sums a part of the
// piece's pixels, and the parts are added in order.
template <typename scalar_t, int kVector>
__global__ void __launch_bounds__(kBlockThreads)
    pyramid_sum_pixels_kernel(PyramidParams p, Pieces<decltype(widen(scalar_t{}))> pieces,
                              int64_t blocks) {
  using T = decltype(widen(scalar_t{}));
  __shared__ T parts[kPyramidWarps][32 * kVector];
  const Split<int64_t> by_block(static_cast<int64_t>(blockIdx.x), blocks);
  const Split<int64_t> by_piece(by_block.outer, pieces.count());
  const Split<int64_t> by_segment(by_piece.inner, pieces.across.count);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t channel = (by_block.inner * 32 + lane) * kVector;
  const int64_t width = pieces.across.length(by_segment.inner);
  const int64_t pixels = pieces.down.length(by_segment.outer) * width;
  const scalar_t* in =
      static_cast<const scalar_t*>(p.from) + channel +
      ((by_piece.outer * p.height + pieces.down.edges[by_segment.outer]) * p.width +
       pieces.across.edges[by_segment.inner]) *
          p.channels;
  const int64_t begin = pixels * warp / kPyramidWarps, end = pixels * (warp + 1) / kPyramidWarps;
  T sum[kVector] = {};
  if (channel < p.channels) {
    for (int64_t k = begin; k < end; ++k) {
      const Split<int64_t> at(k, width);
      const Vec<scalar_t, kVector> value =
          load_vec<scalar_t, kVector>(in + (at.outer * p.width + at.inner) * p.channels);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        sum[j] += widen(value.lane[j]);
      }
    }
  }
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    parts[warp][lane * kVector + j] = sum[j];
  }
  __syncthreads();
  if (warp == 0 && channel < p.channels) {
    for (int j = 0; j < kVector; ++j) {
      T total = T(0);
      for (int k = 0; k < kPyramidWarps; ++k) {
        total += parts[k][lane * kVector + j];
      }
      pieces.sums[by_block.outer * p.channels + channel + j] = total;
    }
  }
}

// A thread owns an average: the sum of its cell's pieces by the cell's pixels.
template <typename scalar_t>
__global__ void __launch_bounds__(kBlockThreads)
    pyramid_average_kernel(PyramidParams p, Pieces<decltype(widen(scalar_t{}))> pieces) {
  using T = decltype(widen(scalar_t{}));
  const int64_t index = thread_index<int64_t>();
  if (index >= p.planes() * p.cells) {
    return;
  }
  const int64_t width = p.channels_last ? p.channels : 1;
  const Split<int64_t> by_channel(index, width);
  const Split<int64_t> by_cell(by_channel.outer, p.cells);
  const PyramidCell cell(p, pieces.down, pieces.across, by_cell.inner);
  const T* sums = pieces.sums + by_cell.outer * pieces.count() * width + by_channel.inner;
  T total = T(0);
  for (int64_t band = cell.top; band < cell.bottom; ++band) {
    for (int64_t segment = cell.left; segment < cell.right; ++segment) {
      total += sums[(band * pieces.across.count + segment) * width];
    }
  }
  static_cast<scalar_t*>(p.to)[index] = Narrow<scalar_t>::from(total / static_cast<T>(cell.area));
}

// A thread owns a piece of a plane or of a channel: the sum of its cells' gradients, each by the
// cell's pixels.
template <typename scalar_t>
__global__ void __launch_bounds__(kBlockThreads)
    pyramid_piece_grad_kernel(PyramidParams p, Pieces<decltype(widen(scalar_t{}))> pieces) {
  using T = decltype(widen(scalar_t{}));
  const int64_t index = thread_index<int64_t>();
  if (index >= p.planes() * pieces.count()) {
    return;
  }
  const int64_t width = p.channels_last ? p.channels : 1;
  const Split<int64_t> by_channel(index, width);
  const Split<int64_t> by_piece(by_channel.outer, pieces.count());
  const Split<int64_t> by_segment(by_piece.inner, pieces.across.count);
  const int64_t y = pieces.down.edges[by_segment.outer];
  const int64_t x = pieces.across.edges[by_segment.inner];
  const scalar_t* grads =
      static_cast<const scalar_t*>(p.from) + by_piece.outer * p.cells * width + by_channel.inner;
  T total = T(0);
  int64_t base = 0;
  for (int g = 0; g < p.grids; ++g) {
    const int64_t bins = p.bins[g];
    // The cells that hold the piece, from the last that begins before it on.
    const int64_t last_j = ((x + 1) * bins + p.width - 1) / p.width - 1;
    for (int64_t i = ((y + 1) * bins + p.height - 1) / p.height - 1; i >= 0; --i) {
      const CellRange rows(i, bins, p.height);
      if (rows.end <= y) {
        break;
      }
      for (int64_t j = last_j; j >= 0; --j) {
        const CellRange columns(j, bins, p.width);
        if (columns.end <= x) {
          break;
        }
        const int64_t area = (rows.end - rows.begin) * (columns.end - columns.begin);
        total += widen(grads[(base + i * bins + j) * width]) / static_cast<T>(area);
      }
    }
    base += bins * bins;
  }
  pieces.sums[index] = total;
}

// A thread owns a column, or kVector channels of one, of a band of rows: all get their piece's
// number.
template <typename scalar_t, int kVector>
__global__ void __launch_bounds__(kBlockThreads)
    pyramid_fill_kernel(PyramidParams p, Pieces<decltype(widen(scalar_t{}))> pieces,
                        int64_t threads) {
  const int64_t index = thread_index<int64_t>();
  if (index >= threads) {
    return;
  }
  const int64_t width = p.channels_last ? p.channels : 1;
  const Split<int64_t> by_channel(index, width / kVector);
  const Split<int64_t> by_column(by_channel.outer, p.width);
  const Split<int64_t> by_band(by_column.outer, pieces.down.count);
  const int64_t channel = by_channel.inner * kVector, x = by_column.inner, band = by_band.inner;
  const int64_t piece = by_column.outer * pieces.across.count + pieces.across.at(x);
  Vec<scalar_t, kVector> value;
#pragma unroll
  for (int j = 0; j < kVector; ++j) {
    value.lane[j] = Narrow<scalar_t>::from(pieces.sums[piece * width + channel + j]);
  }
  scalar_t* to = static_cast<scalar_t*>(p.to) +
                 ((by_band.outer * p.height + pieces.down.edges[band]) * p.width + x) * width +
                 channel;
  for (int64_t y = 0; y < pieces.down.length(band); ++y) {
    store_vec(to + y * p.width * width, value);
  }
}

}  // namespace
}  // namespace segkern
