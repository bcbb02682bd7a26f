// Which mean field kernel runs; `launch` as in lattice_build_launch.cuh.
#pragma once

#include "../permutohedral/lattice_filter_launch.cuh"
#include "mean_field_backward.cuh"

namespace segkern {

template <int G, int K>
struct RowForm {
  static constexpr int kThreads = G, kVectors = K;
};

// Calls body(RowForm<G, K>) for rows of `stride` floats.
template <typename Body>
void by_row(int64_t stride, const Body& body) {
  if (stride <= 8) {
    body(RowForm<2, 1>{});
  } else if (stride <= 16) {
    body(RowForm<4, 1>{});
  } else if (stride <= 32) {
    body(RowForm<8, 1>{});
  } else if (stride <= 64) {
    body(RowForm<16, 1>{});
  } else if (stride <= 128) {
    body(RowForm<32, 1>{});
  } else {
    body(RowForm<32, 2>{});
  }
}

// Blocks of an item in kernels that go `rounds` times over their points.
inline int64_t item_blocks(const CrfRows& rows, int rounds) {
  int64_t blocks = 0;
  by_row(rows.stride, [&](auto form) {
    const int64_t points = PointShare<decltype(form)::kThreads>::kPoints * rounds;
    blocks = (rows.points + points - 1) / points;
  });
  return blocks;
}

// Blocks of the kernels that leave a part each.
inline int64_t part_blocks(const CrfRows& rows) {
  return rows.batch * item_blocks(rows, kSumRounds);
}

template <typename Launch>
void mean_field_costs(const float* cost, int dims, bool transposed, float* out, int64_t labels,
                      int64_t stride, const Launch& launch) {
  const int64_t threads = (dims == 2 ? labels : 1) * stride;
  launch(mean_field_costs_kernel, threads, cost, dims, transposed, out, labels, stride, threads);
}

template <typename Launch>
void mean_field_update(const MeanFieldParams& p, const Launch& launch) {
  by_row(p.rows.stride, [&](auto form) {
    using Form = decltype(form);
    launch(mean_field_update_kernel<Form::kThreads, Form::kVectors>,
           p.rows.batch * item_blocks(p.rows, 1) * kBlockThreads, p);
  });
}

template <typename Launch>
void mean_field_objective(const ObjectiveParams& p, const Launch& launch) {
  by_row(p.rows.stride, [&](auto form) {
    using Form = decltype(form);
    launch(mean_field_objective_kernel<Form::kThreads, Form::kVectors>,
           part_blocks(p.rows) * kBlockThreads, p);
  });
}

template <typename Launch>
void mean_field_backward(const MeanFieldBackwardParams& p, const Launch& launch) {
  by_row(p.rows.stride, [&](auto form) {
    using Form = decltype(form);
    launch(mean_field_backward_kernel<Form::kThreads, Form::kVectors>,
           part_blocks(p.rows) * kBlockThreads, p);
  });
}

// Chunks of rows for the sums of a cost matrix's gradient: enough blocks to fill a device, by the
// sizes only, so that sums do not depend on it.
struct OuterShape {
  int64_t chunks, chunk_rows;

  explicit OuterShape(const CrfRows& rows) {
    const int64_t tiles = (rows.labels + kTile - 1) / kTile;
    const int64_t stages = (rows.batch * rows.points + kTile - 1) / kTile;
    const int64_t wanted = std::max<int64_t>(16, 1024 / (tiles * tiles));
    const int64_t chunk_stages = (stages + wanted - 1) / wanted;
    chunk_rows = chunk_stages * kTile;
    chunks = (stages + chunk_stages - 1) / chunk_stages;
  }
};

template <typename Launch>
void mean_field_outer(const OuterParams& p, const Launch& launch) {
  const int64_t tiles = (p.rows.labels + kTile - 1) / kTile;
  launch(mean_field_outer_kernel, OuterShape(p.rows).chunks * tiles * tiles * kBlockThreads, p);
}

template <typename T, typename Launch>
void mean_field_sum(const SumParams& p, T* out, const Launch& launch) {
  launch(mean_field_sum_kernel<T>, p.outputs * 32, p, out);
}

}  // namespace segkern
