// Python module simt_grouped: the convolution of small groups and its gradients, through the same
// choice of kernel and grid as on the device (csrc/atrous_conv/grouped_launch.cuh).
#include <pybind11/stl.h>

#include "atrous_conv/grouped_launch.cuh"
#include "conv_binding.h"

namespace py = pybind11;
using simt::DeviceBuffer;

namespace {

// Channels are those of a group. `transposed`: the weight's groups have in and out exchanged.
// scale, shift, slope and residual may be empty.
void grouped(const Geometry& geometry, int64_t groups, int64_t out_channels, bool transposed,
             int activation, py::array in, py::array weight, py::array scale, py::array shift,
             py::array slope, py::array residual, py::array out) {
  const auto& [window, batch, channels, dtype, channels_last] = geometry;
  DeviceBuffer input(in), w(weight), a(scale), b(shift), s(slope), r(residual), result(out);
  segkern::GroupedParams p{};
  p.window = window_of(window);
  p.batch = batch;
  p.groups = groups;
  p.inputs = channels;
  p.outputs = out_channels;
  p.element = element_named(dtype);
  p.channels_last = channels_last;
  p.flip = transposed;
  p.in = input.as();
  p.weight = w.as();
  const int64_t taps = p.window.taps();
  p.weight_out = transposed ? taps : channels * taps;
  p.weight_in = transposed ? out_channels * taps : taps;
  p.scale = a.as();
  p.shift = b.as();
  p.residual = r.as();
  p.slope = s.as();
  p.slope_step = slope.size() > 1 ? 1 : 0;
  p.activation = static_cast<segkern::Activation>(activation);
  p.out = result.as();
  segkern::grouped_conv(p, SimtLauncher{});
  result.copy_back();
}

segkern::GroupedWeightGradParams grad_params(const Geometry& geometry, int64_t groups,
                                             int64_t out_channels) {
  const auto& [window, batch, channels, dtype, channels_last] = geometry;
  segkern::GroupedWeightGradParams p{};
  p.window = window_of(window);
  p.batch = batch;
  p.groups = groups;
  p.inputs = channels;
  p.outputs = out_channels;
  p.element = element_named(dtype);
  p.channels_last = channels_last;
  return p;
}

int64_t partial_count(const Geometry& geometry, int64_t groups, int64_t out_channels) {
  return segkern::grouped_partial_count(grad_params(geometry, groups, out_channels));
}

void weight_grad(const Geometry& geometry, int64_t groups, int64_t out_channels, py::array grad,
                 py::array in, py::array partial, py::array result_array) {
  DeviceBuffer g(grad), input(in), parts(partial), result(result_array);
  segkern::GroupedWeightGradParams p = grad_params(geometry, groups, out_channels);
  p.grad = g.as();
  p.in = input.as();
  p.weight_grad = result.as();
  segkern::grouped_weight_grad(p, parts.as(), SimtLauncher{});
  result.copy_back();
}

}  // namespace

PYBIND11_MODULE(simt_grouped, module) {
  simt::bind_schedule(module);
  module.def("grouped", &grouped);
  module.def("partial_count", &partial_count);
  module.def("weight_grad", &weight_grad);
}
