// What the CUDA kernels of the Gaussian CRF are launched with. Includes neither torch nor CUDA.
#pragma once

#include "../common/element.h"
#include "graph.h"

namespace segkern {

// Cells that one block solves: of a map of 65 x 65, and, in float32, as many as 48 KB of shared
// memory hold.
constexpr int32_t kFewCells = 4352, kMostCells = 12160;

struct CrfSolveParams {
  CrfGraph graph;  // with the edges of the first item
  Element element;
  int64_t items, systems;
  double diagonal, first_scale, scale;  // of the matrices, see CrfPlan
  double tolerance;
  int32_t max_iterations;
  const void* rhs;      // (items, systems, unknowns)
  void* x;              // (items, systems, unknowns)
  int32_t* iterations;  // (items, systems)
  // (items, systems) each: what the first and what the second kernel of an iteration found. Each
  // kernel writes its own and reads the other's, so that no launch reads what it writes.
  int32_t *first_state, *second_state;

  void *r, *q;  // (items, systems, unknowns)

  // For solving in many blocks a system.
  void* p[2];  // (items, systems, unknowns), of even and odd iterations
  double *rr_parts, *pq_parts;  // (items, systems, chunks)
  double* scalars;  // (items, systems, 3): r.r of even and odd iterations, and of the goal
  int32_t iteration;
  int32_t per_thread;  // unknowns

  SEGKERN_HOST_DEVICE int64_t chunk() const { return int64_t{256} * per_thread; }
  SEGKERN_HOST_DEVICE int64_t chunks() const {
    return (graph.unknowns() + chunk() - 1) / chunk();
  }
  // Whether one block can hold a system.
  bool fits_block() const {
    return graph.width == 1 &&
           graph.nodes <= (element == Element::kFloat64 ? kFewCells : kMostCells);
  }
};

// Between scores (items, labels, nodes) and the systems (items, systems, nodes).
enum class LabelMix : int32_t { kNone, kSplit, kCentre, kJoin };

struct LabelMixParams {
  Element element;
  LabelMix mix;
  int64_t items, labels, nodes, systems;
  const void* from;
  void* to;
  // With these, an item with a system that did not converge becomes NaN, and states (items,
  // systems) get what the two kernels found.
  const int32_t *first_state, *second_state;
  int32_t* states;
};

// The pairing of labels is that of Pairwise.
struct EdgeGradientParams {
  CrfGraph graph;
  Element element;
  Pairwise pairwise;
  int32_t level, set;  // EdgeSet
  int64_t items, labels;
  double factor;
  const void *x, *y;  // (items, labels, nodes)
  void* gradient;     // (items, planes, edges)
};

}  // namespace segkern
