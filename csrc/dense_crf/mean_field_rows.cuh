// Rows of labels in registers: G threads own the row of a point, K vectors of 4 labels each, vector
// `lane + G * k` of the row.
#pragma once

#include "../permutohedral/lattice_filter.cuh"
#include "mean_field_params.h"

namespace segkern {
namespace {

// Which point a thread has a share of. Blocks lie within an item; `rounds` times the block moves on
// by its kBlockThreads / G points. Threads beyond the last point work on that one and store
// nothing, so that whole warps take part in shuffles.
template <int G>
struct PointShare {
  static constexpr int kPoints = kBlockThreads / G;

  int64_t item, first;
  int lane;

  __device__ __forceinline__ PointShare(int64_t points, int rounds)
      : item(0), first(0), lane(static_cast<int>(threadIdx.x) % G) {
    const auto blocks = static_cast<unsigned>((points + kPoints * rounds - 1) / (kPoints * rounds));
    const unsigned at = blockIdx.x / blocks;
    item = at;
    first = static_cast<int64_t>(blockIdx.x - at * blocks) * kPoints * rounds;
  }
  __device__ __forceinline__ int64_t point(int round) const {
    return first + round * kPoints + static_cast<int>(threadIdx.x) / G;
  }
};

template <int G, int K>
struct LabelRow {
  Vec4 part[K];

  __device__ __forceinline__ void fill(float value) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        part[k].lane[i] = value;
      }
    }
  }

  // body(k, first label) for the vectors that lie within the row.
  template <typename Body>
  static __device__ __forceinline__ void each(int lane, int64_t stride, const Body& body) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int label = 4 * (lane + G * k);
      if (label < stride) {
        body(k, label);
      }
    }
  }
  __device__ __forceinline__ void load(const float* row, int lane, int64_t stride) {
    each(lane, stride, [&](int k, int label) { part[k] = load_vec<float, 4>(row + label); });
  }
  __device__ __forceinline__ void store(float* row, int lane, int64_t stride) const {
    each(lane, stride, [&](int k, int label) { store_vec(row + label, part[k]); });
  }

  __device__ __forceinline__ float maximum() const {
    float most = -INFINITY;
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        most = fmaxf(most, part[k].lane[i]);
      }
    }
    for (int offset = G / 2; offset > 0; offset /= 2) {
      most = fmaxf(most, __shfl_xor_sync(kFullWarp, most, offset));
    }
    return most;
  }

  __device__ __forceinline__ float sum() const {
    float total = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        total += part[k].lane[i];
      }
    }
    for (int offset = G / 2; offset > 0; offset /= 2) {
      total += __shfl_xor_sync(kFullWarp, total, offset);
    }
    return total;
  }

  // Rows of logits to marginals; vectors outside the row hold minus infinity.
  __device__ __forceinline__ void softmax() {
    const float most = maximum();
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        part[k].lane[i] = expf(part[k].lane[i] - most);
      }
    }
    const float total = sum();
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        part[k].lane[i] /= total;
      }
    }
  }

  // += other * factors, one a label.
  __device__ __forceinline__ void add_product(const LabelRow& other, const float* factors,
                                              int lane, int64_t stride) {
    each(lane, stride, [&](int k, int label) {
      const Vec4 factor = load_vec<float, 4>(factors + label);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        part[k].lane[i] += other.part[k].lane[i] * factor.lane[i];
      }
    });
  }

  // += the sum over labels of other[label] * matrix[label], rows of `stride`.
  __device__ __forceinline__ void add_mixed(const LabelRow& other, const float* matrix,
                                            int64_t labels, int lane, int64_t stride) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
#pragma unroll 1
      for (int owner = 0; owner < G && 4 * (owner + G * k) < labels; ++owner) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t from = 4 * (owner + G * k) + i;
          const float value = __shfl_sync(kFullWarp, other.part[k].lane[i], owner, G);
          if (from < labels) {
            each(lane, stride, [&](int to, int label) {
              add_scaled(part[to], value,
                         load_vec<float, 4>(matrix + from * stride + label));
            });
          }
        }
      }
    }
  }
};

// The message of a term to a point.
template <int G, int K>
__device__ __forceinline__ LabelRow<G, K> message_of(const MeanFieldTerm& term, int64_t item,
                                                     int64_t point, int lane) {
  LabelRow<G, K> message;
  message.fill(0.0f);
  message.each(lane, term.filter.stride, [&](int k, int label) {
    message.part[k] = sliced(term.filter, item, point, label);
  });
  return message;
}

// to += what a message gives to each label.
template <int G, int K>
__device__ __forceinline__ void add_message(LabelRow<G, K>& to, const LabelRow<G, K>& message,
                                            const MeanFieldTerm& term, const CrfRows& rows,
                                            int lane) {
  if (term.full) {
    to.add_mixed(message, term.cost, rows.labels, lane, rows.stride);
  } else {
    to.add_product(message, term.cost, lane, rows.stride);
  }
}

}  // namespace
}  // namespace segkern
