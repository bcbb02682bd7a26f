// One mean field update of every point: slices of all terms, costs, unary energies, softmax.
#pragma once

#include "../permutohedral/lattice.cuh"
#include "mean_field_params.h"

namespace segkern {
namespace {

// A warp owns a point, a lane every 32nd label, K of them. Reads a row of energies and D rows of
// sums a term (from the second-level cache, as neighbouring points share them), writes one row of
// marginals: nothing in between leaves the registers.
template <int K>
__global__ void __launch_bounds__(kBlockThreads) mean_field_update_kernel(MeanFieldParams p) {
  const int64_t row = thread_index<int64_t>() / 32;
  if (row >= p.batch * p.points) {
    return;  // a whole warp
  }
  const int lane = static_cast<int>(threadIdx.x % 32);
  const Split<int64_t> at(row, p.points);
  float z[K], message[K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int label = 32 * k + lane;
    z[k] = label < p.labels ? -p.unary[row * p.stride + label] : -INFINITY;
  }
  for (int t = 0; t < p.n_terms; ++t) {
    const MeanFieldParams::Term& term = p.terms[t];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int label = 32 * k + lane;
      message[k] = label < p.labels ? sliced(term.filter, at.outer, at.inner, label) : 0.0f;
    }
    if (term.cost_dims < 2) {
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int label = 32 * k + lane;
        if (label < p.labels) {
          z[k] -= term.cost[term.cost_dims ? label : 0] * message[k];
        }
      }
      continue;
    }
#pragma unroll
    for (int from = 0; from < K; ++from) {
      for (int other = 0; other < 32 && 32 * from + other < p.labels; ++other) {
        const float value = __shfl_sync(kFullWarp, message[from], other);
#pragma unroll
        for (int k = 0; k < K; ++k) {
          const int label = 32 * k + lane;
          if (label < p.labels) {
            z[k] -= term.cost[label * p.labels + 32 * from + other] * value;
          }
        }
      }
    }
  }
  float most = z[0];
#pragma unroll
  for (int k = 1; k < K; ++k) {
    most = fmaxf(most, z[k]);
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, offset));
  }
  float total = 0;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    z[k] = 32 * k + lane < p.labels ? expf(z[k] - most) : 0.0f;
    total += z[k];
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    total += __shfl_xor_sync(kFullWarp, total, offset);
  }
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const int label = 32 * k + lane;
    if (label < p.stride) {
      p.q[row * p.stride + label] = z[k] / total;
    }
  }
}

}  // namespace
}  // namespace segkern
