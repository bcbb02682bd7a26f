// Python module simt_separable_conv: the fused separable convolution, through the same choice of
// kernel and grid as on the device (csrc/atrous_conv/separable_launch.cuh).
#include <pybind11/stl.h>

#include "atrous_conv/separable_launch.cuh"
#include "conv_binding.h"

namespace py = pybind11;
using simt::DeviceBuffer;

namespace {

// The weights are (taps, channels) of float and (outputs, channels) of the features' type; `inner`
// and `outer` are (activation, scale, shift, slope), whose arrays may be empty, as the residual.
using Epilogue = std::tuple<int, py::array, py::array, py::array>;

void separable(const Geometry& geometry, int64_t outputs, py::array in, py::array taps,
               const Epilogue& inner, py::array weight, const Epilogue& outer, py::array residual,
               py::array out) {
  const auto& [window, batch, channels, dtype, channels_last] = geometry;
  if (!channels_last) {
    throw std::invalid_argument("the fused kernel is channels-last");
  }
  DeviceBuffer input(in), t(taps), w(weight), r(residual), result(out);
  DeviceBuffer scale1(std::get<1>(inner)), shift1(std::get<2>(inner)), slope1(std::get<3>(inner));
  DeviceBuffer scale2(std::get<1>(outer)), shift2(std::get<2>(outer)), slope2(std::get<3>(outer));
  segkern::SeparableParams p{};
  p.first.window = window_of(window);
  p.first.batch = batch;
  p.first.channels = channels;
  p.first.element = element_named(dtype);
  p.first.channels_last = true;
  p.first.in = input.as();
  p.first.weight = t.as();
  p.first.scale = scale1.as();
  p.first.shift = shift1.as();
  p.first.slope = slope1.as();
  p.first.slope_step = std::get<3>(inner).size() > 1 ? 1 : 0;
  p.first.activation = static_cast<segkern::Activation>(std::get<0>(inner));
  p.outputs = outputs;
  p.weight = w.as();
  p.scale = scale2.as();
  p.shift = shift2.as();
  p.slope = slope2.as();
  p.slope_step = std::get<3>(outer).size() > 1 ? 1 : 0;
  p.activation = static_cast<segkern::Activation>(std::get<0>(outer));
  p.residual = r.as();
  p.out = result.as();
  segkern::separable_conv(p, SimtLauncher{});
  result.copy_back();
}

}  // namespace

PYBIND11_MODULE(simt_separable_conv, module) {
  simt::bind_schedule(module);
  module.def("separable", &separable);
}
