#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/aligned.h"
#include "crf_args.h"

namespace segkern {
namespace {

// sum_k b_k, and optionally every b_k - `share` * sum_k b_k, of (labels, nodes).
template <typename T>
void sum_and_rest(const T* b, int64_t labels, int64_t nodes, double share, T* sum, T* rest) {
  std::fill_n(sum, nodes, T(0));
  for (int64_t k = 0; k < labels; ++k) {
    for (int64_t i = 0; i < nodes; ++i) {
      sum[i] += b[k * nodes + i];
    }
  }
  const T s = static_cast<T>(share);
  for (int64_t k = 0; k < labels; ++k) {
    for (int64_t i = 0; i < nodes; ++i) {
      rest[k * nodes + i] = b[k * nodes + i] - s * sum[i];
    }
  }
}

// Each label's share of the sum's solution plus its own, of (items, labels + 1, nodes).
template <typename T>
void join(const T* solved, const GaussianCall& call, T* x) {
  const int64_t labels = call.labels, nodes = call.graph.nodes;
  const T share = static_cast<T>(1.0 / static_cast<double>(labels));
  torch::stable::parallel_for(0, call.batch * labels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* sum = solved + i / labels * (labels + 1) * nodes;
      const T* own = sum + (i % labels + 1) * nodes;
      for (int64_t node = 0; node < nodes; ++node) {
        x[i * nodes + node] = share * sum[node] + own[node];
      }
    }
  });
}

template <typename T>
double largest_value(const GaussianCall& call, int64_t item) {
  double most = 0;
  for (const Tensor& edge : call.edges) {
    const int64_t size = edge.numel() / std::max<int64_t>(1, call.batch);
    const T* from = static_cast<const T*>(edge.data_ptr()) + item * size;
    for (int64_t i = 0; i < size; ++i) {
      most = std::max(most, std::abs(static_cast<double>(from[i])));
    }
  }
  return most;
}

// Solves all systems of b (items, labels, nodes) into x; b is centred first in the reduced model if
// `centre`. NaN where a system of the item was not solved.
template <typename T>
void solve(const char* op, const GaussianCall& call, bool centre, bool check, const T* b, T* x,
           int32_t* iterations, int32_t* states) {
  const int64_t labels = call.labels, nodes = call.graph.nodes, size = labels * nodes;
  const int64_t systems = call.plan.systems, unknowns = call.graph.unknowns();
  const bool potts = call.pairwise == Pairwise::kPotts;
  const bool centred = call.pairwise == Pairwise::kReduced && centre;
  const CrfItems<T> items{call.graph, call.batch};
  if (potts || centred) {
    const int64_t floats = call.batch * systems * unknowns * sizeof(T) / sizeof(float);
    AlignedFloats memory(floats), results(potts ? floats : 0);
    T* rhs = reinterpret_cast<T*>(memory.get());
    T* solved = potts ? reinterpret_cast<T*>(results.get()) : x;
    torch::stable::parallel_for(0, call.batch, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> own(nodes);
      for (int64_t n = begin; n < end; ++n) {
        T* to = rhs + n * systems * nodes;
        sum_and_rest(b + n * size, labels, nodes, 1.0 / (potts ? labels : labels - 1),
                     potts ? to : own.data(), potts ? to + nodes : to);
      }
    });
    solve_crf_cpu(items, call.plan, call.stop, rhs, solved, iterations, states);
    if (potts) {
      join(solved, call, x);
    }
  } else {
    solve_crf_cpu(items, call.plan, call.stop, b, x, iterations, states);
  }
  if (check) {
    check_states(op, call, states, [&](int64_t item) { return largest_value<T>(call, item); });
  }
  for (int64_t n = 0; n < call.batch; ++n) {
    const int32_t* state = states + n * systems;
    const bool solved = std::all_of(state, state + systems, [](int32_t s) {
      return static_cast<SolveState>(s) == SolveState::kConverged;
    });
    if (!solved) {
      std::fill_n(x + n * size, size, std::numeric_limits<T>::quiet_NaN());
    }
  }
}

