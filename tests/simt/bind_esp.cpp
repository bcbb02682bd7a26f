// Python module simt_esp: the spatial pyramid, through the same plan, choice of kernels and grids
// as on the device (csrc/atrous_conv/esp_launch.cuh).
#include <pybind11/stl.h>

#include <memory>
#include <vector>

#include "atrous_conv/esp_launch.cuh"
#include "conv_binding.h"

namespace py = pybind11;
using simt::DeviceBuffer;

namespace {

// Sizes (N, M, H, W), type, whether channels-last.
using Map = std::tuple<std::array<int64_t, 4>, std::string, bool>;
// (activation, scale, shift, slope), whose arrays may be empty, as `reduce` and `residual`.
using Epilogue = std::tuple<int, py::array, py::array, py::array>;

// Bytes with what the schedule poisons fresh memory with.
py::array buffer(int64_t bytes, int poison) {
  py::array_t<uint8_t> array(bytes);
  std::memset(array.mutable_data(), poison, bytes);
  return array;
}

// Rates are of both axes, branch by branch; weights are (outputs, reduced, kh, kw).
void esp(const Map& map, py::array in, py::array reduce, const std::vector<py::array>& weights,
         const std::vector<int64_t>& rates, bool hierarchical, py::array residual,
         const Epilogue& epilogue, py::array out, int poison) {
  const auto& [sizes, dtype, channels_last] = map;
  DeviceBuffer input(in), reducing(reduce), added(residual), result(out);
  DeviceBuffer scale(std::get<1>(epilogue)), shift(std::get<2>(epilogue));
  DeviceBuffer slope(std::get<3>(epilogue));
  std::vector<std::unique_ptr<DeviceBuffer>> kept;
  segkern::EspParams p{};
  p.batch = sizes[0];
  p.in_channels = sizes[1];
  p.height = sizes[2];
  p.width = sizes[3];
  p.reduced = weights.at(0).shape(1);
  p.kernel_h = weights[0].shape(2);
  p.kernel_w = weights[0].shape(3);
  p.branches = static_cast<int>(weights.size());
  for (int b = 0; b < p.branches; ++b) {
    kept.push_back(std::make_unique<DeviceBuffer>(weights[b]));
    p.rate_h[b] = rates.at(2 * b);
    p.rate_w[b] = rates.at(2 * b + 1);
    p.outputs[b] = weights[b].shape(0);
    p.out_channels += p.outputs[b];
    p.weight[b] = kept.back()->as();
  }
  p.hierarchical = hierarchical;
  p.element = element_named(dtype);
  p.channels_last = channels_last;
  p.in = input.as();
  p.reduce = reducing.as();
  p.residual = added.as();
  p.scale = scale.as();
  p.shift = shift.as();
  p.slope = slope.as();
  p.slope_step = std::get<3>(epilogue).size() > 1 ? 1 : 0;
  p.activation = static_cast<segkern::Activation>(std::get<0>(epilogue));
  p.out = result.as();
  const segkern::EspPlan plan(p);
  DeviceBuffer reduced(buffer(plan.reduced_bytes, poison));
  DeviceBuffer packed(buffer(plan.weight_bytes, poison));
  segkern::esp_pyramid(p, reduced.as(), packed.as(), SimtLauncher{});
  result.copy_back();
}

}  // namespace

PYBIND11_MODULE(simt_esp, module) {
  simt::bind_schedule(module);
  module.def("esp", &esp);
}
