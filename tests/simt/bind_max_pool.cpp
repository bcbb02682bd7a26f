// Python module simt_max_pool: pooling, unpooling, their backwards and index conversion, through
// the same choice of kernel and grid as on the device (csrc/*/..._launch.cuh).
//
// Every function takes the geometry first: (window, batch, channels, dtype, format, channels_last),
// where window is the fields of PoolWindow in order; then arrays in memory order, outputs last.
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "max_pool/max_pool_launch.cuh"
#include "max_unpool/max_unpool_launch.cuh"
#include "simt/numpy.h"

namespace py = pybind11;
using segkern::ConvertParams;
using segkern::Element;
using segkern::IndexFormat;
using segkern::PoolParams;
using simt::DeviceBuffer;

namespace {

using Geometry =
    std::tuple<std::array<int64_t, 12>, int64_t, int64_t, std::string, std::string, bool>;

// What CudaLauncher in common/launch.cuh is on the device.
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

IndexFormat format_named(const std::string& name) {
  return name == "offset"   ? IndexFormat::kOffset
         : name == "packed" ? IndexFormat::kPacked
         : name == "flat"   ? IndexFormat::kFlat
                            : throw std::invalid_argument("no index format is called " + name);
}

Element element_named(const std::string& name) {
  return name == "float64"    ? Element::kFloat64
         : name == "float32"  ? Element::kFloat32
         : name == "float16"  ? Element::kFloat16
         : name == "bfloat16" ? Element::kBFloat16
                              : throw std::invalid_argument("no element type is called " + name);
}

PoolParams make_params(const Geometry& geometry, void* in, void* out, void* indices) {
  const auto& [window, batch, channels, dtype, format, channels_last] = geometry;
  PoolParams p{};
  p.window = {window[0], window[1], window[2], window[3], window[4],  window[5],
              window[6], window[7], window[8], window[9], window[10], window[11]};
  p.batch = batch;
  p.channels = channels;
  p.element = element_named(dtype);
  p.format = format_named(format);
  p.channels_last = channels_last;
  p.in = in;
  p.out = out;
  p.indices = indices;
  return p;
}

// `offset` shifts the features by so many bytes: a view that is not aligned to vectors.
void max_pool_fwd(const Geometry& geometry, py::array in, std::size_t offset, py::array out,
                  py::array indices) {
  DeviceBuffer planes(in, offset), pooled(out), codes(indices);
  segkern::max_pool_fwd(make_params(geometry, planes.as(), pooled.as(), codes.as()),
                        SimtLauncher{});
  pooled.copy_back();
  codes.copy_back();
}

// Elects into cleared winners, as max_unpool.cu does.
std::vector<int> elect(const PoolParams& p) {
  std::vector<int> winners(static_cast<std::size_t>(segkern::plane_elements(p)));
  segkern::elect_winners(p, winners.data(), SimtLauncher{});
  return winners;
}

void unpool(const PoolParams& p) {
  if (segkern::tiles(p)) {
    segkern::expand_tiles(p, SimtLauncher{});
  } else {
    segkern::scatter_winners(p, elect(p).data(), SimtLauncher{});
  }
}

void max_pool_bwd(const Geometry& geometry, py::array grad, std::size_t offset, py::array indices,
                  py::array grad_in) {
  DeviceBuffer pooled(grad, offset), codes(indices), planes(grad_in);
  const PoolParams p = make_params(geometry, planes.as(), pooled.as(), codes.as());
  if (segkern::tiles(p)) {
    unpool(p);
  } else {
    segkern::max_pool_bwd(p, SimtLauncher{});
  }
  planes.copy_back();
}

void max_unpool_fwd(const Geometry& geometry, py::array in, std::size_t offset, py::array indices,
                    py::array out) {
  DeviceBuffer pooled(in, offset), codes(indices), planes(out);
  unpool(make_params(geometry, planes.as(), pooled.as(), codes.as()));
  planes.copy_back();
}

void max_unpool_bwd(const Geometry& geometry, py::array grad, std::size_t offset, py::array indices,
                    bool winners_only, py::array grad_in) {
  DeviceBuffer planes(grad, offset), codes(indices), pooled(grad_in);
  const PoolParams p = make_params(geometry, planes.as(), pooled.as(), codes.as());
  if (segkern::tiles(p)) {
    segkern::select_tiles(p, SimtLauncher{});
  } else if (winners_only) {
    segkern::gather_windows(p, elect(p).data(), SimtLauncher{});
  } else {
    segkern::gather_windows(p, nullptr, SimtLauncher{});
  }
  pooled.copy_back();
}

void convert_pool_indices(const Geometry& geometry, py::array indices, const std::string& to,
                          py::array result) {
  DeviceBuffer from(indices), target(result);
  ConvertParams p{};
  p.from = make_params(geometry, nullptr, nullptr, from.as());
  p.to = format_named(to);
  p.indices = target.as();
  segkern::convert_pool_indices(p, SimtLauncher{});
  target.copy_back();
}

}  // namespace

PYBIND11_MODULE(simt_max_pool, m) {
  simt::bind_schedule(m);
  m.def("max_pool_fwd", &max_pool_fwd);
  m.def("max_pool_bwd", &max_pool_bwd);
  m.def("max_unpool_fwd", &max_unpool_fwd);
  m.def("max_unpool_bwd", &max_unpool_bwd);
  m.def("convert_pool_indices", &convert_pool_indices);
  m.def("set_int32_limit", [](int64_t threads) { SimtLauncher::int32_limit = threads; });
}
