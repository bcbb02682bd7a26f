// A dense convolution as the tests call it, for the bindings of its kernels.
#pragma once

#include "atrous_conv/dense.h"
#include "conv_binding.h"

// The weight is (out_channels, taps, channels); scale, shift, slope and residual may be empty.
// `run` gets the params.
template <typename Run>
void run_dense(const Geometry& geometry, int64_t out_channels, bool flip,
               const GivenEpilogue& given, const simt::Array& in, const simt::Array& weight,
               const simt::Array& residual, const simt::Array& out, Run run) {
  if (!is_channels_last(geometry)) {
    throw std::invalid_argument("dense convolutions are channels-last");
  }
  simt::DeviceBuffer input(in), w(weight), added(residual), result(out);
  const Epilogue epilogue(given);
  auto p = params_of<segkern::DenseParams>(geometry);
  p.in_channels = channels_of(geometry);
  p.out_channels = out_channels;
  p.flip = flip;
  p.in = input.as();
  p.weight = w.as();
  p.residual = added.as();
  epilogue.set(p);
  p.out = result.as();
  run(p);
  result.copy_back();
}
