// The edges of all cells of all grids cut a map into pieces: of all pixels of a piece, each lies in
// the same cells.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../common/host_device.h"
#include "pyramid_pool.h"

namespace segkern {

// An axis cut at the edges of all cells: segment i is pixels edges[i] to edges[i + 1] - 1. Two of
// them fit into the 4 KB of a kernel's arguments.
struct Segments {
  int64_t count;
  int32_t edges[2 * kMaxAllBins];

  Segments() = default;
  Segments(const PyramidParams& p, int64_t pixels) {
    int64_t n = 0;
    for (int g = 0; g < p.grids; ++g) {
      for (int64_t i = 0; i < p.bins[g]; ++i) {
        const CellRange range(i, p.bins[g], pixels);
        edges[n++] = static_cast<int32_t>(range.begin);
        edges[n++] = static_cast<int32_t>(range.end);
      }
    }
    std::sort(edges, edges + n);
    count = std::unique(edges, edges + n) - edges - 1;
  }

  SEGKERN_HOST_DEVICE int64_t length(int64_t i) const { return edges[i + 1] - edges[i]; }
  // The segment that a pixel is in; `count` for the pixel after the last.
  SEGKERN_HOST_DEVICE int64_t at(int64_t pixel) const {
    int64_t low = 0, high = count;  // edges[low] <= pixel, and pixel < edges[high + 1] if there is
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (edges[middle] <= pixel) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
};

// The segments of a cell, and its pixels.
struct PyramidCell {
  int64_t top, bottom, left, right;  // segments [top, bottom) x [left, right)
  int64_t area;

  SEGKERN_HOST_DEVICE PyramidCell(const PyramidParams& p, const Segments& down,
                                  const Segments& across, int64_t cell) {
    int g = 0;
    while (cell >= p.bins[g] * p.bins[g]) {
      cell -= p.bins[g] * p.bins[g];
      ++g;
    }
    const CellRange y(cell / p.bins[g], p.bins[g], p.height);
    const CellRange x(cell % p.bins[g], p.bins[g], p.width);
    top = down.at(y.begin);
    bottom = down.at(y.end);
    left = across.at(x.begin);
    right = across.at(x.end);
    area = (y.end - y.begin) * (x.end - x.begin);
  }
};

}  // namespace segkern
