// Python module simt_atrous: depthwise and dense convolutions and their gradients, through the same
// choice of kernel and grid as on the device (csrc/atrous_conv/..._launch.cuh).
//
// Every function takes the geometry first: (window, batch, channels, dtype, channels_last), where
// window is the fields of ConvWindow in order; then arrays in memory order, outputs last.
#include "atrous_conv/dense_launch.cuh"
#include "atrous_conv/depthwise_launch.cuh"
#include "dense_binding.h"

using segkern::ConvWindow;
using segkern::DepthwiseParams;
using segkern::DepthwiseWeightGradParams;
using simt::Array;
using simt::DeviceBuffer;
using simt::Launcher;

namespace {

// scale, shift, slope and residual may be empty. `offset` bytes in front of the input make it less
// aligned than an allocation.
void depthwise(const Geometry& geometry, bool flip, int activation, std::size_t offset,
               Array in, Array weight, Array scale, Array shift, Array slope,
               Array residual, Array out) {
  DeviceBuffer input(in, offset), w(weight), added(residual), result(out);
  const Epilogue epilogue({activation, scale, shift, slope});
  auto p = params_of<DepthwiseParams>(geometry);
  p.channels = channels_of(geometry);
  p.channels_last = is_channels_last(geometry);
  p.flip = flip;
  p.in = input.as();
  p.weight = w.as();
  p.residual = added.as();
  epilogue.set(p);
  p.out = result.as();
  segkern::depthwise_conv(p, Launcher{});
  result.copy_back();
}

DepthwiseWeightGradParams grad_params(const Geometry& geometry) {
  auto p = params_of<DepthwiseWeightGradParams>(geometry);
  p.channels = channels_of(geometry);
  p.channels_last = is_channels_last(geometry);
  return p;
}

int64_t depthwise_partial_count(const Geometry& geometry) {
  return segkern::depthwise_partial_count(grad_params(geometry));
}

void depthwise_weight_grad(const Geometry& geometry, Array grad, Array in,
                           Array partial, Array weight_grad) {
  DeviceBuffer g(grad), input(in), parts(partial), result(weight_grad);
  DepthwiseWeightGradParams p = grad_params(geometry);
  p.grad = g.as();
  p.in = input.as();
  p.weight_grad = result.as();
  segkern::depthwise_weight_grad(p, parts.as(), Launcher{});
  result.copy_back();
}

void dense(const Geometry& geometry, int64_t out_channels, bool flip, int activation, Array in,
           Array weight, Array scale, Array shift, Array slope, Array residual, Array out) {
  run_dense(geometry, out_channels, flip, {activation, scale, shift, slope}, in, weight, residual,
            out, [](const auto& p) { segkern::dense_conv(p, Launcher{}); });
}

segkern::DenseWeightGradParams dense_grad_params(const Geometry& geometry, int64_t out_channels) {
  auto p = params_of<segkern::DenseWeightGradParams>(geometry);
  p.in_channels = channels_of(geometry);
  p.out_channels = out_channels;
  return p;
}

int64_t dense_partial_count(const Geometry& geometry, int64_t out_channels) {
  return segkern::dense_partial_count(dense_grad_params(geometry, out_channels));
}

void dense_weight_grad(const Geometry& geometry, int64_t out_channels, Array grad,
                       Array in, Array partial, Array weight_grad) {
  DeviceBuffer g(grad), input(in), parts(partial), result(weight_grad);
  segkern::DenseWeightGradParams p = dense_grad_params(geometry, out_channels);
  p.grad = g.as();
  p.in = input.as();
  p.weight_grad = result.as<float>();
  segkern::dense_weight_grad(p, parts.as<float>(), Launcher{});
  result.copy_back();
}

// (height, width, down, across, channels) of the tiles, and how many taps their blocks work in all.
std::tuple<std::array<int32_t, 5>, int64_t> dense_tiles(const Geometry& geometry,
                                                        int64_t out_channels) {
  auto p = params_of<segkern::DenseParams>(geometry);
  p.in_channels = channels_of(geometry);
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

SIMT_MODULE(simt_atrous, module) {
  simt::bind_int32_limit(module);
  module.def("depthwise", &depthwise);
  module.def("depthwise_partial_count", &depthwise_partial_count);
  module.def("depthwise_weight_grad", &depthwise_weight_grad);
  module.def("dense", &dense);
  module.def("dense_partial_count", &dense_partial_count);
  module.def("dense_weight_grad", &dense_weight_grad);
  module.def("dense_tiles", &dense_tiles);
}
