// Python module simt_dense_crf: whole mean field inferences, their objective and their gradients.
#include <list>
#include <vector>

#include "dense_crf/mean_field_run.cuh"
#include "lattice_memory.h"

using simt::Array;
using simt::DeviceBuffer;
using simt::Launcher;

namespace {

using Term = std::vector<Array>;  // features (items, points, d), before, after, cost

// The buffers of an inference, as the CUDA host code allocates them.
struct Inference {
  std::list<DeviceBuffer> arrays;
  std::list<simt::Lattice> lattices;
  std::list<simt::FilterMemory> filters;
  simt::Memory<float> floats;
  simt::Memory<double> doubles;
  segkern::CrfBuffers crf{};

  const float* in(const Array& array) {
    arrays.emplace_back(array);
    return arrays.back().as<float>();
  }
  float* rows() { return floats.take(crf.rows.batch * crf.rows.points * crf.rows.stride); }

  Inference(const Array& unary, const Array& q0, const std::vector<Term>& terms,
            int64_t iterations, bool keep) {
    const int64_t labels = unary.shape(1);
    crf.rows = {unary.shape(0), labels, unary.shape(2), segkern::row_stride(labels)};
    crf.iterations = iterations;
    crf.unary = in(unary);
    crf.q0 = q0.size() > 0 ? in(q0) : nullptr;
    crf.logits = rows();
    crf.partial = rows();
    crf.q = rows();
    if (keep && iterations > 0) {
      crf.history = floats.take(crf.rows.batch * iterations * crf.rows.points * crf.rows.stride);
    }
    for (const Term& term : terms) {
      lattices.emplace_back(in(term[0]), term[0].shape(0), crf.rows.points,
                            static_cast<int>(term[0].shape(2)));
      filters.emplace_back(lattices.back().arrays, crf.rows.batch, labels);
      segkern::CrfTermBuffers t{};
      t.filter = filters.back().params;
      t.before = in(term[1]);
      t.after = in(term[2]);
      t.cost = in(term[3]);
      t.cost_dims = static_cast<int32_t>(term[3].ndim());
      t.cost_rows = floats.take((t.cost_dims == 2 ? labels : 1) * crf.rows.stride);
      crf.terms.push_back(t);
    }
  }
};

// unary, q0 (or no elements) and q (batch, labels, points); kl (batch,) or no elements.
void forward(Array unary, Array q0, std::vector<Term> terms, int iterations, bool keep,
             Array q, Array kl) {
  Inference run(unary, q0, terms, iterations, keep);
  DeviceBuffer out(q), objective(kl);
  const Launcher launch;
  segkern::MeanFieldRun<Launcher> mean_field(run.crf, launch);
  mean_field.forward(iterations);
  mean_field.finish(out.as<float>());
  if (kl.size() > 0) {
    mean_field.objective(run.doubles.take(segkern::part_blocks(run.crf.rows)),
                         objective.as<double>());
  }
  out.copy_back();
  objective.copy_back();
}

// grad and q like unary. The marginals before each update are made again, as with
// memory="recompute".
void backward(Array grad, Array unary, Array q0, Array q, std::vector<Term> terms,
              int iterations, Array grad_unary, Array grad_q0,
              std::vector<Array> grad_costs) {
  Inference run(unary, q0, terms, iterations, true);
  const segkern::CrfRows& rows = run.crf.rows;
  DeviceBuffer to_unary(grad_unary), to_q0(grad_q0);
  std::list<DeviceBuffer> to_costs;
  for (std::size_t t = 0; t < terms.size(); ++t) {
    to_costs.emplace_back(grad_costs[t]);
    run.crf.terms[t].grad_cost = to_costs.back().as<float>();
    run.crf.terms[t].outer_parts =
        run.doubles.take(segkern::OuterShape(rows).chunks * rows.labels * rows.labels);
  }
  const Launcher launch;
  if (iterations > 0) {
    segkern::MeanFieldRun<Launcher>(run.crf, launch).forward(iterations - 1);
  }
  segkern::CrfGradBuffers g{};
  g.grad = run.in(grad);
  g.q = run.in(q);
  g.grads = run.rows();
  g.last = run.crf.q;
  g.total = run.crf.logits;
  g.parts = run.doubles.take(segkern::part_blocks(rows) *
                             static_cast<int64_t>(terms.size()) * rows.stride);
  g.grad_unary = to_unary.as<float>();
  g.grad_q0 = to_q0.as<float>();
  segkern::MeanFieldRun<Launcher>(run.crf, launch).backward(g);
  to_unary.copy_back();
  to_q0.copy_back();
  for (DeviceBuffer& cost : to_costs) {
    cost.copy_back();
  }
}

}  // namespace

SIMT_MODULE(simt_dense_crf, m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
}
