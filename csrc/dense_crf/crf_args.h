// The arguments of dense_crf and its backward, checked; common to both devices.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "../permutohedral/lattice_args.h"
#include "../permutohedral/rows.h"

namespace segkern {

struct CrfCall {
  int64_t batch, labels, points, iterations;
  Tensor unary;  // (N, L, P), dense
  std::optional<Tensor> q0;
  std::vector<LatticeTensors> lattices;
  TensorList scales, costs;  // dense; two scales (N or 1, P) and one cost a term

  // Floats of one item's marginals before each update, in padded rows.
  int64_t kept_floats() const { return iterations * points * row_stride(labels); }
};

inline std::vector<int64_t> history_sizes(const CrfCall& call, bool keep) {
  if (!keep) {
    return {0};
  }
  return {call.batch, call.iterations, call.points, row_stride(call.labels)};
}

inline void check_like(const char* op, const char* name, const Tensor& tensor,
                       const Tensor& unary) {
  SEGKERN_CHECK(tensor.scalar_type() == ScalarType::Float && sizes_of(tensor) == sizes_of(unary) &&
                    tensor.device() == unary.device(),
                op, ": ", name, " must be float32 of shape ", shape_string(sizes_of(unary)),
                " on the device of unary, got ", shape_string(sizes_of(tensor)));
}

inline CrfCall check_crf(const char* op, const Tensor& unary, const std::optional<Tensor>& q0,
                         const TensorList& lattices, const TensorList& scales,
                         const TensorList& costs, int64_t iterations) {
  SEGKERN_CHECK(unary.dim() == 3 && unary.scalar_type() == ScalarType::Float, op,
                ": unary must be float32 (N, L, P), got ", shape_string(sizes_of(unary)));
  SEGKERN_CHECK(iterations >= 0, op, ": iterations must be at least 0, got ", iterations);
  CrfCall call{};
  call.batch = unary.size(0);
  call.labels = unary.size(1);
  call.points = unary.size(2);
  call.iterations = iterations;
  call.unary = as_layout(unary, false);
  if (q0) {
    check_like(op, "q0", *q0, unary);
    call.q0 = as_layout(*q0, false);
  }
  const auto terms = static_cast<int64_t>(costs.size());
  SEGKERN_CHECK(static_cast<int64_t>(lattices.size()) == terms * kLatticeTensors &&
                    static_cast<int64_t>(scales.size()) == 2 * terms,
                op, ": ", terms, " costs need ", terms * kLatticeTensors,
                " lattice tensors and ", 2 * terms, " scales, got ", lattices.size(), " and ",
                scales.size());
  for (int64_t t = 0; t < terms; ++t) {
    call.lattices.push_back(
        lattice_tensors(op, lattices, t * kLatticeTensors, call.batch, call.points));
    const LatticeTensors& lattice = call.lattices.back();
    SEGKERN_CHECK(lattice.vertex.device() == unary.device(), op,
                  ": lattices must be on the device of unary");
    const std::vector<int64_t> wanted = {lattice.batch(), call.points};
    for (int64_t i = 2 * t; i < 2 * t + 2; ++i) {
      SEGKERN_CHECK(sizes_of(scales[i]) == wanted &&
                        scales[i].scalar_type() == ScalarType::Float &&
                        scales[i].device() == unary.device(),
                    op, ": scales must be float32 ", shape_string(wanted), ", got ",
                    shape_string(sizes_of(scales[i])));
      call.scales.push_back(as_layout(scales[i], false));
    }
    const Tensor& cost = costs[t];
    bool square = cost.dim() <= 2 && cost.scalar_type() == ScalarType::Float &&
                  cost.device() == unary.device();
    for (int64_t d = 0; square && d < cost.dim(); ++d) {
      square = cost.size(d) == call.labels;
    }
    SEGKERN_CHECK(square, op, ": costs must be float32 of shape (), (", call.labels, ",) or (",
                  call.labels, ", ", call.labels, "), got ", shape_string(sizes_of(cost)));
    call.costs.push_back(as_layout(cost, false));
  }
  return call;
}

}  // namespace segkern
