// The local filter's kernels; the sums are explained in local_filter.h.
#pragma once

#include "../common/device.cuh"
#include "local_filter.h"

namespace segkern {
namespace {

constexpr int kFilterWarps = kBlockThreads / 32;

// Output rows of a block. The kernel_h - 1 rows above them are read once more.
constexpr int64_t kFilterBandRows = 64;

// How a plane is cut: a block's 256 columns hold the windows of 256 - kernel_w + 1 outputs.
struct FilterGrid {
  int64_t tile, tiles, bands;
  SEGKERN_HOST_DEVICE explicit FilterGrid(const LocalFilterParams& p)
      : tile(kBlockThreads - p.kernel_w + 1),
        tiles((p.width + tile - 1) / tile),
        bands((p.height + kFilterBandRows - 1) / kFilterBandRows) {}
};

// Sums of a warp, in each lane: those of the lanes up to it.
template <int K>
__device__ __forceinline__ void scan_warp(double (&sum)[K]) {
  const int lane = static_cast<int>(threadIdx.x % 32);
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const double other = __shfl_up_sync(kFullWarp, sum[k], offset);
      if (lane >= offset) {
        sum[k] += other;
      }
    }
  }
}

// A thread owns a column of the tile and carries the sums of its window's rows downwards, one row
// entering and one leaving a step; a block owns a tile of kFilterBandRows rows of one plane. At
// each row a scan over the columns makes the box sums differences of two prefixes. An element is
// read twice (the second time from a cache), an image as often for each label; written once. Bound
// by the scan: about 80 shuffles a column and row, whatever the window.
template <typename scalar_t, int C>
__global__ void __launch_bounds__(kBlockThreads, 3) local_filter_kernel(LocalFilterParams p) {
  using wide_t = decltype(widen(scalar_t{}));
  constexpr int kSums = 5 + C;
  __shared__ double prefix[kSums][kBlockThreads];
  __shared__ double totals[kSums][kFilterWarps];
  const FilterGrid grid(p);
  const Split<int64_t> across(static_cast<int64_t>(blockIdx.x), grid.tiles);
  const Split<int64_t> down(across.outer, grid.bands);
  const int64_t plane = down.outer;
  const int64_t top = down.inner * kFilterBandRows;
  const int64_t bottom = top + kFilterBandRows < p.height ? top + kFilterBandRows : p.height;
  const int64_t left = across.inner * grid.tile;
  const int column = static_cast<int>(threadIdx.x), warp = column / 32;
  const int64_t source_x = left + p.first_x + column;  // whose column this thread carries
  const int64_t out_x = left + column;                 // whose output it writes
  const bool has_source = source_x >= 0 && source_x < p.width;
  const bool has_output = column < grid.tile && out_x < p.width;
  // Positions count from the tile's first column and the band's first row.
  const double x = column, own_x = static_cast<double>(column - p.first_x);
  const int64_t start = plane * p.plane();
  const scalar_t* values = static_cast<const scalar_t*>(p.values) + start;
  const wide_t* image =
      static_cast<const wide_t*>(p.image) + plane / p.labels * p.colours * p.plane();

  double sum = 0, sum_y = 0, sum_yy = 0, sum_square = 0, sum_colour[C] = {};
  const auto add = [&](int64_t row, double sign) {
    if (!has_source || row < 0 || row >= p.height) {
      return;
    }
    const int64_t at = row * p.width + source_x;
    double v = sign * static_cast<double>(widen(values[at]));
    if (p.factor) {
      v *= static_cast<double>(widen(static_cast<const scalar_t*>(p.factor)[start + at]));
    }
    const double y = static_cast<double>(row - top);
    double square = 0;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const double colour = image[c * p.plane() + at];
      square += colour * colour;
      sum_colour[c] += v * colour;
    }
    sum += v;
    sum_y += v * y;
    sum_yy += v * (y * y);
    sum_square += v * square;
  };

  double paired_colour = 0, paired_position = 0;
  const int64_t above = top + p.first_y > 0 ? top + p.first_y : 0;
  for (int64_t row = above; row < p.height && row < top + p.first_y + p.kernel_h - 1; ++row) {
    add(row, 1.0);
  }
  for (int64_t row = top; row < bottom; ++row) {
    add(row + p.first_y + p.kernel_h - 1, 1.0);
    double scan[kSums] = {sum, x * sum, sum_y, sum_square, sum_yy + x * x * sum};
#pragma unroll
    for (int c = 0; c < C; ++c) {
      scan[5 + c] = sum_colour[c];
    }
    scan_warp(scan);
    if (column % 32 == 31) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        totals[k][warp] = scan[k];
      }
    }
    __syncthreads();
