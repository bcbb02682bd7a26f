#include "gaussian_crf_cuda.h"

#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/stream.h"
#include "crf_args.h"

namespace segkern {
namespace {

// Threads of the kernels count the unknowns of a system in 32 bits, to the end of a chunk.
constexpr int64_t kMostUnknowns = INT32_MAX - 4096;

// One solve of all systems, with the memory behind it.
struct Solve {
  const GaussianCall& call;
  cudaStream_t stream;
  Element element;
  Tensor iterations, states;

  Solve(const GaussianCall& call, cudaStream_t stream)
      : call(call),
        stream(stream),
        element(call.unary.scalar_type() == ScalarType::Double ? Element::kFloat64
                                                               : Element::kFloat32),
        iterations(ints()),
        states(ints()) {}

  Tensor ints() const { return empty({call.batch, call.plan.systems}, ScalarType::Int); }
  Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype) const {
    return empty_in_layout(sizes, dtype, call.unary, false);
  }
  Tensor unknowns() const {
    return empty({call.batch, call.plan.systems, call.graph.unknowns()}, call.unary.scalar_type());
  }

  LabelMixParams mix_params(LabelMix mix, const Tensor& from, const Tensor& to) const {
    LabelMixParams p{};
    p.element = element;
    p.mix = mix;
    p.items = call.batch;
    p.labels = call.labels;
    p.nodes = call.graph.nodes;
    p.systems = call.plan.systems;
    p.from = from.data_ptr();
    p.to = to.data_ptr();
    return p;
  }

