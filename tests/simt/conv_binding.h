// What the bindings of convolutions share: geometry and epilogues as the tests give them.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>

#include "atrous_conv/conv_window.h"
#include "launcher.h"

// (fields of ConvWindow in order, batch, channels, dtype, channels_last)
using Geometry = std::tuple<std::array<int64_t, 14>, int64_t, int64_t, std::string, bool>;
inline int64_t channels_of(const Geometry& geometry) { return std::get<2>(geometry); }
inline bool is_channels_last(const Geometry& geometry) { return std::get<4>(geometry); }

// Params with what those of all convolutions have: window, batch and element type.
template <typename Params>
Params params_of(const Geometry& geometry) {
  const std::array<int64_t, 14>& f = std::get<0>(geometry);
  Params p{};
  p.window = {f[0], f[1], f[2], f[3],  f[4],  f[5],  f[6],
              f[7], f[8], f[9], f[10], f[11], f[12], f[13]};
  p.batch = std::get<1>(geometry);
  p.element = simt::element_named(std::get<3>(geometry));
  return p;
}

// (activation, scale, shift, slope), whose arrays may be empty
using GivenEpilogue = std::tuple<int, simt::Array, simt::Array, simt::Array>;

// What follows the sums of a convolution, in device memory.
class Epilogue {
 public:
  explicit Epilogue(const GivenEpilogue& given)
      : activation_(static_cast<segkern::Activation>(std::get<0>(given))),
        scale_(std::get<1>(given)),
        shift_(std::get<2>(given)),
        slope_(std::get<3>(given)),
        slope_step_(std::get<3>(given).size() > 1 ? 1 : 0) {}

  template <typename Params>
  void set(Params& p) const {
    p.scale = scale_.as();
    p.shift = shift_.as();
    p.slope = slope_.as();
    p.slope_step = slope_step_;
    p.activation = activation_;
  }

 private:
  segkern::Activation activation_;
  simt::DeviceBuffer scale_, shift_, slope_;
  int64_t slope_step_;
};
