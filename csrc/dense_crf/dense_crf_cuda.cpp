#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/stream.h"
#include "../permutohedral/filter_buffers.h"
#include "crf_args.h"
#include "dense_crf_cuda.h"

namespace segkern {
namespace {

float* floats(const Tensor& t) { return static_cast<float*>(t.data_ptr()); }
double* doubles(const Tensor& t) { return static_cast<double*>(t.data_ptr()); }

// An inference on the device with the memory that it needs, allocated through torch.
struct CudaCrf {
  CrfCall call;
  CrfBuffers buffers{};
  std::vector<Tensor> kept;
  std::vector<FilterBuffers> filters;

  CudaCrf(const char* op, CrfCall checked) : call(std::move(checked)) {
    SEGKERN_CHECK(call.labels <= kMaxCudaLabels, op, ": unary on CUDA must have at most ",
                  kMaxCudaLabels, " labels, got ", call.labels);
    CrfBuffers& b = buffers;
    b.rows = {call.batch, call.labels, call.points, row_stride(call.labels)};
    b.iterations = call.iterations;
    b.unary = floats(call.unary);
    b.q0 = call.q0 ? floats(*call.q0) : nullptr;
  }

  // Memory for rows and filters; only where there is something to compute.
  void allocate() {
    CrfBuffers& b = buffers;
    b.logits = rows();
    b.partial = call.costs.size() > kGroupTerms ? rows() : nullptr;
    b.q = rows();
    for (size_t t = 0; t < call.costs.size(); ++t) {
      filters.emplace_back(call.lattices[t], call.batch, call.labels);
      CrfTermBuffers term{};
      term.filter = filters.back().params;
      term.before = floats(call.scales[2 * t]);
      term.after = floats(call.scales[2 * t + 1]);
      term.cost = floats(call.costs[t]);
      term.cost_dims = static_cast<int32_t>(call.costs[t].dim());
      term.cost_rows = floats(
          keep({term.cost_dims == 2 ? call.labels : 1, b.rows.stride}, ScalarType::Float));
      b.terms.push_back(term);
    }
  }

  const Tensor& keep(const std::vector<int64_t>& sizes, ScalarType dtype) {
    kept.push_back(empty_in_layout(sizes, dtype, call.unary, false));
    return kept.back();
  }
  float* rows() {
    return floats(keep({call.batch, call.points, buffers.rows.stride}, ScalarType::Float));
  }
};

std::tuple<Tensor, Tensor, Tensor> dense_crf_cuda(const Tensor& unary, std::optional<Tensor> q0,
                                                  TensorList lattices, TensorList scales,
                                                  TensorList costs, int64_t iterations, bool keep,
                                                  bool want_kl) {
  constexpr const char* op = "dense_crf";
  const OnDeviceOf device(unary);
  CudaCrf crf(op, check_crf(op, unary, q0, lattices, scales, costs, iterations));
  Tensor q = empty_in_layout(sizes_of(unary), ScalarType::Float, unary, false);
  Tensor history = empty_in_layout(history_sizes(crf.call, keep), ScalarType::Float, unary, false);
  Tensor kl = empty_in_layout({want_kl ? crf.call.batch : 0}, ScalarType::Double, unary, false);
  if (q.numel() == 0) {
    torch::stable::zero_(kl);
    return {q, history, kl};
  }
  crf.allocate();
  crf.buffers.history = keep && iterations > 0 ? floats(history) : nullptr;
  double* parts =
      want_kl ? doubles(crf.keep({mean_field_parts(crf.buffers.rows)}, ScalarType::Double))
              : nullptr;
  launch_mean_field(crf.buffers, floats(q), parts, want_kl ? doubles(kl) : nullptr,
                    device.stream());
  return {q, history, kl};
}

std::tuple<Tensor, Tensor, TensorList> dense_crf_backward_cuda(
    const Tensor& grad, const Tensor& unary, std::optional<Tensor> q0, const Tensor& q,
    const Tensor& history, TensorList lattices, TensorList scales, TensorList costs,
    int64_t iterations) {
  constexpr const char* op = "_dense_crf_backward";
  const OnDeviceOf device(unary);
  CudaCrf crf(op, check_crf(op, unary, q0, lattices, scales, costs, iterations));
  const CrfCall& call = crf.call;
  check_like(op, "grad", grad, unary);
  check_like(op, "q", q, unary);
  const bool kept = history.numel() > 0;
  SEGKERN_CHECK(!kept || (sizes_of(history) == history_sizes(call, true) &&
                          history.scalar_type() == ScalarType::Float &&
                          history.device() == unary.device()),
                op, ": history must be what dense_crf returned, got ",
                shape_string(sizes_of(history)));
  const Tensor grads = as_layout(grad, false), last = as_layout(q, false);
  Tensor grad_unary = empty_in_layout(sizes_of(unary), ScalarType::Float, unary, false);
  Tensor grad_q0 = empty_in_layout(q0 ? sizes_of(unary) : std::vector<int64_t>{0},
                                   ScalarType::Float, unary, false);
  TensorList grad_costs;
  for (const Tensor& cost : call.costs) {
    grad_costs.push_back(empty_in_layout(sizes_of(cost), ScalarType::Float, unary, false));
  }
  if (unary.numel() == 0) {
    for (Tensor& t : grad_costs) {
      torch::stable::zero_(t);
    }
    return {grad_unary, grad_q0, grad_costs};
  }
  crf.allocate();
  const CrfRows& rows = crf.buffers.rows;
  const auto terms = static_cast<int64_t>(call.costs.size());
  for (int64_t t = 0; t < terms; ++t) {
    CrfTermBuffers& term = crf.buffers.terms[t];
    term.grad_cost = floats(grad_costs[t]);
    if (term.cost_dims == 2) {
      term.outer_parts = doubles(crf.keep(
          {mean_field_outer_parts(rows), rows.labels, rows.labels}, ScalarType::Double));
    }
  }
  if (kept) {
    crf.kept.push_back(as_layout(history, false));
    crf.buffers.history = floats(crf.kept.back());
  } else if (iterations > 0) {
    crf.buffers.history = floats(crf.keep(history_sizes(call, true), ScalarType::Float));
    launch_mean_field_again(crf.buffers, device.stream());
  }
  CrfGradBuffers g{};
  g.grad = floats(grads);
  g.q = floats(last);
  g.grads = crf.rows();
  g.last = crf.buffers.q;
  g.total = crf.buffers.logits;
  g.parts = doubles(crf.keep({mean_field_parts(rows), terms, rows.stride}, ScalarType::Double));
  g.grad_unary = floats(grad_unary);
  g.grad_q0 = q0 ? floats(grad_q0) : nullptr;
  launch_mean_field_backward(crf.buffers, g, device.stream());
  return {grad_unary, grad_q0, grad_costs};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("dense_crf", TORCH_BOX(&dense_crf_cuda));
  m.impl("_dense_crf_backward", TORCH_BOX(&dense_crf_backward_cuda));
}

}  // namespace segkern
