// What CudaLauncher in common/launch.cuh is on the device, and element types by name.
#pragma once

#include <stdexcept>
#include <string>

#include "common/device.cuh"
#include "common/element.h"
#include "simt/numpy.h"

namespace simt {

struct Launcher {
  static inline int64_t int32_limit = INT32_MAX;  // bind_int32_limit: reach the 64-bit kernels

  template <typename... Params, typename... Args>
  void operator()(void (*kernel)(Params...), int64_t threads, Args... args) const {
    if (threads <= 0) {
      return;
    }
    const int64_t blocks = (threads + segkern::kBlockThreads - 1) / segkern::kBlockThreads;
    launch(kernel, static_cast<unsigned>(blocks), segkern::kBlockThreads, 0, args...);
  }

  template <typename... Params, typename... Args>
  void with_shared(void (*kernel)(Params...), int64_t blocks, int bytes, Args... args) const {
    allow_dynamic_shared(kernel, bytes);
    launch(kernel, static_cast<unsigned>(blocks), segkern::kBlockThreads, bytes, args...);
  }
};

inline void bind_int32_limit(Bindings& module) {
  module.def("set_int32_limit", [](int64_t limit) { Launcher::int32_limit = limit; });
}

inline segkern::Element element_named(const std::string& name) {
  using segkern::Element;
  return name == "float64"    ? Element::kFloat64
         : name == "float32"  ? Element::kFloat32
         : name == "float16"  ? Element::kFloat16
         : name == "bfloat16" ? Element::kBFloat16
                              : throw std::invalid_argument("no element type is called " + name);
}

}  // namespace simt
