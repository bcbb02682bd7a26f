#include <optional>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/stream.h"
#include "../permutohedral/filter_buffers.h"
#include "../permutohedral/permutohedral_cuda.h"
#include "crf_args.h"
#include "dense_crf_cuda.h"

namespace segkern {
namespace {

std::tuple<Tensor, Tensor, Tensor> dense_crf_cuda(const Tensor& unary, std::optional<Tensor> q0,
                                                  TensorList lattices, TensorList scales,
                                                  TensorList costs, int64_t iterations, bool keep,
                                                  bool want_kl) {
  constexpr const char* op = "dense_crf";
  const OnDeviceOf device(unary);
  const CrfCall call = check_crf(op, unary, q0, lattices, scales, costs, iterations);
  SEGKERN_CHECK(call.labels <= kMaxCudaLabels, op, ": unary on CUDA must have at most ",
                kMaxCudaLabels, " labels, got ", call.labels);
  SEGKERN_CHECK(call.costs.size() <= static_cast<size_t>(kMaxCudaTerms), op,
                ": on CUDA there must be at most ", kMaxCudaTerms, " terms, got ",
                call.costs.size());
  SEGKERN_CHECK(!keep && !want_kl, op,
                ": memory must be 'recompute' and return_kl False on CUDA");
  Tensor out = empty_in_layout(sizes_of(unary), ScalarType::Float, unary, false);
  Tensor history = empty_in_layout({0}, ScalarType::Float, unary, false);
  Tensor kl = empty_in_layout({0}, ScalarType::Double, unary, false);
  if (out.numel() == 0) {
    return {out, history, kl};
  }
  const cudaStream_t stream = device.stream();
  const int64_t stride = row_stride(call.labels);
  const auto rows = [&] {
    return empty_in_layout({call.batch, call.points, stride}, ScalarType::Float, unary, false);
  };
  const Tensor energies = rows(), q = rows();
  const auto pack = [&](const Tensor& planes, const Tensor& to) {
    launch_lattice_pack(static_cast<const float*>(planes.data_ptr()),
                        static_cast<float*>(to.data_ptr()), call.batch, call.labels, call.points,
                        stride, stream);
  };
  pack(call.unary, energies);
  MeanFieldParams p{};
  p.batch = call.batch;
  p.labels = call.labels;
  p.points = call.points;
  p.stride = stride;
  p.unary = static_cast<const float*>(energies.data_ptr());
  p.q = static_cast<float*>(q.data_ptr());
  if (call.q0) {
    pack(*call.q0, q);
  } else {
    launch_mean_field_update(p, stream);
  }
  std::vector<FilterBuffers> buffers;
  const float* before[kMaxCudaTerms] = {};
  for (size_t t = 0; t < call.costs.size(); ++t) {
    buffers.emplace_back(call.lattices[t], call.batch, call.labels);
    MeanFieldParams::Term& term = p.terms[t];
    term.filter = buffers.back().params;
    before[t] = static_cast<const float*>(call.scales[2 * t].data_ptr());
    term.filter.scale = static_cast<const float*>(call.scales[2 * t + 1].data_ptr());
    term.cost = static_cast<const float*>(call.costs[t].data_ptr());
    term.cost_dims = static_cast<int32_t>(call.costs[t].dim());
  }
  p.n_terms = static_cast<int32_t>(call.costs.size());
  for (int64_t i = 0; i < iterations; ++i) {
    launch_mean_field_filter(p, before, stream);
    launch_mean_field_update(p, stream);
  }
  launch_lattice_unpack(p.q, static_cast<float*>(out.data_ptr()), call.batch, call.labels,
                        call.points, stride, stream);
  return {out, history, kl};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("dense_crf", TORCH_BOX(&dense_crf_cuda));
}

}  // namespace segkern
