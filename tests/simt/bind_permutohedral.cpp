// Python module simt_permutohedral: building lattices, filtering, and the gradient to features.
#include <string>

#include "lattice_memory.h"
#include "permutohedral/lattice_feature_grad.cuh"

using segkern::FilterGroup;
using segkern::FilterParams;
using simt::Array;
using simt::DeviceBuffer;
using simt::FilterMemory;
using simt::Lattice;
using simt::Launcher;

namespace {

Lattice lattice_of(const DeviceBuffer& points, const Array& features) {
  return Lattice(points.as<float>(), features.shape(0), features.shape(1),
                 static_cast<int>(features.shape(2)));
}

// features (items, points, dims) -> vertex, weight, corners (items, points, D),
// neighbours (items, D, bound, 2), offsets (items, bound + 1), count.
void build(Array features, Array vertex, Array weight, Array corners,
           Array offsets, Array neighbours, Array count) {
  const DeviceBuffer points(features);
  const Lattice lattice = lattice_of(points, features);
  const segkern::LatticeArrays& l = lattice.arrays;
  const auto copy = [](const void* from, Array& to) {
    std::memcpy(to.mutable_data(), from, to.nbytes());
  };
  copy(l.vertex, vertex);
  copy(l.weight, weight);
  copy(l.corners, corners);
  copy(l.offsets, offsets);
  copy(l.neighbours, neighbours);
  copy(l.count, count);
}

// Packs values (batch, channels, points), splats and blurs them. Returns the filter with its sums.
FilterParams run(FilterMemory& memory, const void* values, segkern::Element element,
                 int64_t channels, bool reverse) {
  FilterGroup group{};
  group.n_terms = 1;
  FilterParams& p = group.terms[0];
  p = memory.params;
  float* rows = memory.floats.take(p.batch * p.values_item);
  segkern::lattice_pack(values, element, rows, p.batch, channels, p.lattice.points, p.stride,
                        p.values_item, 1.0f, 0.0f, Launcher{});
  p.values = rows;
  segkern::lattice_splat_and_blur(group, reverse, Launcher{});
  return p;
}

// values and result (batch, channels, points) of a dtype, which bfloat16 carries as uint16.
void filter(Array features, Array values, std::string dtype, bool reverse,
            Array result) {
  DeviceBuffer points(features), in(values), out(result);
  const Lattice lattice = lattice_of(points, features);
  const int64_t channels = values.shape(1);
  FilterMemory memory(lattice.arrays, values.shape(0), channels);
  const segkern::Element element = simt::element_named(dtype);
  const FilterParams p = run(memory, in.as(), element, channels, reverse);
  segkern::lattice_slice(p, out.as(), element, channels, Launcher{});
  out.copy_back();
}

// The gradient of sum(grad * filter(values)) to the features; channels in pieces of `at_once`.
void feature_grad(Array grad, Array values, Array features, int64_t at_once,
                  bool reverse, Array result) {
  DeviceBuffer points(features), out(result);
  const Lattice lattice = lattice_of(points, features);
  const int64_t batch = values.shape(0), channels = values.shape(1), count = values.shape(2);
  segkern::FeatureGradParams p{};
  simt::set_scales(lattice.arrays.dims, p.scales);
  p.features = points.as<float>();
  p.item_stride = count * lattice.arrays.dims;
  p.point_stride = lattice.arrays.dims;
  p.dim_stride = 1;
  p.out = out.as<float>();
  simt::Memory<double> doubles;
  p.dots = doubles.take(lattice.arrays.items * lattice.arrays.item_corners());
  for (int64_t c = 0; c < channels; c += at_once) {
    const int64_t piece = std::min(at_once, channels - c);
    const auto planes = [&](const Array& from) {  // channels c to c + piece of every item
      std::vector<float> some;
      for (int64_t n = 0; n < batch; ++n) {
        const auto* begin = static_cast<const float*>(from.data()) + (n * channels + c) * count;
        some.insert(some.end(), begin, begin + piece * count);
      }
      return some;
    };
    FilterMemory of_grad(lattice.arrays, batch, piece), of_values(lattice.arrays, batch, piece);
    p.grads = run(of_grad, planes(grad).data(), segkern::Element::kFloat32, piece, !reverse);
    p.values = run(of_values, planes(values).data(), segkern::Element::kFloat32, piece, reverse);
    p.more = c > 0;
    segkern::lattice_corner_dots(p, Launcher{});
  }
  segkern::lattice_feature_grad(p, Launcher{});
  out.copy_back();
}

}  // namespace

SIMT_MODULE(simt_permutohedral, m) {
  m.def("build", &build);
  m.def("filter", &filter);
  m.def("feature_grad", &feature_grad);
}
