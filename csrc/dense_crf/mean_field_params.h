// What the CUDA kernels of mean field are launched with. Includes neither torch nor CUDA.
#pragma once

#include <vector>

#include "../permutohedral/lattice_params.h"

namespace segkern {

constexpr int64_t kMaxCudaLabels = 256;

// Rows of `labels` floats, padded to `stride`: minus infinity behind logits, zero behind all else.
struct CrfRows {
  int64_t batch, labels, points, stride;
};

// A term in the pass over the points that comes after its filter.
struct MeanFieldTerm {
  FilterParams filter;  // with blurred sums
  // Minus the costs: a factor per label (stride,), or rows (labels, stride) of what one label's
  // message gives to each.
  const float* cost;
  int32_t full;
};

// At most so many terms to a pass; more take several, over the partial results of those before.
struct MeanFieldTerms {
  int32_t n_terms;
  MeanFieldTerm terms[kGroupTerms];
};

// out = base + the terms' negated energies, and their softmax where `last`.
struct MeanFieldParams {
  CrfRows rows;
  MeanFieldTerms group;
  const float* base;  // logits, or partial results
  float* out;         // (batch, points, stride) with `out_item` floats from item to item
  int64_t base_item, out_item;
  bool last;
};

// The objective at marginals q, with negated energies base + the terms'.
struct ObjectiveParams {
  CrfRows rows;
  MeanFieldTerms group;
  const float *base, *q;
  double* parts;  // (batch, blocks)
};

// The gradient to an update's marginals: base + the terms' share of it, with messages G = S^T dz.
// Where `last`, on through the softmax that made them.
struct MeanFieldBackwardParams {
  CrfRows rows;
  MeanFieldTerms group;
  const float* base;  // partial results, or null
  const float* q;     // the update's marginals, `q_item` floats from item to item
  int64_t q_item;
  float* out;         // the gradient to the marginals or, where `last`, to the logits; or null
  float* total;       // where `last`: the sum over updates of gradients to logits
  double* parts;      // (blocks, all terms, stride) of sums of G * q, of this group's first term
  int64_t part_row;   // doubles from block to block
  bool last, first_total, first_parts;  // nothing is in `total`, or `parts`, as yet
};

// Sums over points of products G[p, to] * q[p, from].
struct OuterParams {
  CrfRows rows;
  FilterParams filter;
  const float* q;
  int64_t q_item;
  double* parts;       // (chunks, labels, labels)
  int64_t chunk_rows;  // rows of all items that a chunk has: whole tiles
  bool first;
};

// out[o] = factor * the sum over r and c of parts[r * row + o * step + c].
struct SumParams {
  const double* parts;
  int64_t rows, row, step, width, outputs;
  double factor;
};

// A term of a whole inference, with the buffers of its filter. The filter's own factors are unset:
// which of `before` and `after` comes first depends on the direction.
struct CrfTermBuffers {
  FilterParams filter;
  const float *before, *after;
  const float* cost;
  int32_t cost_dims;
  float* cost_rows;     // (labels, stride) for a matrix, else (stride,)
  // For the backward.
  double* outer_parts;  // (chunks, labels, labels) for a matrix
  float* grad_cost;
};

// An inference: arguments as planes (batch, labels, points), buffers as padded rows.
struct CrfBuffers {
  CrfRows rows;
  int64_t iterations;
  const float* unary;
  const float* q0;  // or null
  std::vector<CrfTermBuffers> terms;
  float* logits;
  float* partial;  // where the terms take several passes
  float* q;        // the result
  float* history;  // (batch, iterations, points, stride) marginals before each update, or null
};

struct CrfGradBuffers {
  const float *grad, *q;        // planes
  float *grads, *last, *total;  // rows: gradients on their way, the last marginals, sums
  double* parts;                // (blocks, terms, stride)
  float* grad_unary;            // planes
  float* grad_q0;               // planes, or null
};

}  // namespace segkern
