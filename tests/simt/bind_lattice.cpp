// Python module simt_lattice: building lattices, filtering, and mean field, through the same choice
// of kernel and grid as on the device (csrc/*/..._launch.cuh). The sort and the scan, which are
// CUB's on the device, are the standard library's here.
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "dense_crf/mean_field_launch.cuh"
#include "simt/numpy.h"

namespace py = pybind11;
using segkern::DeviceKeyFormat;
using segkern::FilterParams;
using segkern::LatticeParams;
using segkern::MeanFieldParams;
using simt::DeviceBuffer;

namespace {

struct SimtLauncher {
  template <typename... Params, typename... Args>
  void operator()(void (*kernel)(Params...), int64_t threads, Args... args) const {
    if (threads <= 0) {
      return;
    }
    const int64_t blocks = (threads + segkern::kBlockThreads - 1) / segkern::kBlockThreads;
    simt::launch(kernel, static_cast<unsigned>(blocks), segkern::kBlockThreads, 0, args...);
  }
};

// A lattice in device memory, with the arrays behind it.
struct Lattice {
  std::vector<int32_t> vertex, corners, offsets, neighbours, numbers, ranks;
  std::vector<float> weight;
  std::vector<int64_t> count;
  std::vector<uint64_t> keys, vertex_keys;
  std::vector<DeviceKeyFormat> format{1};
  LatticeParams params{};

  Lattice(const float* features, int64_t items, int64_t points, int dims) {
    LatticeParams& p = params;
    p.items = items;
    p.points = points;
    p.dims = dims;
    p.bound = points * (dims + 1);
    for (int i = 0; i < dims; ++i) {
      p.scales[i] =
          std::sqrt(2.0 / 3.0) * (dims + 1) / std::sqrt(static_cast<double>((i + 1) * (i + 2)));
    }
    p.features = features;
    p.item_stride = points * dims;
    p.point_stride = dims;
    p.dim_stride = 1;
    const auto all = static_cast<std::size_t>(items * p.bound);
    const auto take = [](auto& array, std::size_t size) {
      array.resize(size);
      return array.data();
    };
    p.vertex = take(vertex, all);
    p.weight = take(weight, all);
    p.corners = take(corners, all);
    p.offsets = take(offsets, static_cast<std::size_t>(items * (p.bound + 1)));
    p.neighbours = take(neighbours, all * 2 * static_cast<std::size_t>(dims + 1));
    p.count = take(count, static_cast<std::size_t>(items));
    p.format = format.data();
    p.keys = take(keys, all);
    p.vertex_keys = take(vertex_keys, all);
    p.numbers = take(numbers, all);
    p.ranks = take(ranks, all);

    segkern::lattice_embed(p, SimtLauncher{});
    std::vector<std::size_t> order(all);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return keys[a] < keys[b]; });
    const std::vector<uint64_t> old_keys = keys;
    const std::vector<int32_t> old_numbers = numbers;
    for (std::size_t i = 0; i < all; ++i) {
      keys[i] = old_keys[order[i]];
      numbers[i] = old_numbers[order[i]];
    }
    segkern::lattice_heads(p, SimtLauncher{});
    std::partial_sum(ranks.begin(), ranks.end(), ranks.begin());
    segkern::lattice_finish(p, SimtLauncher{});
  }
};

struct Buffers {
  std::vector<float> sums, other, heads, tails;
  FilterParams params{};

  Buffers(const LatticeParams& lattice, int64_t batch, int64_t channels) {
    FilterParams& p = params;
    p.lattice = lattice;
    p.batch = batch;
    p.channels = channels;
    p.stride = (channels + 7) / 8 * 8;
    // What nobody writes is not read: it poisons the results here.
    const auto take = [&](std::vector<float>& array, int64_t rows) {
      array.assign(static_cast<std::size_t>(batch * rows * p.stride), NAN);
      return array.data();
    };
    p.sums = take(sums, lattice.bound);
    p.other = take(other, lattice.bound);
    p.heads = take(heads, p.chunks());
    p.tails = take(tails, p.chunks());
  }
};

