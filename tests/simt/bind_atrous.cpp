// Python module simt_atrous: depthwise and dense convolutions and their gradients, through the same
// choice of kernel and grid as on the device (csrc/atrous_conv/..._launch.cuh).
//
// Every function takes the geometry first: (window, batch, channels, dtype, channels_last), where
// window is the fields of ConvWindow in order; then arrays in memory order, outputs last.
#include <pybind11/stl.h>

#include "atrous_conv/dense_launch.cuh"
#include "atrous_conv/depthwise_launch.cuh"
#include "conv_binding.h"

namespace py = pybind11;
using segkern::ConvWindow;
using segkern::DepthwiseParams;
using segkern::DepthwiseWeightGradParams;
using segkern::Element;
using simt::DeviceBuffer;

namespace {

// scale, shift, slope and residual may be empty. `offset` bytes in front of the input make it less
// aligned than an allocation.
void depthwise(const Geometry& geometry, bool flip, int activation, std::size_t offset,
               py::array in, py::array weight, py::array scale, py::array shift, py::array slope,
               py::array residual, py::array out) {
  const auto& [window, batch, channels, dtype, channels_last] = geometry;
  DeviceBuffer input(in, offset), w(weight), a(scale), b(shift), s(slope), r(residual), result(out);
  DepthwiseParams p{};
  p.window = window_of(window);
  p.batch = batch;
  p.channels = channels;
  p.element = element_named(dtype);
  p.channels_last = channels_last;
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
  segkern::depthwise_conv(p, SimtLauncher{});
  result.copy_back();
}

DepthwiseWeightGradParams grad_params(const Geometry& geometry) {
  const auto& [window, batch, channels, dtype, channels_last] = geometry;
  DepthwiseWeightGradParams p{};
  p.window = window_of(window);
  p.batch = batch;
  p.channels = channels;
  p.element = element_named(dtype);
  p.channels_last = channels_last;
  return p;
}

int64_t depthwise_partial_count(const Geometry& geometry) {
  return segkern::depthwise_partial_count(grad_params(geometry));
}

void depthwise_weight_grad(const Geometry& geometry, py::array grad, py::array in,
                           py::array partial, py::array weight_grad) {
  DeviceBuffer g(grad), input(in), parts(partial), result(weight_grad);
  DepthwiseWeightGradParams p = grad_params(geometry);
  p.grad = g.as();
  p.in = input.as();
  p.weight_grad = result.as();
  segkern::depthwise_weight_grad(p, parts.as(), SimtLauncher{});
  result.copy_back();
}

// As depthwise; the weight is (out_channels, taps, channels).
void dense(const Geometry& geometry, int64_t out_channels, bool flip, int activation, py::array in,
           py::array weight, py::array scale, py::array shift, py::array slope,
           py::array residual, py::array out) {
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
  segkern::dense_conv(p, SimtLauncher{});
  result.copy_back();
}

segkern::DenseWeightGradParams dense_grad_params(const Geometry& geometry, int64_t out_channels) {
  const auto& [window, batch, channels, dtype, channels_last] = geometry;
  segkern::DenseWeightGradParams p{};
  p.window = window_of(window);
  p.batch = batch;
  p.in_channels = channels;
  p.out_channels = out_channels;
  p.element = element_named(dtype);
  return p;
}

int64_t dense_partial_count(const Geometry& geometry, int64_t out_channels) {
  return segkern::dense_partial_count(dense_grad_params(geometry, out_channels));
}

void dense_weight_grad(const Geometry& geometry, int64_t out_channels, py::array grad,
                       py::array in, py::array partial, py::array weight_grad) {
  DeviceBuffer g(grad), input(in), parts(partial), result(weight_grad);
  segkern::DenseWeightGradParams p = dense_grad_params(geometry, out_channels);
  p.grad = g.as();
  p.in = input.as();
  p.weight_grad = result.as<float>();
  segkern::dense_weight_grad(p, parts.as<float>(), SimtLauncher{});
  result.copy_back();
}

// (height, width, down, across, channels) of the tiles, and how many taps their blocks work in all.
std::tuple<std::array<int32_t, 5>, int64_t> dense_tiles(const Geometry& geometry,
                                                        int64_t out_channels) {
  segkern::DenseParams p{};
  p.window = window_of(std::get<0>(geometry));
  p.batch = std::get<1>(geometry);
  p.in_channels = std::get<2>(geometry);
  p.out_channels = out_channels;
  const segkern::DenseTiles t = segkern::dense_tiles(p, segkern::kDenseChannels);
  const ConvWindow& w = p.window;
  const int64_t live =
      segkern::live_tiles(w.out_h, t.height, w.kernel_h, w.stride_h, w.pad_h, w.dilation_h,
                          w.in_h) *
      segkern::live_tiles(w.out_w, t.width, w.kernel_w, w.stride_w, w.pad_w, w.dilation_w, w.in_w);
  return {{t.height, t.width, t.down, t.across, t.channels}, live};
}

}  // namespace

PYBIND11_MODULE(simt_atrous, module) {
  simt::bind_schedule(module);
  module.def("set_int32_limit", [](int64_t limit) { SimtLauncher::int32_limit = limit; });
  module.def("depthwise", &depthwise);
  module.def("depthwise_partial_count", &depthwise_partial_count);
  module.def("depthwise_weight_grad", &depthwise_weight_grad);
  module.def("dense", &dense);
  module.def("dense_partial_count", &dense_partial_count);
  module.def("dense_weight_grad", &dense_weight_grad);
  module.def("dense_tiles", &dense_tiles);
}
