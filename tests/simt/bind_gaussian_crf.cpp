// Python module simt_gaussian_crf: conjugate gradients, label mixing and edge gradients, through
// the same choice of kernel and grid as on the device (csrc/gaussian_crf/gaussian_crf_launch.cuh).
#include <array>
#include <cmath>
#include <cstdlib>
#include <deque>
#include <string>
#include <vector>

#include "gaussian_crf/gaussian_crf_launch.cuh"
#include "launcher.h"

using namespace segkern;
using simt::Array;
using simt::DeviceBuffer;
using simt::Launcher;

namespace {

Element element_of(const Array& array) {
  return array.itemsize() == 8 ? Element::kFloat64 : Element::kFloat32;
}

// A graph over edges in device memory, per level right, down and, but on the coarsest, across.
struct Graph {
  std::deque<DeviceBuffer> buffers;
  CrfGraph graph{};

  Graph(const std::vector<std::array<int, 2>>& sizes, const std::vector<Array>& edges,
        int width) {
    graph.levels = static_cast<int32_t>(sizes.size());
    graph.width = width;
    for (const Array& edge : edges) {
      buffers.emplace_back(edge);
    }
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      const auto at = [&](std::size_t e) -> const void* {
        return e < buffers.size() ? buffers[e].as() : nullptr;
      };
      graph.level[i] = {sizes[i][0], sizes[i][1], graph.nodes,
                        at(3 * i),      at(3 * i + 1),   at(3 * i + 2)};
      graph.nodes += sizes[i][0] * sizes[i][1];
    }
  }
};

// rhs and x (items, systems, unknowns), numbers (diagonal, first scale, other scales, tolerance);
// iterations, first and second state (items, systems). `many` launches, of `per_thread` unknowns.
void solve(const std::vector<std::array<int, 2>>& sizes, const std::vector<Array>& edges,
           int width, Array rhs, const std::vector<double>& numbers, int max_iterations,
           bool many, int per_thread, Array x, Array iterations, Array first,
           Array second) {
  const Graph graph(sizes, edges, width);
  DeviceBuffer b(rhs), out(x), counts(iterations), one(first), two(second);
  CrfSolveParams p{};
  p.graph = graph.graph;
  p.element = element_of(rhs);
  p.items = rhs.shape(0);
  p.systems = rhs.shape(1);
  p.diagonal = numbers[0];
  p.first_scale = numbers[1];
  p.scale = numbers[2];
  p.tolerance = numbers[3];
  p.max_iterations = max_iterations;
  p.rhs = b.as();
  p.x = out.as();
  p.iterations = counts.as<int32_t>();
  p.first_state = one.as<int32_t>();
  p.second_state = two.as<int32_t>();
  p.per_thread = per_thread;
  const auto all = static_cast<std::size_t>(p.items * p.systems);
  const auto parts = all * static_cast<std::size_t>(p.chunks());
  // What nobody writes is not read: it poisons the results here.
  const std::size_t bytes = static_cast<std::size_t>(rhs.nbytes());
  std::vector<double> r(bytes / 8 + 1, NAN), q(r), even(r), odd(r);
  std::vector<double> rr(parts, NAN), pq(parts, NAN), scalars(3 * all, NAN);
  p.r = r.data();
  p.q = q.data();
  if (many) {
    p.p[0] = even.data();
    p.p[1] = odd.data();
    p.rr_parts = rr.data();
    p.pq_parts = pq.data();
    p.scalars = scalars.data();
  } else if (!p.fits_block()) {
    throw std::invalid_argument("a block cannot hold this system");
  }
  crf_solve(p, Launcher{});
  out.copy_back();
  counts.copy_back();
  one.copy_back();
  two.copy_back();
}

// kind: "none", "split", "centre" or "join"; states (items, systems) of what the two kernels found
// and of the result, or empty.
void mix(const std::string& kind, Array from, Array to, int labels, Array first,
         Array second, Array states) {
  DeviceBuffer in(from), out(to), one(first), two(second), found(states);
  LabelMixParams p{};
  p.element = element_of(from);
  p.mix = kind == "split"    ? LabelMix::kSplit
          : kind == "centre" ? LabelMix::kCentre
          : kind == "join"   ? LabelMix::kJoin
                             : LabelMix::kNone;
  p.items = from.shape(0);
  p.labels = labels;
  p.nodes = from.shape(2);
  p.systems = states.size() ? states.shape(1) : labels + 1;
  p.from = in.as();
  p.to = out.as();
  p.first_state = one.as<int32_t>();
  p.second_state = two.as<int32_t>();
  p.states = found.as<int32_t>();
  crf_mix(p, Launcher{});
  out.copy_back();
  found.copy_back();
}

// pairwise, set: numbers of Pairwise and EdgeSet. x and y (items, labels, nodes).
void edge_gradient(const std::vector<std::array<int, 2>>& sizes, int pairwise, int level, int set,
                   double factor, Array x, Array y, Array gradient) {
  const Graph graph(sizes, {}, 1);
  DeviceBuffer xs(x), ys(y), out(gradient);
  EdgeGradientParams p{};
  p.graph = graph.graph;
  p.element = element_of(x);
  p.pairwise = static_cast<Pairwise>(pairwise);
  p.level = level;
  p.set = set;
  p.items = x.shape(0);
  p.labels = x.shape(1);
  p.factor = factor;
  p.x = xs.as();
  p.y = ys.as();
  p.gradient = out.as();
  crf_edge_gradient(p, Launcher{});
  out.copy_back();
}

}  // namespace

SIMT_MODULE(simt_gaussian_crf, m) {
  m.def("solve", &solve);
  m.def("mix", &mix);
  m.def("edge_gradient", &edge_gradient);
}
