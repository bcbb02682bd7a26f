// The box kernels; what they compute is in roi.h.
#pragma once

#include "../common/device.cuh"
#include "roi_axis.h"

namespace segkern {
namespace {

constexpr int kRoiWarps = kBlockThreads / 32;

// Reading: a block owns up to 16 x 16 bins of a box, and kReadChannels channels.
constexpr int kReadBins = 16;
constexpr int kReadTaps = 32;  // pixels of a bin and axis that the block's table holds
constexpr int kReadChannels = 64;

// Writing: a block owns a tile of 8 x 8 pixels and kWriteChannels channels; 32 bins an axis at a
// time.
constexpr int kTileSide = 8;
constexpr int kWriteChannels = 32;
constexpr int kWriteBins = 32;

// The non-zero weights of a block's bins along one axis, in one round of kReadTaps pixels of each
// bin's window.
template <typename T>
struct ReadTable {
  int count[kReadBins];
  int pixel[kReadBins][kReadTaps];
  T weight[kReadBins][kReadTaps];
};

// Rounds that hold the windows of all bins.
template <typename T>
__device__ int read_rounds(const RoiAxis<T>& axis) {
  const T reach = (axis.weights == RoiWeights::kTent ? T(2) : T(1)) * std::fabs(axis.bin);
  const int pixels = reach < static_cast<T>(axis.size) ? static_cast<int>(reach) + 5 : axis.size;
  return axis.grid > 0 ? (pixels + kReadTaps - 1) / kReadTaps : 1;
}

// One warp's share: its lanes are pixels of the window of a bin.
template <typename T>
__device__ void fill_table(const RoiAxis<T>& axis, int first, int bins, int round, int warp,
                           int warps, ReadTable<T>& table) {
  static_assert(kReadTaps == 32, "a lane makes a weight");
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int bin = warp; bin < bins; bin += warps) {
    int low, high;
    axis.window(first + bin, first + bin, &low, &high);
    const int pixel = low + round * kReadTaps + lane;
    const T weight = pixel <= high ? axis.weight(first + bin, pixel) : T(0);
    const unsigned found = __ballot_sync(kFullWarp, weight != T(0));
    if (weight != T(0)) {
      const int at = __popc(found & ((1u << lane) - 1u));
      table.pixel[bin][at] = pixel;
      table.weight[bin][at] = weight;
    }
    if (lane == 0) {
      table.count[bin] = __popc(found);
    }
  }
}

// A thread owns one bin and channel at a time; threads next to each other own neighbours in memory.
// A block makes its bins' weights once, in shared memory, for all its channels. Read: about the
// pixels of a bin plus one row and column, from caches but for the first time; written once.
// Bound by the loads. kChosen: only the elements that are the box's.
template <typename scalar_t, bool kLast, bool kChosen>
__global__ void __launch_bounds__(kBlockThreads, 2) roi_read_kernel(RoiParams p) {
  using T = decltype(widen(scalar_t{}));
  __shared__ ReadTable<T> down, across;
  const int64_t tiles_h = (p.bins_h + kReadBins - 1) / kReadBins;
  const int64_t tiles_w = (p.bins_w + kReadBins - 1) / kReadBins;
  const int64_t blocks = (p.channels + kReadChannels - 1) / kReadChannels;
  const Split<int64_t> by_block(static_cast<int64_t>(blockIdx.x), blocks);
  const Split<int64_t> by_column(by_block.outer, tiles_w);
  const Split<int64_t> by_row(by_column.outer, tiles_h);
  const int64_t roi = by_row.outer;
  const int64_t first_p = by_row.inner * kReadBins, first_q = by_column.inner * kReadBins;
  const int64_t first_c = by_block.inner * kReadChannels;
  const int rows =
      static_cast<int>(p.bins_h - first_p < kReadBins ? p.bins_h - first_p : kReadBins);
  const int columns =
      static_cast<int>(p.bins_w - first_q < kReadBins ? p.bins_w - first_q : kReadBins);
  const int channels =
      static_cast<int>(p.channels - first_c < kReadChannels ? p.channels - first_c : kReadChannels);

  __shared__ int rounds[2];
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32;
  const RoiBox<T> box(p, roi);
  if (thread < 2) {
    rounds[thread] = read_rounds(box.axis(p, thread == 0));
  }
  __syncthreads();
  const int rounds_x = rounds[1], all_rounds = rounds[0] * rounds_x;

  const RoiLevel& level = p.level[box.level];
  const int64_t plane = level.height * level.width;
  const int64_t pixel_stride = kLast ? p.channels : 1, channel_stride = kLast ? 1 : plane;
  const int64_t row_stride = level.width * pixel_stride;
  const int64_t start =
      (box.image < 0 ? 0 : box.image) * p.channels * plane + first_c * channel_stride;
  const scalar_t* map = static_cast<const scalar_t*>(level.data) + start;
  const int32_t* owners = kChosen ? p.chosen + start : nullptr;
  scalar_t* bins = static_cast<scalar_t*>(p.bins) + roi * p.channels * p.bin_count();
  const int items = rows * columns * channels;
  for (int base = 0; base < items; base += kBlockThreads) {
    const int item = base + thread;
    int c, i, j;
    if (kLast) {
      c = item % channels;
      j = item / channels % columns;
      i = item / channels / columns;
    } else {
      j = item % columns;
      i = item / columns % rows;
      c = item / columns / rows;
    }
    const scalar_t* from = map + c * channel_stride;
    T sum = T(0);
    for (int round = 0; round < all_rounds; ++round) {
      // One round, as is usual, serves all items.
      if (base == 0 || all_rounds > 1) {
        const bool of_rows = warp < kRoiWarps / 2;
        __syncthreads();  // the last tables were read
        fill_table(box.axis(p, of_rows), static_cast<int>(of_rows ? first_p : first_q),
                   of_rows ? rows : columns, of_rows ? round / rounds_x : round % rounds_x,
                   warp % (kRoiWarps / 2), kRoiWarps / 2, of_rows ? down : across);
        __syncthreads();
      }
      if (item < items && box.image >= 0) {
        for (int a = 0; a < down.count[i]; ++a) {
          const int64_t at = down.pixel[i][a] * row_stride;
          const scalar_t* row = from + at;
          const int32_t* row_owners = kChosen ? owners + c * channel_stride + at : nullptr;
          T part = T(0);
          for (int b = 0; b < across.count[j]; ++b) {
            const int64_t column = across.pixel[j][b] * pixel_stride;
            if (!kChosen || row_owners[column] == roi) {
              part += across.weight[j][b] * widen(row[column]);
            }
          }
          sum += down.weight[i][a] * part;
        }
      }
    }
    if (item < items) {
      const int64_t bin = (first_p + i) * p.bins_w + first_q + j;
      const int64_t at =
          kLast ? bin * p.channels + first_c + c : (first_c + c) * p.bin_count() + bin;
      bins[at] = Narrow<scalar_t>::from(sum);
    }
  }
}

// Whether a box may write to pixels of a tile.
template <typename T>
__device__ bool touches(const RoiParams& p, const RoiBox<T>& box, int64_t level, int64_t image,
                        int64_t y, int64_t x) {
  bool hit = box.image == image && box.level == level;
#pragma unroll 1
  for (int k = 0; k < 2 && hit; ++k) {
    const RoiAxis<T> axis = box.axis(p, k == 0);
    const int64_t first = k == 0 ? y : x;
    int low, high;
    axis.window(0, axis.bins - 1, &low, &high);
    hit = low <= high && low < first + kTileSide && high >= first;
  }
  return hit;
}

// A thread owns a pixel, channels last 8 of them in a row: one channel of those, or 8 channels of
// that. A block finds the boxes over its tile, 256 at a time and in their order, makes each one's
// weights at its 8 rows and columns and adds what the box writes: no atomics, one order of sums.
// Boxes are read by every tile (20 bytes each), bins by the tiles they touch; the map is written
// once. Bound by the loads of bins. kMax: sums are of one box, and the largest stays.
template <typename scalar_t, bool kLast, bool kMax>
__global__ void __launch_bounds__(kBlockThreads, kMax ? 1 : 0)
    roi_write_kernel(RoiParams p, int64_t level) {
  using T = decltype(widen(scalar_t{}));
  // Of rows, of columns: weights of the bins at a pixel, and which of them are not 0.
  __shared__ T weights[2][kTileSide][kWriteBins];
  __shared__ unsigned bins[2][kTileSide];
  __shared__ int list[kBlockThreads], found[kRoiWarps];
  static_assert(kTileSide == kRoiWarps && kWriteBins == 32, "a warp makes a row of each table");
  const int64_t height = p.level[level].height, width = p.level[level].width;
  const int64_t tiles_h = (height + kTileSide - 1) / kTileSide;
  const int64_t tiles_w = (width + kTileSide - 1) / kTileSide;
  const int64_t blocks = (p.channels + kWriteChannels - 1) / kWriteChannels;
  const Split<int64_t> by_block(static_cast<int64_t>(blockIdx.x), blocks);
  const Split<int64_t> by_column(by_block.outer, tiles_w);
  const Split<int64_t> by_row(by_column.outer, tiles_h);
  const int64_t image = by_row.outer;
  const int64_t top = by_row.inner * kTileSide, left = by_column.inner * kTileSide;
  const int64_t first_c = by_block.inner * kWriteChannels;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  // The thread's share: row i, and with channels last all columns of channel c, else column j of
  // 8 channels from c on.
  const int i = kLast ? warp : thread % 64 / 8, j = thread % 8;
  const int64_t c = first_c + (kLast ? lane : thread / 64 * 8);
  const int64_t bin_stride = kLast ? p.channels : 1, channel_stride = kLast ? 1 : p.bin_count();
  T sums[8] = {};
  constexpr int kKept = kMax ? 8 : 1;
  T largest[kKept] = {};
  int32_t chosen[kKept];
#pragma unroll
  for (int k = 0; k < kKept; ++k) {
    chosen[k] = -1;
  }

  for (int64_t base = 0; base < p.rois; base += kBlockThreads) {
    const int64_t candidate = base + thread;
    const bool hit = candidate < p.rois &&
                     touches(p, RoiBox<T>(p, candidate), level, image, top, left);
    const unsigned hits = __ballot_sync(kFullWarp, hit);
    if (lane == 0) {
      found[warp] = __popc(hits);
    }
    __syncthreads();
    int at = __popc(hits & ((1u << lane) - 1u)), total = 0;
    for (int w = 0; w < kRoiWarps; ++w) {
      at += w < warp ? found[w] : 0;
      total += found[w];
    }
    if (hit) {
      list[at] = static_cast<int>(candidate - base);
    }
    __syncthreads();
    for (int n = 0; n < total; ++n) {
      const int64_t roi = base + list[n];
      const scalar_t* from =
          static_cast<const scalar_t*>(p.bins) + roi * p.channels * p.bin_count();
      // kMax: whether the box has a weight at the row, and at which of the columns.
      bool at_row = false;
      unsigned at_columns = 0;
      for (int64_t p0 = 0; p0 < p.bins_h; p0 += kWriteBins) {
        for (int64_t q0 = 0; q0 < p.bins_w; q0 += kWriteBins) {
          const RoiBox<T> box(p, roi);
#pragma unroll 1
          for (int k = 0; k < 2; ++k) {
            const RoiAxis<T> axis = box.axis(p, k == 0);
            const int pixel = static_cast<int>(k == 0 ? top : left) + warp;
            const int bin = static_cast<int>(k == 0 ? p0 : q0) + lane;
            const T weight =
                pixel < axis.size && bin < axis.bins ? axis.weight(bin, pixel) : T(0);
            weights[k][warp][lane] = weight;
            const unsigned some = __ballot_sync(kFullWarp, weight != T(0));
            if (lane == 0) {
              bins[k][warp] = some;
            }
          }
          __syncthreads();
          unsigned across = kLast ? 0u : bins[1][j];
          for (int k = 0; kLast && k < kTileSide; ++k) {
            across |= bins[1][k];
            at_columns |= kMax && bins[1][k] != 0 ? 1u << k : 0u;
          }
          if (kMax) {
            at_row = at_row || bins[0][i] != 0;
            at_columns |= !kLast && across != 0 ? 0xffu : 0u;
          }
          if (c < p.channels) {
            for (unsigned rows = bins[0][i]; rows != 0; rows &= rows - 1) {
              const int a = __ffs(static_cast<int>(rows)) - 1;
              for (unsigned columns = across; columns != 0; columns &= columns - 1) {
                const int b = __ffs(static_cast<int>(columns)) - 1;
                const scalar_t* bin = from + c * channel_stride +
                                      ((p0 + a) * p.bins_w + q0 + b) * bin_stride;
                if (kLast) {
                  const T value = weights[0][i][a] * widen(*bin);
#pragma unroll
                  for (int k = 0; k < 8; ++k) {
                    sums[k] += weights[1][k][b] * value;
                  }
                } else {
                  const T weight = weights[0][i][a] * weights[1][j][b];
#pragma unroll
                  for (int k = 0; k < 8; ++k) {
                    if (c + k < p.channels) {
                      sums[k] += weight * widen(bin[k * channel_stride]);
                    }
                  }
                }
              }
            }
          }
          __syncthreads();  // the tables were read
        }
      }
      if constexpr (kMax) {
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          const bool covered = at_row && (at_columns >> k & 1u) != 0;
          if (covered && replaces_largest(sums[k], largest[k], chosen[k])) {
            largest[k] = sums[k];
            chosen[k] = static_cast<int32_t>(roi);
          }
          sums[k] = T(0);
        }
      }
    }
    __syncthreads();  // the list was read
  }

