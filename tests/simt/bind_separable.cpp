// Python module simt_separable: the separable Gaussian's pass, through the same choice of kernel
// and grid as on the device.
#include <cstdint>

#include "launcher.h"
#include "separable_gaussian/separable.cuh"

using simt::Array;
using simt::DeviceBuffer;
using simt::Launcher;

namespace {

// values and result of any shape, width (1,); the axis has `length` elements, `step` apart.
void axis_pass(Array values, Array width, int64_t length, int64_t step, bool derivative,
               bool wide, Array result) {
  DeviceBuffer in(values), w(width), out(result);
  Launcher::int32_limit = wide ? 0 : INT32_MAX;
  segkern::separable_gaussian_pass({in.as<float>(), out.as<float>(), w.as<float>(), values.size(),
                                    length, step, derivative},
                                   Launcher{});
  out.copy_back();
}

}  // namespace

SIMT_MODULE(simt_separable, m) {
  m.def("axis_pass", &axis_pass);
}
