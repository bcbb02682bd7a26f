// Python module simt_separable: the separable Gaussian's pass, through the same choice of kernel
// and grid as on the device.
#include <cstdint>

#include "separable_gaussian/separable.cuh"
#include "simt/numpy.h"

namespace py = pybind11;
using simt::DeviceBuffer;

namespace {

// `int32_limit` stands for the largest number that 32-bit indices reach.
struct SimtLauncher {
  int64_t int32_limit;

  template <typename... Params, typename... Args>
  void operator()(void (*kernel)(Params...), int64_t threads, Args... args) const {
    const int64_t blocks = (threads + segkern::kBlockThreads - 1) / segkern::kBlockThreads;
    simt::launch(kernel, static_cast<unsigned>(blocks), segkern::kBlockThreads, 0, args...);
  }
};

// values and result of any shape, width (1,); the axis has `length` elements, `step` apart.
void axis_pass(py::array values, py::array width, int64_t length, int64_t step, bool derivative,
               bool wide, py::array result) {
  DeviceBuffer in(values), w(width), out(result);
  segkern::separable_gaussian_pass({in.as<float>(), out.as<float>(), w.as<float>(), values.size(),
                                    length, step, derivative},
                                   SimtLauncher{wide ? 0 : INT32_MAX});
  out.copy_back();
}

}  // namespace

PYBIND11_MODULE(simt_separable, m) {
  simt::bind_schedule(m);
  m.def("axis_pass", &axis_pass);
}
