// Solving a Gaussian CRF on the CPU.
#pragma once

#include <cstdint>
#include <vector>

#include "graph.h"

namespace segkern {

// The systems that one item of a model is solved by: (diagonal + scale A) x = right-hand side, all
// over the same edges A. The Potts matrix, lam I + A (x) (J - I) over nodes (x) labels, has the sum
// over labels and its complement as invariant subspaces, on which J - I is L - 1 and -1. So the sum
// of the labels' unaries is solved with lam + (L - 1) A, and each label's deviation from their mean
// with lam - A: L + 1 systems of one variable a cell, independent of one another. Where each has a
// relative residual of at most t, so has the whole.
struct CrfPlan {
  int64_t systems;
  int32_t width;  // of CrfGraph
  double diagonal;
  double first_scale, scale;  // of system 0, and of the others

  CrfPlan(Pairwise pairwise, int64_t labels, double lam) {
    switch (pairwise) {
      case Pairwise::kPotts:
        *this = {labels + 1, 1, lam, static_cast<double>(labels - 1), -1.0};
        break;
      case Pairwise::kGeneral:
        *this = {1, static_cast<int32_t>(labels), lam, 1.0, 1.0};
        break;
      case Pairwise::kReduced:
        *this = {labels, 1, 1.0, 1.0 / lam, 1.0 / lam};
        break;
    }
  }

 private:
  CrfPlan(int64_t systems, int32_t width, double diagonal, double first_scale, double scale)
      : systems(systems),
        width(width),
        diagonal(diagonal),
        first_scale(first_scale),
        scale(scale) {}
};

struct CrfStop {
  double tolerance;  // of |r| / |right-hand side|
  int64_t iterations;
};

// The graphs of all items, which differ in their edges only.
template <typename T>
struct CrfItems {
  CrfGraph graph;  // with the edges of the first item
  int64_t count;

  CrfGraph item(int64_t n) const {
    CrfGraph g = graph;
    const int64_t planes = static_cast<int64_t>(g.width) * g.width;
    for (int i = 0; i < g.levels; ++i) {
      CrfLevel& level = g.level[i];
      const auto at = [&](const void* from, int64_t edges) -> const void* {
        return from ? static_cast<const T*>(from) + n * planes * edges : nullptr;
      };
      level.right = at(level.right, level.rights());
      level.down = at(level.down, level.downs());
      level.across = at(level.across, level.cells());
    }
    return g;
  }
};

// x of every system (items, systems, unknowns) from right-hand sides of that shape, with the number
// of iterations and the SolveState of each (items, systems).
template <typename T>
void solve_crf_cpu(const CrfItems<T>& items, const CrfPlan& plan, const CrfStop& stop,
                   const T* rhs, T* x, int32_t* iterations, int32_t* states);

// Which edges of a level: an index into its (right, down, across).
enum class EdgeSet : int32_t { kRight, kDown, kAcross };

// Gradients (items, planes, edges) of one set, times `factor`, from the solution x and the solution
// y of the gradient, both (items, labels, nodes).
template <typename T>
void edge_gradient_cpu(const CrfGraph& graph, int level, EdgeSet set, Pairwise pairwise,
                       int64_t items, int64_t labels, double factor, const T* x, const T* y,
                       T* gradient);

}  // namespace segkern
