// The gradient of mean field. With G = S^T dz for the gradient dz to an update's logits, the
// update's marginals get -G cost, and the cost itself -G^T q: no forward filter is run again.
#pragma once

#include "mean_field.cuh"

namespace segkern {
namespace {

// parts[label] of a block's sums over its points: over the groups of a warp by shuffles, over warps
// in order. All threads of the block take part.
template <int G, int K>
__device__ __forceinline__ void add_block_sums(const LabelRow<G, K>& sums, double* parts,
                                               int64_t stride, bool first) {
  constexpr int kWarps = kBlockThreads / 32;
  constexpr int kWidth = 4 * G * K;
  __shared__ float shares[kWarps][kWidth];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  __syncthreads();  // the shares of the term before are read
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float total = sums.part[k].lane[i];
#pragma unroll
      for (int offset = G; offset < 32; offset *= 2) {
        total += __shfl_xor_sync(kFullWarp, total, offset);
      }
      if (lane < G) {
        shares[threadIdx.x / 32][4 * (lane + G * k) + i] = total;
      }
    }
  }
  __syncthreads();
  const auto label = static_cast<int>(threadIdx.x);
  if (label < kWidth && label < stride) {
    double total = first ? 0.0 : parts[label];
    for (int w = 0; w < kWarps; ++w) {
      total += shares[w][label];
    }
    parts[label] = total;
  }
}

// G threads own a point, a block the sums of costs' gradients over its points. Reads what an update
// reads but logits, and a row each of marginals and of the total, writes the gradient and the
// total: two rows more than the forward's five.
template <int G, int K>
__global__ void __launch_bounds__(kBlockThreads)
    mean_field_backward_kernel(const __grid_constant__ MeanFieldBackwardParams p) {
  const CrfRows& rows = p.rows;
  const PointShare<G> at(rows.points, kSumRounds);
  LabelRow<G, K> sums[kGroupTerms];
#pragma unroll
  for (int t = 0; t < kGroupTerms; ++t) {
    sums[t].fill(0.0f);
  }
  for (int round = 0; round < kSumRounds; ++round) {
    const bool within = at.point(round) < rows.points;
    const int64_t point = within ? at.point(round) : rows.points - 1;
    const int64_t row = (at.item * rows.points + point) * rows.stride;
    LabelRow<G, K> grad, q;
    grad.fill(0.0f);
    q.fill(0.0f);
    if (p.base) {
      grad.load(p.base + row, at.lane, rows.stride);
    }
    if (p.q) {
      q.load(p.q + at.item * p.q_item + point * rows.stride, at.lane, rows.stride);
    }
#pragma unroll
    for (int t = 0; t < kGroupTerms; ++t) {
      if (t < p.group.n_terms) {
        const MeanFieldTerm& term = p.group.terms[t];
        const LabelRow<G, K> message = message_of<G, K>(term, at.item, point, at.lane);
        add_message(grad, message, term, rows, at.lane);
        if (within && !term.full) {
#pragma unroll
          for (int k = 0; k < K; ++k) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              sums[t].part[k].lane[i] += message.part[k].lane[i] * q.part[k].lane[i];
            }
          }
        }
      }
    }
    if (p.last && p.total) {
      LabelRow<G, K> share;
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          share.part[k].lane[i] = q.part[k].lane[i] * grad.part[k].lane[i];
        }
      }
      const float mean = share.sum();
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          grad.part[k].lane[i] = q.part[k].lane[i] * (grad.part[k].lane[i] - mean);
        }
      }
      if (within) {
        float* total = p.total + row;
        LabelRow<G, K> sum = grad;
        if (!p.first_total) {
          LabelRow<G, K> before;
          before.load(total, at.lane, rows.stride);
          sum.each(at.lane, rows.stride,
                   [&](int k, int) { add_scaled(sum.part[k], 1.0f, before.part[k]); });
        }
        sum.store(total, at.lane, rows.stride);
      }
    }
    if (p.out && within) {
      grad.store(p.out + row, at.lane, rows.stride);
    }
  }
  if (p.parts) {
#pragma unroll
    for (int t = 0; t < kGroupTerms; ++t) {
      if (t < p.group.n_terms && !p.group.terms[t].full) {
        add_block_sums(sums[t], p.parts + blockIdx.x * p.part_row + t * rows.stride, rows.stride,
                       p.first_parts);
      }
    }
  }
}

// Labels on each side of a tile of a cost matrix, and points that a block stages at a time.
constexpr int kTile = 32;

// A block owns a tile of a chunk's sums over points of G[to] * q[from], a thread 4 of them. Slices
// G anew where labels take several tiles. Reads D + 1 rows a point; products of 32 points are
// summed in float32, those in double precision, all in a fixed order.
__global__ void __launch_bounds__(kBlockThreads)
    mean_field_outer_kernel(const __grid_constant__ OuterParams p) {
  constexpr int kVectors = kTile / 4;
  static_assert(kTile * kVectors == kBlockThreads, "a thread stages a vector of each side");
  __shared__ __align__(16) float messages[kTile][kTile];
  __shared__ __align__(16) float marginals[kTile][kTile];
  const CrfRows& rows = p.rows;
  const auto tiles = static_cast<unsigned>((rows.labels + kTile - 1) / kTile);
  const unsigned tile = blockIdx.x % (tiles * tiles);
  const int64_t chunk = blockIdx.x / (tiles * tiles);
  const int64_t first_to = tile / tiles * kTile, first_from = tile % tiles * kTile;
  const int line = static_cast<int>(threadIdx.x) / kVectors;
  const int vector = 4 * (static_cast<int>(threadIdx.x) % kVectors);
  const int64_t begin = chunk * p.chunk_rows;
  const int64_t end = min(begin + p.chunk_rows, rows.batch * rows.points);
  double totals[4] = {0, 0, 0, 0};
  for (int64_t start = begin; start < end; start += kTile) {
    const int64_t row = start + line;
    Vec4 message = zeros(), marginal = zeros();
    if (row < end) {
      const Split<int64_t> at(row, rows.points);
      if (first_to + vector < rows.stride) {
        message = sliced(p.filter, at.outer, at.inner, first_to + vector);
      }
      if (first_from + vector < rows.stride) {
        marginal = load_vec<float, 4>(p.q + at.outer * p.q_item + at.inner * rows.stride +
                                      first_from + vector);
      }
    }
    __syncthreads();  // the rows before are used up
    store_vec(&messages[line][vector], message);
    store_vec(&marginals[line][vector], marginal);
    __syncthreads();
    Vec4 sums = zeros();
    for (int i = 0; i < kTile; ++i) {
      add_scaled(sums, messages[i][line], load_vec<float, 4>(&marginals[i][vector]));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      totals[i] += sums.lane[i];
    }
  }
  const int64_t to = first_to + line;
  if (to < rows.labels) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t from = first_from + vector + i;
      if (from < rows.labels) {
        double* part = p.parts + (chunk * rows.labels + to) * rows.labels + from;
        *part = p.first ? totals[i] : *part + totals[i];
      }
    }
  }
}

}  // namespace
}  // namespace segkern
