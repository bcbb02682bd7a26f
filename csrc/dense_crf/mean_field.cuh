// Mean field updates and their objective: slices of all terms, costs, logits, softmax.
#pragma once

#include "mean_field_rows.cuh"

namespace segkern {
namespace {

// A thread owns an element: minus a term's costs, spread to padded rows. A diagonal has one row;
// a matrix one for each label that sends, or where `transposed`, that receives.
__global__ void __launch_bounds__(kBlockThreads)
    mean_field_costs_kernel(const float* cost, int dims, bool transposed, float* out,
                            int64_t labels, int64_t stride, int64_t threads) {
  const int64_t thread = thread_index<int64_t>();
  if (thread >= threads) {
    return;
  }
  const Split<int64_t> at(thread, stride);
  const int64_t from = dims == 0   ? 0
                       : dims == 1 ? at.inner
                       : transposed ? at.outer * labels + at.inner
                                    : at.inner * labels + at.outer;
  out[thread] = at.inner < labels ? -cost[from] : 0.0f;
}

// G threads own a point. Reads a row of logits and D rows of sums a term (from the second-level
// cache, as neighbouring points share them) with 8 bytes each of vertex and weight, writes one row
// of marginals: nothing in between leaves the registers. Bound by memory, at small sizes by
// latency.
template <int G, int K>
__global__ void __launch_bounds__(kBlockThreads)
    mean_field_update_kernel(const __grid_constant__ MeanFieldParams p) {
  const CrfRows& rows = p.rows;
  const PointShare<G> at(rows.points, 1);
  const bool within = at.point(0) < rows.points;
  const int64_t point = within ? at.point(0) : rows.points - 1;
  LabelRow<G, K> z;
  z.fill(-INFINITY);
  z.load(p.base + at.item * p.base_item + point * rows.stride, at.lane, rows.stride);
  for (int t = 0; t < p.group.n_terms; ++t) {
    const MeanFieldTerm& term = p.group.terms[t];
    add_message(z, message_of<G, K>(term, at.item, point, at.lane), term, rows, at.lane);
  }
  if (p.last) {
    z.softmax();
  }
  if (within) {
    z.store(p.out + at.item * p.out_item + point * rows.stride, at.lane, rows.stride);
  }
}

// Rounds of the kernels that sum over points: a block serves so many times its points.
constexpr int kSumRounds = 4;

// G threads own a point, a block its share of the objective, in double precision and in a fixed
// order. Reads what an update reads and a row of marginals.
template <int G, int K>
__global__ void __launch_bounds__(kBlockThreads)
    mean_field_objective_kernel(const __grid_constant__ ObjectiveParams p) {
  __shared__ double warps[kBlockThreads / 32];
  const CrfRows& rows = p.rows;
  const PointShare<G> at(rows.points, kSumRounds);
  double total = 0;
  for (int round = 0; round < kSumRounds; ++round) {
    const bool within = at.point(round) < rows.points;
    const int64_t point = within ? at.point(round) : rows.points - 1;
    const int64_t row = (at.item * rows.points + point) * rows.stride;
    LabelRow<G, K> z, q, base;
    z.fill(0.0f);
    q.fill(0.0f);
    base.fill(0.0f);
    q.load(p.q + row, at.lane, rows.stride);
    base.load(p.base + row, at.lane, rows.stride);
    for (int t = 0; t < p.group.n_terms; ++t) {
      const MeanFieldTerm& term = p.group.terms[t];
      add_message(z, message_of<G, K>(term, at.item, point, at.lane), term, rows, at.lane);
    }
    q.each(at.lane, rows.labels, [&](int k, int label) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const double marginal = q.part[k].lane[i];
        const double energy =
            -static_cast<double>(base.part[k].lane[i]) - z.part[k].lane[i];
        if (within && label + i < rows.labels && !(marginal == 0)) {
          total += marginal * (log(fmax(marginal, 1e-20)) + energy);
        }
      }
    });
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    total += __shfl_xor_sync(kFullWarp, total, offset);
  }
  if (threadIdx.x % 32 == 0) {
    warps[threadIdx.x / 32] = total;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < kBlockThreads / 32; ++w) {
      total += warps[w];
    }
    p.parts[blockIdx.x] = total;
  }
}

// A warp owns an output: lanes add up every 32nd part, then each other's sums, so that the order
// is always the same. Reads each part once.
template <typename T>
__global__ void __launch_bounds__(kBlockThreads) mean_field_sum_kernel(SumParams p, T* out) {
  const int64_t output = thread_index<int64_t>() / 32;
  if (output >= p.outputs) {
    return;  // a whole warp
  }
  double total = 0;
  for (int64_t i = threadIdx.x % 32; i < p.rows * p.width; i += 32) {
    const Split<int64_t> at(i, p.width);
    total += p.parts[at.outer * p.row + output * p.step + at.inner];
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    total += __shfl_xor_sync(kFullWarp, total, offset);
  }
  if (threadIdx.x % 32 == 0) {
    out[output] = static_cast<T>(p.factor * total);
  }
}

}  // namespace
}  // namespace segkern
