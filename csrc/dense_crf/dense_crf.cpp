#include <algorithm>
#include <optional>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "crf_args.h"
#include "mean_field.h"

namespace segkern {
namespace {

// The call as the CPU sees it: `view` of one item, with costs spread to rows.
struct CpuCrf {
  CrfCall call;
  std::vector<std::vector<float>> factor, matrix, transposed;

  explicit CpuCrf(CrfCall checked) : call(std::move(checked)) {
    const int64_t labels = call.labels, stride = row_stride(labels);
    for (const Tensor& cost : call.costs) {
      const float* c = static_cast<const float*>(cost.data_ptr());
      std::vector<float> diagonal, rows, columns;
      if (cost.dim() == 2) {
        rows.assign(labels * stride, 0.0f);
        columns.assign(labels * stride, 0.0f);
        for (int64_t to = 0; to < labels; ++to) {
          for (int64_t from = 0; from < labels; ++from) {
            rows[from * stride + to] = -c[to * labels + from];
            columns[to * stride + from] = -c[to * labels + from];
          }
        }
      } else {
        diagonal.assign(stride, 0.0f);
        for (int64_t l = 0; l < labels; ++l) {
          diagonal[l] = -c[cost.dim() == 1 ? l : 0];
        }
      }
      factor.push_back(std::move(diagonal));
      matrix.push_back(std::move(rows));
      transposed.push_back(std::move(columns));
    }
  }

  CrfItem item(int64_t n) const {
    const auto floats = [](const Tensor& t) { return static_cast<const float*>(t.data_ptr()); };
    CrfItem item{};
    item.points = call.points;
    item.labels = call.labels;
    item.unary = floats(call.unary) + n * call.labels * call.points;
    item.q0 = call.q0 ? floats(*call.q0) + n * call.labels * call.points : nullptr;
    item.iterations = call.iterations;
    for (size_t t = 0; t < call.lattices.size(); ++t) {
      const LatticeTensors& lattice = call.lattices[t];
      const int64_t at = lattice.batch() == 1 ? 0 : n;
      item.terms.push_back({lattice.cpu_view(at), floats(call.scales[2 * t]) + at * call.points,
                            floats(call.scales[2 * t + 1]) + at * call.points, factor[t],
                            matrix[t], transposed[t]});
    }
    return item;
  }
};

std::tuple<Tensor, Tensor, Tensor> dense_crf_cpu(const Tensor& unary, std::optional<Tensor> q0,
                                                 TensorList lattices, TensorList scales,
                                                 TensorList costs, int64_t iterations, bool keep,
                                                 bool want_kl) {
  const CpuCrf crf(check_crf("dense_crf", unary, q0, lattices, scales, costs, iterations));
  const CrfCall& call = crf.call;
  const int64_t plane = call.labels * call.points;
  Tensor q = empty_in_layout(sizes_of(unary), ScalarType::Float, unary, false);
  Tensor history = empty_in_layout(history_sizes(call, keep), ScalarType::Float, unary, false);
  for (const Tensor& filled : {q, history}) {
    prefer_large_pages(filled.data_ptr(), filled.numel() * sizeof(float));
  }
  Tensor kl = empty_in_layout({want_kl ? call.batch : 0}, ScalarType::Double, unary, false);
  if (call.points == 0 || call.labels == 0) {
    std::fill_n(static_cast<double*>(kl.data_ptr()), kl.numel(), 0.0);
    return {q, history, kl};
  }
  for (int64_t n = 0; n < call.batch; ++n) {
    float* kept = static_cast<float*>(history.data_ptr());
    mean_field_cpu(crf.item(n), static_cast<float*>(q.data_ptr()) + n * plane,
                   keep ? kept + n * call.kept_floats() : nullptr,
                   want_kl ? static_cast<double*>(kl.data_ptr()) + n : nullptr);
  }
  return {q, history, kl};
}

std::tuple<Tensor, Tensor, TensorList> dense_crf_backward_cpu(
    const Tensor& grad, const Tensor& unary, std::optional<Tensor> q0, const Tensor& q,
    const Tensor& history, TensorList lattices, TensorList scales, TensorList costs,
    int64_t iterations) {
  constexpr const char* op = "_dense_crf_backward";
  const CpuCrf crf(check_crf(op, unary, q0, lattices, scales, costs, iterations));
  const CrfCall& call = crf.call;
  check_like(op, "grad", grad, unary);
  check_like(op, "q", q, unary);
  const bool kept = history.numel() > 0;
  SEGKERN_CHECK(!kept || sizes_of(history) == history_sizes(call, true), op,
                ": history must be what dense_crf returned, got ",
                shape_string(sizes_of(history)));
  const Tensor grads = as_layout(grad, false), marginals = as_layout(q, false);
  Tensor grad_unary = empty_in_layout(sizes_of(unary), ScalarType::Float, unary, false);
  Tensor grad_q0 = empty_in_layout(q0 ? sizes_of(unary) : std::vector<int64_t>{0},
                                   ScalarType::Float, unary, false);
  std::vector<std::vector<double>> sums;
  for (const Tensor& cost : call.costs) {
    sums.emplace_back(cost.dim() == 2 ? call.labels * call.labels : call.labels, 0.0);
  }
  std::vector<std::vector<double>*> sum_of_term;
  for (std::vector<double>& sum : sums) {
    sum_of_term.push_back(&sum);
  }
  const int64_t plane = call.labels * call.points;
  for (int64_t n = 0; plane > 0 && n < call.batch; ++n) {
    const CrfItem item = crf.item(n);
    const auto at = [&](const Tensor& t) { return static_cast<float*>(t.data_ptr()) + n * plane; };
    AlignedFloats again(kept ? 0 : call.kept_floats());
    const float* states = again.get();
    if (kept) {
      states = static_cast<const float*>(history.data_ptr()) + n * call.kept_floats();
    } else {  // until the last update, whose result is known
      AlignedFloats unused(plane);
      mean_field_cpu(item, unused.get(), again.get(), nullptr);
    }
    mean_field_backward_cpu(item, at(grads), at(marginals), states, at(grad_unary),
                            q0 ? at(grad_q0) : nullptr, sum_of_term);
  }
  TensorList grad_costs;
  for (size_t t = 0; t < sums.size(); ++t) {
    const Tensor& cost = call.costs[t];
    Tensor out = empty_in_layout(sizes_of(cost), ScalarType::Float, unary, false);
    auto* to = static_cast<float*>(out.data_ptr());
    if (cost.dim() == 0) {
      double total = 0;
      for (const double v : sums[t]) {
        total += v;
      }
      *to = static_cast<float>(total);
    } else {
      std::copy(sums[t].begin(), sums[t].end(), to);
    }
    grad_costs.push_back(out);
  }
  return {grad_unary, grad_q0, grad_costs};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("dense_crf", TORCH_BOX(&dense_crf_cpu));
  m.impl("_dense_crf_backward", TORCH_BOX(&dense_crf_backward_cpu));
}

}  // namespace segkern
