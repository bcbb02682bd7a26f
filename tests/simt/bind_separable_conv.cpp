// Python module simt_separable_conv: the fused separable convolution, through the same choice of
// kernel and grid as on the device (csrc/atrous_conv/separable_launch.cuh).
#include "atrous_conv/separable_launch.cuh"
#include "conv_binding.h"

using simt::Array;
using simt::DeviceBuffer;

namespace {

// The weights are (taps, channels) of float and (outputs, channels) of the features' type; the
// residual may be empty.
void separable(const Geometry& geometry, int64_t outputs, Array in, Array taps,
               const GivenEpilogue& inner, Array weight, const GivenEpilogue& outer,
               Array residual, Array out) {
  if (!is_channels_last(geometry)) {
    throw std::invalid_argument("the fused kernel is channels-last");
  }
  DeviceBuffer input(in), t(taps), w(weight), added(residual), result(out);
  const Epilogue first(inner), second(outer);
  segkern::SeparableParams p{};
  p.first = params_of<segkern::DepthwiseParams>(geometry);
  p.first.channels = channels_of(geometry);
  p.first.channels_last = true;
  p.first.in = input.as();
  p.first.weight = t.as();
  first.set(p.first);
  p.outputs = outputs;
  p.weight = w.as();
  second.set(p);
  p.residual = added.as();
  p.out = result.as();
  segkern::separable_conv(p, simt::Launcher{});
  result.copy_back();
}

}  // namespace

SIMT_MODULE(simt_separable_conv, module) {
  module.def("separable", &separable);
}
