// What the bindings of convolutions share: geometry as the tests give it, and the launcher.
#pragma once

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>

#include "atrous_conv/conv_window.h"
#include "common/device.cuh"
#include "simt/numpy.h"

// (fields of ConvWindow in order, batch, channels, dtype, channels_last)
using Geometry = std::tuple<std::array<int64_t, 14>, int64_t, int64_t, std::string, bool>;

// What CudaLauncher in common/launch.cuh is on the device.
struct SimtLauncher {
  static inline int64_t int32_limit = INT32_MAX;  // set_int32_limit: reach several launches

  template <typename... Params, typename... Args>
  void operator()(void (*kernel)(Params...), int64_t threads, Args... args) const {
    if (threads <= 0) {
      return;
    }
    const int64_t blocks = (threads + segkern::kBlockThreads - 1) / segkern::kBlockThreads;
    simt::launch(kernel, static_cast<unsigned>(blocks), segkern::kBlockThreads, 0, args...);
  }

  template <typename... Params, typename... Args>
  void with_shared(void (*kernel)(Params...), int64_t blocks, int bytes, Args... args) const {
    simt::allow_dynamic_shared(kernel, bytes);
    simt::launch(kernel, static_cast<unsigned>(blocks), segkern::kBlockThreads, bytes, args...);
  }
};

inline segkern::Element element_named(const std::string& name) {
  using segkern::Element;
  return name == "float64"    ? Element::kFloat64
         : name == "float32"  ? Element::kFloat32
         : name == "float16"  ? Element::kFloat16
         : name == "bfloat16" ? Element::kBFloat16
                              : throw std::invalid_argument("no element type is called " + name);
}

inline segkern::ConvWindow window_of(const std::array<int64_t, 14>& f) {
  return {f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], f[11], f[12], f[13]};
}
