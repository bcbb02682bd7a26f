// The variables of a Gaussian CRF and the edges between them. Includes neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "../common/host_device.h"

namespace segkern {

constexpr int kMaxCrfLevels = 4;

// What an edge holds and how labels share it; the numbers are those of segkern/ops/gaussian_crf.py.
enum class Pairwise : int32_t { kPotts, kGeneral, kReduced };

// How a solve ended; the numbers are those of segkern/ops/gaussian_crf.py.
enum class SolveState : int32_t {
  kRunning,
  kConverged,
  kIndefinite,   // a direction p with p.Mp <= 0
  kUnconverged,  // the iterations ran out
  kNotFinite,    // NaN or infinity in the right-hand side or the edges
};

// A grid of cells, each linked to its four neighbours and, but on the coarsest level, to the cell
// of the next level that covers it. Edges of one item: `width * width` planes, width as in
// CrfGraph; plane a * width + b holds the entries between variable a of the first cell and b of the
// second.
struct CrfLevel {
  int32_t height, width;
  int32_t first;       // number of the first cell among the nodes of all levels
  const void* right;   // height x (width - 1): a cell and its right neighbour
  const void* down;    // (height - 1) x width: a cell and the one below
  const void* across;  // height x width: a cell and its parent; null on the coarsest level

  SEGKERN_HOST_DEVICE int64_t cells() const { return static_cast<int64_t>(height) * width; }
  SEGKERN_HOST_DEVICE int64_t rights() const {
    return width > 0 ? static_cast<int64_t>(height) * (width - 1) : 0;
  }
  SEGKERN_HOST_DEVICE int64_t downs() const {
    return height > 0 ? static_cast<int64_t>(height - 1) * width : 0;
  }
};

// Levels, finest first. The nodes of all levels make one vector; `width` of them share each cell.
struct CrfGraph {
  int32_t levels, nodes;
  int32_t width;  // variables of a cell that a system couples: labels in the general model, else 1
  CrfLevel level[kMaxCrfLevels];

  SEGKERN_HOST_DEVICE int64_t unknowns() const { return static_cast<int64_t>(width) * nodes; }
};

// Most rows and columns of a map of several levels, for the products below.
constexpr int32_t kMaxCoveredSide = 32768;

// The coarse row (or column) that covers a fine one, as nearest-neighbour resampling has it.
SEGKERN_HOST_DEVICE inline int32_t covering(int32_t fine_at, int32_t fine, int32_t coarse) {
  return fine_at * coarse / fine;
}

// The first fine row that a coarse one covers; the last is the one before that of the next.
SEGKERN_HOST_DEVICE inline int32_t first_covered(int32_t coarse_at, int32_t fine, int32_t coarse) {
  return (coarse_at * fine + coarse - 1) / coarse;
}

}  // namespace segkern
