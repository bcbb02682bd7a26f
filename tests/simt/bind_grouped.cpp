// Python module simt_grouped: the convolution of small groups and its gradients, through the same
// choice of kernel and grid as on the device (csrc/atrous_conv/grouped_launch.cuh).
#include "atrous_conv/grouped_launch.cuh"
#include "conv_binding.h"

using simt::Array;
using simt::DeviceBuffer;
using simt::Launcher;

namespace {

using GradParams = segkern::GroupedWeightGradParams;

template <typename Params>
Params grouped_params(const Geometry& geometry, int64_t groups, int64_t out_channels) {
  auto p = params_of<Params>(geometry);
  p.groups = groups;
  p.inputs = channels_of(geometry);
  p.outputs = out_channels;
  p.channels_last = is_channels_last(geometry);
  return p;
}

// Channels are those of a group. `transposed`: the weight's groups have in and out exchanged.
// scale, shift, slope and residual may be empty.
void grouped(const Geometry& geometry, int64_t groups, int64_t out_channels, bool transposed,
             int activation, Array in, Array weight, Array scale, Array shift,
             Array slope, Array residual, Array out) {
  DeviceBuffer input(in), w(weight), added(residual), result(out);
  const Epilogue epilogue({activation, scale, shift, slope});
  auto p = grouped_params<segkern::GroupedParams>(geometry, groups, out_channels);
  p.flip = transposed;
  p.in = input.as();
  p.weight = w.as();
  const int64_t taps = p.window.taps();
  p.weight_out = transposed ? taps : p.inputs * taps;
  p.weight_in = transposed ? out_channels * taps : taps;
  p.residual = added.as();
  epilogue.set(p);
  p.out = result.as();
  segkern::grouped_conv(p, Launcher{});
  result.copy_back();
}

int64_t partial_count(const Geometry& geometry, int64_t groups, int64_t out_channels) {
  return segkern::grouped_partial_count(grouped_params<GradParams>(geometry, groups, out_channels));
}

void weight_grad(const Geometry& geometry, int64_t groups, int64_t out_channels, Array grad,
                 Array in, Array partial, Array result_array) {
  DeviceBuffer g(grad), input(in), parts(partial), result(result_array);
  auto p = grouped_params<GradParams>(geometry, groups, out_channels);
  p.grad = g.as();
  p.in = input.as();
  p.weight_grad = result.as();
  segkern::grouped_weight_grad(p, parts.as(), Launcher{});
  result.copy_back();
}

}  // namespace

SIMT_MODULE(simt_grouped, module) {
  module.def("grouped", &grouped);
  module.def("partial_count", &partial_count);
  module.def("weight_grad", &weight_grad);
}