// features (items, points, dims) -> vertex, weight, neighbours (items, D, bound, 2), count.
void build(py::array features, py::array vertex, py::array weight, py::array neighbours,
           py::array count) {
  DeviceBuffer points(features), v(vertex), w(weight), n(neighbours), c(count);
  const Lattice lattice(points.as<float>(), features.shape(0), features.shape(1),
                        static_cast<int>(features.shape(2)));
  std::copy(lattice.vertex.begin(), lattice.vertex.end(), static_cast<int32_t*>(v.as()));
  std::copy(lattice.weight.begin(), lattice.weight.end(), static_cast<float*>(w.as()));
  std::copy(lattice.neighbours.begin(), lattice.neighbours.end(), static_cast<int32_t*>(n.as()));
  std::copy(lattice.count.begin(), lattice.count.end(), static_cast<int64_t*>(c.as()));
  v.copy_back();
  w.copy_back();
  n.copy_back();
  c.copy_back();
}

// values and result (batch, channels, points).
void filter(py::array features, py::array values, bool reverse, py::array result) {
  DeviceBuffer points(features), in(values), out(result);
  const Lattice lattice(points.as<float>(), features.shape(0), features.shape(1),
                        static_cast<int>(features.shape(2)));
  const int64_t batch = values.shape(0), channels = values.shape(1), count = values.shape(2);
  Buffers buffers(lattice.params, batch, channels);
  FilterParams& p = buffers.params;
  std::vector<float> rows(static_cast<std::size_t>(batch * count * p.stride), NAN);
  segkern::lattice_pack(in.as<float>(), rows.data(), batch, channels, count, p.stride,
                        SimtLauncher{});
  p.values = rows.data();
  segkern::lattice_splat_and_blur(p, reverse, SimtLauncher{});
  segkern::lattice_slice(p, rows.data(), SimtLauncher{});
  segkern::lattice_unpack(rows.data(), out.as<float>(), batch, channels, count, p.stride,
                          SimtLauncher{});
  out.copy_back();
}

// One term. unary and result (batch, labels, points), before and after (items, points).
void mean_field(py::array features, py::array unary, py::array before, py::array after,
                py::array cost, int iterations, py::array result) {
  DeviceBuffer points(features), energies(unary), pre(before), post(after), costs(cost),
      out(result);
  const Lattice lattice(points.as<float>(), features.shape(0), features.shape(1),
                        static_cast<int>(features.shape(2)));
  MeanFieldParams p{};
  p.batch = unary.shape(0);
  p.labels = unary.shape(1);
  p.points = unary.shape(2);
  Buffers buffers(lattice.params, p.batch, p.labels);
  p.stride = buffers.params.stride;
  const auto size = static_cast<std::size_t>(p.batch * p.points * p.stride);
  std::vector<float> rows(size, NAN), q(size, NAN);
  segkern::lattice_pack(energies.as<float>(), rows.data(), p.batch, p.labels, p.points, p.stride,
                        SimtLauncher{});
  p.unary = rows.data();
  p.q = q.data();
  segkern::mean_field_update(p, SimtLauncher{});
  p.n_terms = 1;
  p.terms[0] = {buffers.params, costs.as<float>(), static_cast<int32_t>(cost.ndim())};
  p.terms[0].filter.scale = post.as<float>();
  const float* const factors[] = {pre.as<float>()};
  for (int i = 0; i < iterations; ++i) {
    segkern::mean_field_filter(p, factors, SimtLauncher{});
    segkern::mean_field_update(p, SimtLauncher{});
  }
  segkern::lattice_unpack(p.q, out.as<float>(), p.batch, p.labels, p.points, p.stride,
                          SimtLauncher{});
  out.copy_back();
}

}  // namespace

PYBIND11_MODULE(simt_lattice, m) {
  simt::bind_schedule(m);
  m.def("build", &build);
  m.def("filter", &filter);
  m.def("mean_field", &mean_field);
}
