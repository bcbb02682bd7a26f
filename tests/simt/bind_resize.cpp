// Python module simt_resize: bilinear resampling and pyramid pooling, through the same choice of
// kernel and grid as on the device (csrc/*/..._launch.cuh). Half types travel as the bits that
// simt/numpy.h says.
#include <stdexcept>
#include <string>
#include <vector>

#include "launcher.h"
#include "pyramid_pool/pyramid_pool_launch.cuh"
#include "resize/resize_launch.cuh"

using segkern::Element;
using segkern::PyramidParams;
using segkern::ResizeParams;
using simt::Array;
using simt::DeviceBuffer;
using simt::element_named;
using simt::Launcher;

namespace {

// Shapes are in memory order: (N, C, H, W), or (N, H, W, C) with channels_last.
ResizeParams resize_params(const std::string& dtype, const Array& small, const Array& large,
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

void resize_fwd(const std::string& dtype, bool channels_last, bool align_corners, Array in,
                Array out) {
  DeviceBuffer from(in), to(out);
  ResizeParams p = resize_params(dtype, in, out, channels_last, align_corners);
  p.from = from.as();
  p.to = to.as();
  segkern::resize_fwd(p, Launcher{});
  to.copy_back();
}

void resize_bwd(const std::string& dtype, bool channels_last, bool align_corners, Array grad,
                Array grad_in) {
  DeviceBuffer from(grad), to(grad_in);
  ResizeParams p = resize_params(dtype, grad_in, grad, channels_last, align_corners);
  p.from = from.as();
  p.to = to.as();
  segkern::resize_bwd(p, Launcher{});
  to.copy_back();
}

PyramidParams pyramid_params(const std::string& dtype, const std::vector<int64_t>& bins,
                             const Array& map, bool channels_last) {
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
                 Array in, Array out) {
  DeviceBuffer from(in), to(out);
  PyramidParams p = pyramid_params(dtype, bins, in, channels_last);
  p.from = from.as();
  p.to = to.as();
  std::vector<double> sums = pieces_workspace(p);
  segkern::pyramid_pool_fwd(p, sums.data(), Launcher{});
  to.copy_back();
}

void pyramid_bwd(const std::string& dtype, const std::vector<int64_t>& bins, bool channels_last,
                 Array grad, Array grad_in) {
  DeviceBuffer from(grad), to(grad_in);
  PyramidParams p = pyramid_params(dtype, bins, grad_in, channels_last);
  p.from = from.as();
  p.to = to.as();
  std::vector<double> sums = pieces_workspace(p);
  segkern::pyramid_pool_bwd(p, sums.data(), Launcher{});
  to.copy_back();
}

}  // namespace

SIMT_MODULE(simt_resize, m) {
  m.def("resize_fwd", &resize_fwd);
  m.def("resize_bwd", &resize_bwd);
  m.def("pyramid_fwd", &pyramid_fwd);
  m.def("pyramid_bwd", &pyramid_bwd);
  simt::bind_int32_limit(m);
}