  const int64_t plane = height * width, y = top + i;
  scalar_t* map = static_cast<scalar_t*>(p.level[level].data);
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const int64_t x = left + (kLast ? k : j), channel = c + (kLast ? 0 : k);
    if (y < height && x < width && channel < p.channels) {
      const int64_t pixel = y * width + x;
      T sum = kMax ? largest[kMax ? k : 0] : sums[k];
      if (!kMax && p.coverage) {
        const int32_t count = p.coverage[image * plane + pixel];
        sum = count > 1 ? sum / static_cast<T>(count) : sum;
      }
      const int64_t at = kLast ? (image * plane + pixel) * p.channels + channel
                               : (image * p.channels + channel) * plane + pixel;
      map[at] = Narrow<scalar_t>::from(sum);
      if (kMax) {
        p.chosen[at] = chosen[kMax ? k : 0];
      }
    }
  }
}

// Whether any bin of both axes has a weight at a pixel.
template <typename T>
__device__ bool covers(const RoiParams& p, const RoiBox<T>& box, int64_t y, int64_t x) {
  bool covered = true;
#pragma unroll 1
  for (int k = 0; k < 2 && covered; ++k) {
    const RoiAxis<T> axis = box.axis(p, k == 0);
    const int pixel = static_cast<int>(k == 0 ? y : x);
    int low, high;
    axis.window(0, axis.bins - 1, &low, &high);
    covered = false;
    for (int bin = 0; low <= pixel && pixel <= high && bin < axis.bins && !covered; ++bin) {
      covered = axis.raw_weight(bin, pixel) > T(0);
    }
  }
  return covered;
}

// A thread owns a pixel of level 0 and counts the boxes that have a weight at it.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads, 2) roi_coverage_kernel(RoiParams p) {
  const int64_t at = thread_index<int64_t>(), width = p.level[0].width;
  if (at >= p.images * p.level[0].height * width) {
    return;
  }
  const Split<int64_t> by_row(at, width);
  const Split<int64_t> by_image(by_row.outer, p.level[0].height);
  int32_t count = 0;
  for (int64_t roi = 0; roi < p.rois; ++roi) {
    const RoiBox<T> box(p, roi);
    if (box.image == by_image.outer && covers(p, box, by_image.inner, by_row.inner)) {
      ++count;
    }
  }
  p.coverage[at] = count;
}

}  // namespace
}  // namespace segkern
