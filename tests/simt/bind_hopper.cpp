// Python module simt_hopper: the dense convolution for Hopper, through the same tensor maps, choice
// of kernel and grid as on the device (csrc/atrous_conv/wgmma_launch.cuh), and mistakes planted in
// the use of its instructions.
#include <pybind11/stl.h>

#include "atrous_conv/wgmma_launch.cuh"
#include "conv_binding.h"
#include "planted_hopper.cuh"

namespace py = pybind11;
using simt::DeviceBuffer;

namespace {

// A device of few multiprocessors: blocks that work several tiles, and several blocks.
struct PersistentLauncher {
  int64_t multiprocessors;

  template <typename... Params, typename... Args>
  void persistent(void (*kernel)(Params...), int64_t tiles, int threads, int bytes,
                  Args... args) const {
    simt::allow_dynamic_shared(kernel, bytes);
    const int64_t blocks = tiles < multiprocessors ? tiles : multiprocessors;
    simt::launch(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads), bytes,
                 args...);
  }
};

// scale, shift, slope and residual may be empty; the weight is (out_channels, taps, channels).
void dense(const Geometry& geometry, int64_t out_channels, int64_t multiprocessors, bool flip,
           int activation, py::array in, py::array weight, py::array scale, py::array shift,
           py::array slope, py::array residual, py::array out) {
  const auto& [window, batch, channels, dtype, channels_last] = geometry;
  if (!channels_last) {
    throw std::invalid_argument("dense convolutions are channels-last");
  }
  DeviceBuffer input(in), w(weight), a(scale), b(shift), s(slope), r(residual), result(out);
  segkern::DenseParams p{};
  p.window = window_of(window);
  p.batch = batch;
  p.in_channels = channels;
  p.out_channels = out_channels;
  p.element = element_named(dtype);
  p.flip = flip;
  p.in = input.as();
  p.weight = w.as();
  p.scale = a.as();
  p.shift = b.as();
  p.residual = r.as();
  p.slope = s.as();
  p.slope_step = slope.size() > 1 ? 1 : 0;
  p.activation = static_cast<segkern::Activation>(activation);
  p.out = result.as();
  segkern::wgmma_conv(p, PersistentLauncher{multiprocessors});
  result.copy_back();
}

// One product of the planted kernel, 64 x 64 by 128 x 64 along the depth, with a mistake or none.
void planted_product(const std::string& mistake, py::array a, py::array b, py::array sums) {
  DeviceBuffer left(a), right(b), result(sums);
  const auto boxes = [](const DeviceBuffer& data, int64_t rows) {
    return segkern::make_tensor_map(
        {data.as(), segkern::Element::kFloat16, 3, {64, rows, 1}, {64, rows, 1}});
  };
  simt::allow_dynamic_shared(planted::product, planted::kProductBytes);
  simt::launch(planted::product, 1, 128, planted::kProductBytes, planted::mistake_named(mistake),
               boxes(left, 64), boxes(right, 128), result.as<float>());
  result.copy_back();
}

}  // namespace

PYBIND11_MODULE(simt_hopper, module) {
  simt::bind_schedule(module);
  module.def("dense", &dense);
  module.def("planted_product", &planted_product);
}
