// The arguments of gaussian_crf and its backward, checked; common to both devices.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/check.h"
#include "../common/layout.h"
#include "gaussian_crf.h"

namespace segkern {

using TensorList = std::vector<Tensor>;

struct GaussianCall {
  Tensor unary;      // (N, L, nodes), dense
  TensorList edges;  // per level right, down and, but on the coarsest, across; dense
  CrfGraph graph;    // with the edges of the first item
  Pairwise pairwise;
  CrfPlan plan;
  CrfStop stop;
  int64_t batch, labels;
  double diagonal, eta;

  bool empty() const { return batch == 0 || labels == 0 || graph.nodes == 0; }
  // The set that an edge tensor holds.
  static int level_of(size_t edge) { return static_cast<int>(edge / 3); }
  static EdgeSet set_of(size_t edge) { return static_cast<EdgeSet>(edge % 3); }
  // What a pairwise value is multiplied by in the matrix, and its gradient by eta as well.
  double gradient_factor() const {
    return eta * (pairwise == Pairwise::kReduced ? 1.0 / diagonal : 1.0);
  }
};

inline GaussianCall check_gaussian(const char* op, const Tensor& unary, const TensorList& edges,
                                   int64_t pairwise, double diagonal, double tolerance,
                                   int64_t max_iterations, double eta) {
  SEGKERN_CHECK(pairwise >= 0 && pairwise <= 2, op, ": pairwise must be 0, 1 or 2, got ",
                pairwise);
  SEGKERN_CHECK(diagonal > 0 && diagonal < INFINITY, op,
                ": diagonal must be positive and finite, got ", diagonal);
  SEGKERN_CHECK(tolerance >= 0 && tolerance < 1, op, ": tolerance must be in [0, 1), got ",
                tolerance);
  SEGKERN_CHECK(max_iterations >= 0 && max_iterations < INT32_MAX, op,
                ": max_iterations must be from 0 to 2^31 - 2, got ", max_iterations);
  SEGKERN_CHECK(unary.dim() == 3 && (unary.scalar_type() == ScalarType::Float ||
                                     unary.scalar_type() == ScalarType::Double),
                op, ": unary must be float32 or float64 (N, L, nodes), got ",
                shape_string(sizes_of(unary)));
  const int64_t batch = unary.size(0), labels = unary.size(1);
  const auto model = static_cast<Pairwise>(pairwise);
  SEGKERN_CHECK(model != Pairwise::kReduced || labels != 1, op,
                ": unary must have at least 2 labels in the reduced model, got 1");
  SEGKERN_CHECK(edges.size() % 3 == 2 && edges.size() < 3 * kMaxCrfLevels, op,
                ": edges must be right and down of 1 to ", kMaxCrfLevels,
                " levels with across between them, got ", edges.size(), " tensors");
  GaussianCall call{as_layout(unary, false),
                    {},
                    {},
                    model,
                    CrfPlan(model, labels, diagonal),
                    {tolerance, max_iterations},
                    batch,
                    labels,
                    diagonal,
                    eta};
  const auto levels = static_cast<int32_t>((edges.size() + 1) / 3);
  const int64_t planes = model == Pairwise::kGeneral ? labels * labels : 1;
  call.graph.levels = levels;
  call.graph.width = call.plan.width;
  int64_t nodes = 0;
  for (int32_t i = 0; i < levels; ++i) {
    const Tensor& right = edges[3 * i];
    const Tensor& down = edges[3 * i + 1];
    SEGKERN_CHECK(right.dim() == 4 && down.dim() == 4, op,
                  ": edges must have 4 dimensions, got ", right.dim(), " and ", down.dim());
    const int64_t height = right.size(2), width = down.size(3);
    SEGKERN_CHECK(nodes + height * width < INT32_MAX, op,
                  ": unary must have fewer than 2^31 - 1 cells an item");
    SEGKERN_CHECK(levels == 1 || std::max(height, width) <= kMaxCoveredSide, op,
                  ": unary with several levels must have at most ", kMaxCoveredSide,
                  " rows and columns, got ", height, " x ", width);
    const auto check = [&](const Tensor& edge, const char* name, int64_t h, int64_t w) {
      const std::vector<int64_t> wanted = {batch, planes, h, w};
      SEGKERN_CHECK(sizes_of(edge) == wanted && edge.scalar_type() == unary.scalar_type() &&
                        edge.device() == unary.device(),
                    op, ": ", name, " of level ", i, " must be ", shape_string(wanted),
                    " of the dtype and on the device of unary, got ",
                    shape_string(sizes_of(edge)));
      call.edges.push_back(as_layout(edge, false));
    };
    check(right, "horizontal", height, width > 0 ? width - 1 : 0);
    check(down, "vertical", height > 0 ? height - 1 : 0, width);
    CrfLevel& level = call.graph.level[i];
    level = {static_cast<int32_t>(height), static_cast<int32_t>(width),
             static_cast<int32_t>(nodes), call.edges[3 * i].data_ptr(),
             call.edges[3 * i + 1].data_ptr(), nullptr};
    if (i + 1 < levels) {
      check(edges[3 * i + 2], "across", height, width);
      level.across = call.edges[3 * i + 2].data_ptr();
    }
    if (i > 0) {
      const CrfLevel& fine = call.graph.level[i - 1];
      const bool covered = height <= fine.height && width <= fine.width &&
                           (height * width > 0 || fine.cells() == 0);
      SEGKERN_CHECK(covered, op, ": level ", i, " must cover level ", i - 1, " of ", fine.height,
                    " x ", fine.width, " with as many or fewer cells, got ", height, " x ", width);
    }
    nodes += height * width;
  }
  call.graph.nodes = static_cast<int32_t>(nodes);
  SEGKERN_CHECK(unary.size(2) == nodes, op, ": unary must have the ", nodes,
                " cells of all levels, got ", unary.size(2));
  return call;
}

inline void check_same_form(const char* op, const char* name, const Tensor& tensor,
                       const Tensor& wanted) {
  SEGKERN_CHECK(tensor.scalar_type() == wanted.scalar_type() &&
                    sizes_of(tensor) == sizes_of(wanted) && tensor.device() == wanted.device(),
                op, ": ", name, " must be ", shape_string(sizes_of(wanted)),
                " of the dtype and on the device of grad, got ", shape_string(sizes_of(tensor)));
}

// An error where a system of some item was not solved; `largest` says how large the pairwise values
// of an item are, or is negative where that is not known. Items that are not finite pass: their
// solutions are NaN.
template <typename Largest>
void check_states(const char* op, const GaussianCall& call, const int32_t* states,
                  const Largest& largest) {
  for (int64_t i = 0; i < call.batch * call.plan.systems; ++i) {
    const auto state = static_cast<SolveState>(states[i]);
    const int64_t item = i / call.plan.systems;
    SEGKERN_CHECK(state != SolveState::kUnconverged, op, ": item ", item,
                  " did not converge to a relative residual of ", call.stop.tolerance, " within ",
                  call.stop.iterations, " iterations; raise diagonal (now ", call.diagonal,
                  "), tolerance or max_iterations");
    if (state != SolveState::kIndefinite) {
      continue;
    }
    const int64_t factor = call.pairwise == Pairwise::kPotts     ? call.labels - 1
                           : call.pairwise == Pairwise::kGeneral ? call.labels
                                                                 : 1;
    int64_t most = 4;  // edges of a cell
    for (int32_t l = 0; l < call.graph.levels; ++l) {
      const CrfLevel& level = call.graph.level[l];
      int64_t edges = 4 + (l + 1 < call.graph.levels);
      if (l > 0) {
        const CrfLevel& fine = call.graph.level[l - 1];
        const auto cover = [](int64_t f, int64_t c) { return (f + c - 1) / c; };
        edges += cover(fine.height, level.height) * cover(fine.width, level.width);
      }
      most = std::max(most, edges);
    }
    std::ostringstream enough;
    enough << most * factor << " times the largest absolute pairwise value always suffices";
    if (const double value = largest(item); value >= 0) {
      enough << ", here " << most * factor * value;
    }
    fail(op, ": the matrix of item ", item, " must be positive definite, got a direction p with ",
         "p.Mp <= 0; raise diagonal (now ", call.diagonal, "): more than ", enough.str());
  }
}

}  // namespace segkern
