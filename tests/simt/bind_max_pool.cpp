// Python module simt_max_pool: pooling, unpooling, their backwards and index conversion, through
// the same choice of kernel and grid as on the device (csrc/*/..._launch.cuh).
//
// Every function takes the geometry first: (window, batch, channels, dtype, format, channels_last),
// where window is the fields of PoolWindow in order; then arrays in memory order, outputs last.
#include <array>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "launcher.h"
#include "max_pool/max_pool_launch.cuh"
#include "max_unpool/max_unpool_launch.cuh"

using segkern::ConvertParams;
using segkern::Element;
using segkern::IndexFormat;
using segkern::PoolParams;
using simt::Array;
using simt::DeviceBuffer;
using simt::element_named;
using simt::Launcher;

namespace {

using Geometry =
    std::tuple<std::array<int64_t, 12>, int64_t, int64_t, std::string, std::string, bool>;

IndexFormat format_named(const std::string& name) {
  return name == "offset"   ? IndexFormat::kOffset
         : name == "packed" ? IndexFormat::kPacked
         : name == "flat"   ? IndexFormat::kFlat
                            : throw std::invalid_argument("no index format is called " + name);
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
void max_pool_fwd(const Geometry& geometry, Array in, std::size_t offset, Array out,
                  Array indices) {
  DeviceBuffer planes(in, offset), pooled(out), codes(indices);
  segkern::max_pool_fwd(make_params(geometry, planes.as(), pooled.as(), codes.as()),
                        Launcher{});
  pooled.copy_back();
  codes.copy_back();
}

// Elects into cleared winners, as max_unpool.cu does.
std::vector<int> elect(const PoolParams& p) {
  std::vector<int> winners(static_cast<std::size_t>(segkern::plane_elements(p)));
  segkern::elect_winners(p, winners.data(), Launcher{});
  return winners;
}

void unpool(const PoolParams& p) {
  if (segkern::tiles(p)) {
    segkern::expand_tiles(p, Launcher{});
  } else {
    segkern::scatter_winners(p, elect(p).data(), Launcher{});
  }
}

void max_pool_bwd(const Geometry& geometry, Array grad, std::size_t offset, Array indices,
                  Array grad_in) {
  DeviceBuffer pooled(grad, offset), codes(indices), planes(grad_in);
  const PoolParams p = make_params(geometry, planes.as(), pooled.as(), codes.as());
  if (segkern::tiles(p)) {
    unpool(p);
  } else {
    segkern::max_pool_bwd(p, Launcher{});
  }
  planes.copy_back();
}

void max_unpool_fwd(const Geometry& geometry, Array in, std::size_t offset, Array indices,
                    Array out) {
  DeviceBuffer pooled(in, offset), codes(indices), planes(out);
  unpool(make_params(geometry, planes.as(), pooled.as(), codes.as()));
  planes.copy_back();
}

void max_unpool_bwd(const Geometry& geometry, Array grad, std::size_t offset, Array indices,
                    bool winners_only, Array grad_in) {
  DeviceBuffer planes(grad, offset), codes(indices), pooled(grad_in);
  const PoolParams p = make_params(geometry, planes.as(), pooled.as(), codes.as());
  if (segkern::tiles(p)) {
    segkern::select_tiles(p, Launcher{});
  } else if (winners_only) {
    segkern::gather_windows(p, elect(p).data(), Launcher{});
  } else {
    segkern::gather_windows(p, nullptr, Launcher{});
  }
  pooled.copy_back();
}

void convert_pool_indices(const Geometry& geometry, Array indices, const std::string& to,
                          Array result) {
  DeviceBuffer from(indices), target(result);
  ConvertParams p{};
  p.from = make_params(geometry, nullptr, nullptr, from.as());
  p.to = format_named(to);
  p.indices = target.as();
  segkern::convert_pool_indices(p, Launcher{});
  target.copy_back();
}

}  // namespace

SIMT_MODULE(simt_max_pool, m) {
  m.def("max_pool_fwd", &max_pool_fwd);
  m.def("max_pool_bwd", &max_pool_bwd);
  m.def("max_unpool_fwd", &max_unpool_fwd);
  m.def("max_unpool_bwd", &max_unpool_bwd);
  m.def("convert_pool_indices", &convert_pool_indices);
  simt::bind_int32_limit(m);
}
