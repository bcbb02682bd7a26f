// Mean field inference of one item over given lattices, on the CPU.
#pragma once

#include <vector>

#include "../permutohedral/permutohedral.h"

namespace segkern {

// One pairwise term: messages S q = after * K (before * q), energies += S q * cost^T.
struct CrfTerm {
  LatticeView lattice;
  const float* before;  // (P,)
  const float* after;   // (P,)
  // A diagonal cost, negated (stride,), or a full one: minus its transpose (L, stride), row = the
  // label sending, and minus itself, row = the label receiving.
  std::vector<float> factor, matrix, transposed;

  bool full() const { return !matrix.empty(); }
};

struct CrfItem {
  int64_t points, labels;
  const float* unary;  // (L, P)
  const float* q0;     // (L, P), or null for softmax(-unary)
  std::vector<CrfTerm> terms;
  int64_t iterations;

  int64_t stride() const { return row_stride(labels); }
};

// q (L, P). history, if not null: (iterations, P, stride), the marginals before each update.
// kl, if not null: one number, the objective at q.
void mean_field_cpu(const CrfItem& item, float* q, float* history, double* kl);

// Gradients from that to q. grad_q0 may be null where q0 is; grad_costs: per term (L,), or (L, L)
// where it is full.
void mean_field_backward_cpu(const CrfItem& item, const float* grad, const float* q,
                             const float* history, float* grad_unary, float* grad_q0,
                             const std::vector<std::vector<double>*>& grad_costs);

}  // namespace segkern