// Calls body with scalar_t = float or double.
template <typename Body>
void by_precision(const Tensor& unary, const Body& body) {
  if (unary.scalar_type() == ScalarType::Double) {
    body(double{});
  } else {
    body(float{});
  }
}

struct Report {
  Tensor iterations, states;

  explicit Report(const GaussianCall& call)
      : iterations(torch::stable::full({call.batch, call.plan.systems}, 0.0, ScalarType::Int,
                                       std::nullopt, call.unary.device())),
        states(torch::stable::full({call.batch, call.plan.systems},
                                   static_cast<double>(SolveState::kConverged), ScalarType::Int,
                                   std::nullopt, call.unary.device())) {}
};

std::tuple<Tensor, Tensor, Tensor> gaussian_crf_cpu(const Tensor& unary, TensorList edges,
                                                    int64_t pairwise, double diagonal,
                                                    double tolerance, int64_t max_iterations,
                                                    double eta, bool check) {
  constexpr const char* op = "gaussian_crf";
  const GaussianCall call =
      check_gaussian(op, unary, edges, pairwise, diagonal, tolerance, max_iterations, eta);
  Tensor x = empty_in_layout(sizes_of(unary), unary.scalar_type(), unary, false);
  const Report report(call);
  if (!call.empty()) {
    by_precision(unary, [&](auto type) {
      using T = decltype(type);
      solve(op, call, true, check, static_cast<const T*>(call.unary.data_ptr()),
            static_cast<T*>(x.data_ptr()), static_cast<int32_t*>(report.iterations.data_ptr()),
            static_cast<int32_t*>(report.states.data_ptr()));
    });
  }
  return {x, report.iterations, report.states};
}

std::tuple<Tensor, TensorList> gaussian_crf_backward_cpu(const Tensor& grad,
                                                         const Tensor& solution, TensorList edges,
                                                         int64_t pairwise, double diagonal,
                                                         double tolerance, int64_t max_iterations,
                                                         double eta, bool check, bool want_edges) {
  constexpr const char* op = "_gaussian_crf_backward";
  const GaussianCall call =
      check_gaussian(op, grad, edges, pairwise, diagonal, tolerance, max_iterations, eta);
  check_same_form(op, "solution", solution, grad);
  const Tensor x = as_layout(solution, false);
  Tensor grad_unary = empty_in_layout(sizes_of(grad), grad.scalar_type(), grad, false);
  TensorList grad_edges;
  for (size_t e = 0; want_edges && e < call.edges.size(); ++e) {
    grad_edges.push_back(torch::stable::empty_like(call.edges[e]));
    torch::stable::zero_(grad_edges.back());
  }
  if (call.empty()) {
    return {grad_unary, grad_edges};
  }
  const Report report(call);
  by_precision(grad, [&](auto type) {
    using T = decltype(type);
    const int64_t labels = call.labels, nodes = call.graph.nodes;
    auto* y = static_cast<T*>(grad_unary.data_ptr());
    solve(op, call, false, check, static_cast<const T*>(call.unary.data_ptr()), y,
          static_cast<int32_t*>(report.iterations.data_ptr()),
          static_cast<int32_t*>(report.states.data_ptr()));
    for (size_t e = 0; e < grad_edges.size(); ++e) {
      edge_gradient_cpu(call.graph, call.level_of(e), call.set_of(e), call.pairwise, call.batch,
                        labels, call.gradient_factor(), static_cast<const T*>(x.data_ptr()), y,
                        static_cast<T*>(grad_edges[e].data_ptr()));
    }
    if (call.pairwise == Pairwise::kReduced) {  // the centring of the forward is symmetric
      std::vector<T> sum(nodes);
      for (int64_t n = 0; n < call.batch; ++n) {
        T* item = y + n * labels * nodes;
        sum_and_rest(item, labels, nodes, 1.0 / (labels - 1), sum.data(), item);
      }
    }
  });
  return {grad_unary, grad_edges};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("gaussian_crf", TORCH_BOX(&gaussian_crf_cpu));
  m.impl("_gaussian_crf_backward", TORCH_BOX(&gaussian_crf_backward_cpu));
}

}  // namespace segkern