#pragma unroll 1
    for (int other = 0; other < warp; ++other) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        scan[k] += totals[k][other];
      }
    }
#pragma unroll
    for (int k = 0; k < kSums; ++k) {
      prefix[k][column] = scan[k];
    }
    __syncthreads();
    if (has_output) {
      const int end = column + static_cast<int>(p.kernel_w) - 1;
      double box[kSums];
#pragma unroll
      for (int k = 0; k < kSums; ++k) {
        box[k] = prefix[k][end] - (column > 0 ? prefix[k][column - 1] : 0.0);
      }
      const int64_t at = row * p.width + out_x;
      const double y = static_cast<double>(row - top);
      double square = 0, mixed = 0;
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const double colour = image[c * p.plane() + at];
        square += colour * colour;
        mixed += colour * box[5 + c];
      }
      const double colour_sum = square * box[0] - 2 * mixed + box[3];
      const double position_sum =
          (own_x * own_x + y * y) * box[0] - 2 * (own_x * box[1] + y * box[2]) + box[4];
      const int64_t element = start + at;
      double result = p.weights[0] * colour_sum + p.weights[1] * position_sum;
      if (p.outer) {
        result *= static_cast<double>(widen(static_cast<const scalar_t*>(p.outer)[element]));
      }
      if (p.added) {
        result += static_cast<const wide_t*>(p.added)[element];
      }
      if (p.partial) {
        const double v = widen(static_cast<const scalar_t*>(p.paired)[element]);
        paired_colour += v * colour_sum;
        paired_position += v * position_sum;
      }
      if (p.wide) {
        static_cast<wide_t*>(p.out)[element] = static_cast<wide_t>(result);
      } else {
        static_cast<scalar_t*>(p.out)[element] =
            Narrow<scalar_t>::from(static_cast<wide_t>(result));
      }
    }
    add(row + p.first_y, -1.0);
  }

  if (p.partial) {
    double pair[2] = {paired_colour, paired_position};
    scan_warp(pair);
    __syncthreads();  // the last row's totals were read
    if (column % 32 == 31) {
      totals[0][warp] = pair[0];
      totals[1][warp] = pair[1];
    }
    __syncthreads();
    if (column < 2) {
      double total = 0;
      for (int w = 0; w < kFilterWarps; ++w) {
        total += totals[column][w];
      }
      p.partial[2 * static_cast<int64_t>(blockIdx.x) + column] = total;
    }
  }
}

// The sums of two columns, by one block: thread t adds rows t, t + 256, ...; then as above.
__global__ void __launch_bounds__(kBlockThreads)
    local_filter_sums_kernel(const double* partial, int64_t parts, double* sums) {
  __shared__ double totals[2][kFilterWarps];
  const int thread = static_cast<int>(threadIdx.x);
  double pair[2] = {0, 0};
  for (int64_t i = thread; i < parts; i += kBlockThreads) {
    pair[0] += partial[2 * i];
    pair[1] += partial[2 * i + 1];
  }
  scan_warp(pair);
  if (thread % 32 == 31) {
    totals[0][thread / 32] = pair[0];
    totals[1][thread / 32] = pair[1];
  }
  __syncthreads();
  if (thread < 2) {
    double total = 0;
    for (int w = 0; w < kFilterWarps; ++w) {
      total += totals[thread][w];
    }
    sums[thread] = total;
  }
}

}  // namespace
}  // namespace segkern