  // The solution of b (items, labels, nodes) into `out` of that shape, NaN where not solved.
  void operator()(const char* op, const Tensor& b, bool centre, bool check, const Tensor& out) {
    SEGKERN_CHECK(call.graph.unknowns() <= kMostUnknowns, op,
                  ": unary on CUDA must have at most ", kMostUnknowns,
                  " coupled scores an item, got ", call.graph.unknowns());
    Tensor rhs = b;
    if (call.pairwise == Pairwise::kPotts) {
      rhs = unknowns();
      launch_crf_mix(mix_params(LabelMix::kSplit, b, rhs), stream);
    } else if (call.pairwise == Pairwise::kReduced && centre) {
      rhs = unknowns();
      launch_crf_mix(mix_params(LabelMix::kCentre, b, rhs), stream);
    }
    const Tensor x = unknowns(), first = ints(), second = ints();
    CrfSolveParams p{};
    p.graph = call.graph;
    p.element = element;
    p.items = call.batch;
    p.systems = call.plan.systems;
    p.diagonal = call.plan.diagonal;
    p.first_scale = call.plan.first_scale;
    p.scale = call.plan.scale;
    p.tolerance = call.stop.tolerance;
    p.max_iterations = static_cast<int32_t>(call.stop.iterations);
    p.rhs = rhs.data_ptr();
    p.x = x.data_ptr();
    p.iterations = static_cast<int32_t*>(iterations.data_ptr());
    p.first_state = static_cast<int32_t*>(first.data_ptr());
    p.second_state = static_cast<int32_t*>(second.data_ptr());
    // A coupled unknown costs an edge for each label; a shared one five products.
    p.per_thread = p.graph.width > 1 ? 1 : 4;
    const Tensor r = unknowns(), q = unknowns();
    p.r = r.data_ptr();
    p.q = q.data_ptr();
    if (p.fits_block()) {
      launch_crf_solve(p, stream);
    } else {
      const int64_t systems = p.items * p.systems;
      const Tensor even = unknowns(), odd = unknowns();
      const Tensor sums = empty({systems * (2 * p.chunks() + 3)}, ScalarType::Double);
      p.p[0] = even.data_ptr();
      p.p[1] = odd.data_ptr();
      p.rr_parts = static_cast<double*>(sums.data_ptr());
      p.pq_parts = p.rr_parts + systems * p.chunks();
      p.scalars = p.pq_parts + systems * p.chunks();
      launch_crf_solve(p, stream);
    }
    LabelMixParams last = mix_params(
        call.pairwise == Pairwise::kPotts ? LabelMix::kJoin : LabelMix::kNone, x, out);
    last.first_state = p.first_state;
    last.second_state = p.second_state;
    last.states = static_cast<int32_t*>(states.data_ptr());
    launch_crf_mix(last, stream);
    if (check) {
      std::vector<int32_t> found(call.batch * call.plan.systems);
      copy_to_host(found.data(), last.states, found.size() * sizeof(int32_t), stream);
      check_states(op, call, found.data(), [](int64_t) { return -1.0; });
    }
  }
};

void fill_report(Solve& solve) {
  torch::stable::zero_(solve.iterations);
  torch::stable::fill_(solve.states, static_cast<double>(SolveState::kConverged));
}

std::tuple<Tensor, Tensor, Tensor> gaussian_crf_cuda(const Tensor& unary, TensorList edges,
                                                     int64_t pairwise, double diagonal,
                                                     double tolerance, int64_t max_iterations,
                                                     double eta, bool check) {
  constexpr const char* op = "gaussian_crf";
  const OnDeviceOf device(unary);
  const GaussianCall call =
      check_gaussian(op, unary, edges, pairwise, diagonal, tolerance, max_iterations, eta);
  Tensor x = empty_in_layout(sizes_of(unary), unary.scalar_type(), unary, false);
  Solve solve(call, device.stream());
  if (call.empty()) {
    fill_report(solve);
  } else {
    solve(op, call.unary, true, check, x);
  }
  return {x, solve.iterations, solve.states};
}

std::tuple<Tensor, TensorList> gaussian_crf_backward_cuda(const Tensor& grad,
                                                          const Tensor& solution,
                                                          TensorList edges, int64_t pairwise,
                                                          double diagonal, double tolerance,
                                                          int64_t max_iterations, double eta,
                                                          bool check, bool want_edges) {
  constexpr const char* op = "_gaussian_crf_backward";
  const OnDeviceOf device(grad);
  const GaussianCall call =
      check_gaussian(op, grad, edges, pairwise, diagonal, tolerance, max_iterations, eta);
  check_same_form(op, "solution", solution, grad);
  const Tensor x = as_layout(solution, false);
  Tensor y = empty_in_layout(sizes_of(grad), grad.scalar_type(), grad, false);
  TensorList grad_edges;
  for (size_t e = 0; want_edges && e < call.edges.size(); ++e) {
    grad_edges.push_back(torch::stable::empty_like(call.edges[e]));
  }
  if (call.empty()) {
    for (Tensor& edge : grad_edges) {
      torch::stable::zero_(edge);
    }
    return {y, grad_edges};
  }
  Solve solve(call, device.stream());
  solve(op, call.unary, false, check, y);
  for (size_t e = 0; e < grad_edges.size(); ++e) {
    EdgeGradientParams p{};
    p.graph = call.graph;
    p.element = solve.element;
    p.pairwise = call.pairwise;
    p.level = call.level_of(e);
    p.set = static_cast<int32_t>(call.set_of(e));
    p.items = call.batch;
    p.labels = call.labels;
    p.factor = call.gradient_factor();
    p.x = x.data_ptr();
    p.y = y.data_ptr();
    p.gradient = grad_edges[e].data_ptr();
    launch_crf_edge_gradient(p, solve.stream);
  }
  if (call.pairwise != Pairwise::kReduced) {
    return {y, grad_edges};
  }
  Tensor grad_unary = empty_in_layout(sizes_of(grad), grad.scalar_type(), grad, false);
  launch_crf_mix(solve.mix_params(LabelMix::kCentre, y, grad_unary), solve.stream);
  return {grad_unary, grad_edges};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("gaussian_crf", TORCH_BOX(&gaussian_crf_cuda));
  m.impl("_gaussian_crf_backward", TORCH_BOX(&gaussian_crf_backward_cuda));
}

}  // namespace segkern
