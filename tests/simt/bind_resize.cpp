// Python module simt_resize: bilinear resampling and pyramid pooling, through the same choice of
// kernel and grid as on the device (csrc/*/..._launch.cuh). Half types travel as the bits that
// simt/numpy.h says.
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "pyramid_pool/pyramid_pool_launch.cuh"
#include "resize/resize_launch.cuh"
#include "simt/numpy.h"

namespace py = pybind11;
using segkern::Element;
using segkern::PyramidParams;
using segkern::ResizeParams;
using simt::DeviceBuffer;

namespace {

struct SimtLauncher {
  static inline int64_t int32_limit = INT32_MAX;  // set_int32_limit: reach the 64-bit kernels

  template <typename... Params, typename... Args>
  void operator()(void (*kernel)(Params...), int64_t threads, Args... args) const {
    if (threads <= 0) {
      return;
    }
    const int64_t blocks = (threads + segkern::kBlockThreads - 1) / segkern::kBlockThreads;
    simt::launch(kernel, static_cast<unsigned>(blocks), segkern::kBlockThreads, 0, args...);
  }
};

Element element_named(const std::string& name) {
  return name == "float64"    ? Element::kFloat64
         : name == "float32"  ? Element::kFloat32
         : name == "float16"  ? Element::kFloat16
         : name == "bfloat16" ? Element::kBFloat16
                              : throw std::invalid_argument("no element type is called " + name);
}

// Shapes are in memory order: (N, C, H, W), or (N, H, W, C) with channels_last.
ResizeParams resize_params(const std::string& dtype, const py::array& small, const py::array& large,
                           bool channels_last, bool align_corners) {
  const int h = channels_last ? 1 : 2;
  ResizeParams p{};
  p.items = small.shape(0);
  p.channels = small.shape(channels_last ? 3 : 1);
  p.in_h = small.shape(h);
  p.in_w = small.shape(h + 1);
  p.out_h = large.shape(h);
  p.out_w = large.shape(h + 1);
  p.element = element_named(dtype);
  p.channels_last = channels_last;
  p.align_corners = align_corners;
  return p;
}

void resize_fwd(const std::string& dtype, bool channels_last, bool align_corners, py::array in,
                py::array out) {
  DeviceBuffer from(in), to(out);
  ResizeParams p = resize_params(dtype, in, out, channels_last, align_corners);
  p.from = from.as();
  p.to = to.as();
  segkern::resize_fwd(p, SimtLauncher{});
  to.copy_back();
}

void resize_bwd(const std::string& dtype, bool channels_last, bool align_corners, py::array grad,
                py::array grad_in) {
  DeviceBuffer from(grad), to(grad_in);
  ResizeParams p = resize_params(dtype, grad_in, grad, channels_last, align_corners);
  p.from = from.as();
  p.to = to.as();
  segkern::resize_bwd(p, SimtLauncher{});
  to.copy_back();
}

PyramidParams pyramid_params(const std::string& dtype, const std::vector<int64_t>& bins,
                             const py::array& map, bool channels_last) {
  const int h = channels_last ? 1 : 2;
  PyramidParams p{};
  p.items = map.shape(0);
  p.channels = map.shape(channels_last ? 3 : 1);
  p.height = map.shape(h);
  p.width = map.shape(h + 1);
  for (const int64_t b : bins) {
    p.bins[p.grids++] = b;
    p.cells += b * b;
  }
  p.element = element_named(dtype);
  p.channels_last = channels_last;
  return p;
}

std::vector<double> pieces_workspace(const PyramidParams& p) {
  return std::vector<double>(static_cast<std::size_t>(p.planes() *
                                                      segkern::Segments(p, p.height).count *
                                                      segkern::Segments(p, p.width).count));
}

void pyramid_fwd(const std::string& dtype, const std::vector<int64_t>& bins, bool channels_last,
                 py::array in, py::array out) {
  DeviceBuffer from(in), to(out);
  PyramidParams p = pyramid_params(dtype, bins, in, channels_last);
  p.from = from.as();
  p.to = to.as();
  std::vector<double> sums = pieces_workspace(p);
  segkern::pyramid_pool_fwd(p, sums.data(), SimtLauncher{});
  to.copy_back();
}

void pyramid_bwd(const std::string& dtype, const std::vector<int64_t>& bins, bool channels_last,
                 py::array grad, py::array grad_in) {
  DeviceBuffer from(grad), to(grad_in);
  PyramidParams p = pyramid_params(dtype, bins, grad_in, channels_last);
  p.from = from.as();
  p.to = to.as();
  std::vector<double> sums = pieces_workspace(p);
  segkern::pyramid_pool_bwd(p, sums.data(), SimtLauncher{});
  to.copy_back();
}

}  // namespace

PYBIND11_MODULE(simt_resize, m) {
  simt::bind_schedule(m);
  m.def("resize_fwd", &resize_fwd);
  m.def("resize_bwd", &resize_bwd);
  m.def("pyramid_fwd", &pyramid_fwd);
  m.def("pyramid_bwd", &pyramid_bwd);
  m.def("set_int32_limit", [](int64_t threads) { SimtLauncher::int32_limit = threads; });
}
