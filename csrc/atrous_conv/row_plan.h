// How the CPU kernels walk over an image: which taps meet which blocks of a row, where input rows
// are kept, and in which order output rows are made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "conv_window.h"
#include "depthwise_rows.h"

namespace segkern {

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
inline int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

// A run of blocks of an output row that the same taps [first, last) meet. Taps that lie wholly in
// the padding of a block are left out, which is what makes the cost independent of the rate.
struct Segment {
  int64_t x0, blocks;
  int first, last;
};

// Input rows as the row kernels want them: float or double, zeros between elements where the
// window says so, split into `stride_w` phases, and room for a block of zeros on both sides. A tap
// reads output column x of its row at row[x + offset[tap]], inside the row or its margins.
struct RowForm {
  int64_t width;         // of the input with zeros between
  int64_t phase_stride;  // elements from one phase to the next
  int64_t row_stride;    // elements of one row
  std::vector<int64_t> offset;
  std::vector<Segment> segments;

  explicit RowForm(const ConvWindow& w) {
    width = (w.in_w - 1) * w.up_w + 1;
    phase_stride =
        (ceil_div(width, w.stride_w) + 2 * kRowBlock + kRowBlock - 1) / kRowBlock * kRowBlock;
    row_stride = phase_stride * w.stride_w;
    for (int64_t k = 0; k < w.kernel_w; ++k) {
      const int64_t origin = k * w.dilation_w - w.pad_w;
      const int64_t shift = floor_div(origin, w.stride_w);
      offset.push_back((origin - shift * w.stride_w) * phase_stride + shift + kRowBlock);
    }
    for (int64_t x = 0; x < w.out_w; x += kRowBlock) {
      int first = 0;
      while (first < w.kernel_w &&
             (x + kRowBlock - 1) * w.stride_w + first * w.dilation_w - w.pad_w < 0) {
        ++first;
      }
      int last = static_cast<int>(w.kernel_w);
      while (last > first && x * w.stride_w + (last - 1) * w.dilation_w - w.pad_w >= width) {
        --last;
      }
      if (!segments.empty() && segments.back().first == first && segments.back().last == last) {
        ++segments.back().blocks;
      } else {
        segments.push_back({x, 1, first, last});
      }
    }
  }

  // Blocks of an output row.
  int64_t blocks() const { return segments.back().x0 / kRowBlock + segments.back().blocks; }

  // Places one row of elements, already of type T, into a zeroed row.
  template <typename T>
  void place(const ConvWindow& w, const T* from, T* row) const {
    if (w.stride_w == 1 && w.up_w == 1) {
      std::copy_n(from, w.in_w, row + kRowBlock);
      return;
    }
    for (int64_t i = 0; i < w.in_w; ++i) {
      const int64_t x = i * w.up_w;
      row[x % w.stride_w * phase_stride + x / w.stride_w + kRowBlock] = from[i];
    }
  }
};

// A run of output pixels of one row that read the same taps along the width: tap k of pixel
// ow + j reads input pixel x + j * stride_w.
struct PixelRun {
  int64_t ow, count;
  std::vector<std::pair<int64_t, int64_t>> taps;  // (k, x)
};

inline std::vector<PixelRun> pixel_runs(const ConvWindow& w) {
  std::vector<PixelRun> runs;
  for (int64_t ow = 0; ow < w.out_w; ++ow) {
    PixelRun run{ow, 1, {}};
    for (int64_t k = 0; k < w.kernel_w; ++k) {
      const int64_t x = ow * w.stride_w - w.pad_w + k * w.dilation_w;
      if (x >= 0 && x % w.up_w == 0 && x / w.up_w < w.in_w) {
        run.taps.emplace_back(k, x / w.up_w);
      }
    }
    const auto follows = [&](const PixelRun& before) {
      if (w.up_w != 1 || before.taps.size() != run.taps.size()) {
        return false;
      }
      for (size_t i = 0; i < run.taps.size(); ++i) {
        if (before.taps[i].first != run.taps[i].first) {
          return false;
        }
      }
      return true;
    };
    if (!runs.empty() && follows(runs.back())) {
      ++runs.back().count;
    } else {
      runs.push_back(std::move(run));
    }
  }
  return runs;
}

// Output rows in an order in which consecutive ones share input rows: rows of one residue modulo
// the dilation follow each other, so that a window of kernel_h input rows suffices.
inline std::vector<int64_t> row_order(const ConvWindow& w) {
  const int64_t phases =
      w.stride_h == 1 && w.up_h == 1 ? std::min(w.dilation_h, std::max<int64_t>(w.out_h, 1)) : 1;
  std::vector<int64_t> order;
  order.reserve(w.out_h);
  for (int64_t phase = 0; phase < phases; ++phase) {
    for (int64_t oh = phase; oh < w.out_h; oh += phases) {
      order.push_back(oh);
    }
  }
  return order;
}

// Output rows oh to oh + count - 1, all of which read the same taps along the height: tap k of
// row oh + j reads input row h + j * stride_h.
struct RowRun {
  int64_t oh, count;
  std::vector<std::pair<int64_t, int64_t>> taps;  // (k, h)
};

inline RowRun one_row(const ConvWindow& w, int64_t oh) {
  RowRun run{oh, 1, {}};
  for (int64_t k = 0; k < w.kernel_h; ++k) {
    const int64_t h = oh * w.stride_h - w.pad_h + k * w.dilation_h;
    if (h >= 0 && h % w.up_h == 0 && h / w.up_h < w.in_h) {
      run.taps.emplace_back(k, h / w.up_h);
    }
  }
  return run;
}

// The output rows in the given order, consecutive ones in runs of at most `most` rows.
inline std::vector<RowRun> row_runs(const ConvWindow& w, const std::vector<int64_t>& order,
                                    int64_t most) {
  std::vector<RowRun> runs;
  for (const int64_t oh : order) {
    RowRun run = one_row(w, oh);
    const auto follows = [&](const RowRun& before) {
      if (w.up_h != 1 || before.count >= most || before.oh + before.count != oh ||
          before.taps.size() != run.taps.size()) {
        return false;
      }
      for (size_t i = 0; i < run.taps.size(); ++i) {
        if (before.taps[i].first != run.taps[i].first) {
          return false;
        }
      }
      return true;
    };
    if (!runs.empty() && follows(runs.back())) {
      ++runs.back().count;
    } else {
      runs.push_back(std::move(run));
    }
  }
  return runs;
}

inline std::vector<int64_t> rows_in_turn(const ConvWindow& w) {
  std::vector<int64_t> order(w.out_h);
  std::iota(order.begin(), order.end(), int64_t{0});
  return order;
}

// A slot for the input row of tap k among kernel_h slots, such that rows that are wanted together
// have different ones and rows that come again keep theirs.
inline int64_t ring_slot(const ConvWindow& w, int64_t oh, int64_t k) {
  if (w.stride_h != 1 || w.up_h != 1) {
    return k;
  }
  return (oh / w.dilation_h + k) % w.kernel_h;
}

}  // namespace segkern
