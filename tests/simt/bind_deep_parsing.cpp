// Python module simt_deep_parsing: the local filter, block minima and mean field passes, through
// the same choice of kernel and grid as on the device (csrc/*/..._launch.cuh). Half types travel as
// the bits that simt/numpy.h says.
#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "block_min/block_min_launch.cuh"
#include "launcher.h"
#include "local_filter/local_filter_launch.cuh"

using segkern::BlockMinParams;
using segkern::Element;
using segkern::LocalFilterParams;
using simt::Array;
using simt::DeviceBuffer;
using simt::element_named;
using simt::Launcher;

namespace {

// values, image and weights as the operator has them.
LocalFilterParams filter_params(const std::string& dtype, const Array& values,
                                const Array& image, std::array<int64_t, 2> kernel) {
  LocalFilterParams p{};
  p.element = element_named(dtype);
  p.planes = values.shape(0) * values.shape(1);
  p.labels = values.shape(1);
  p.height = values.shape(2);
  p.width = values.shape(3);
  p.colours = image.shape(1);
  p.kernel_h = kernel[0];
  p.kernel_w = kernel[1];
  p.first_y = -(kernel[0] / 2);
  p.first_x = -(kernel[1] / 2);
  return p;
}

void filter_fwd(const std::string& dtype, Array values, Array image, Array weights,
                std::array<int64_t, 2> kernel, bool multiply, Array out) {
  DeviceBuffer q(values), colours(image), w(weights), result(out);
  LocalFilterParams p = filter_params(dtype, values, image, kernel);
  p.values = q.as();
  p.image = colours.as();
  p.weights = w.as<double>();
  p.outer = multiply ? q.as() : nullptr;
  p.out = result.as();
  segkern::local_filter(p, Launcher{});
  result.copy_back();
}

// As the host of the operator's backward: `through` is a workspace like image's type, or empty.
void filter_bwd(const std::string& dtype, Array grad, Array values, Array image,
                Array weights, std::array<int64_t, 2> kernel, Array through,
                Array grad_values, Array grad_weights) {
  DeviceBuffer g(grad), q(values), colours(image), w(weights), between(through),
      result(grad_values), sums(grad_weights);
  LocalFilterParams p = filter_params(dtype, values, image, kernel);
  p.image = colours.as();
  p.weights = w.as<double>();
  const bool multiply = through.size() > 0;
  if (multiply) {
    p.values = q.as();
    p.outer = g.as();
    p.out = between.as();
    p.wide = true;
    segkern::local_filter(p, Launcher{});
  }
  p = segkern::mirrored(p);
  p.wide = false;
  p.outer = nullptr;
  p.values = g.as();
  p.factor = multiply ? q.as() : nullptr;
  p.added = multiply ? between.as() : nullptr;
  p.paired = q.as();
  p.out = result.as();
  const int64_t parts = segkern::local_filter_blocks(p);
  std::vector<double> partial(static_cast<std::size_t>(2 * parts));
  p.partial = partial.data();
  segkern::local_filter(p, Launcher{});
  segkern::local_filter_sums(p.partial, parts, sums.as<double>(), Launcher{});
  result.copy_back();
  sums.copy_back();
}

// Shapes are in memory order: (N, C, H * W), or (N, H * W, C) with channels_last.
BlockMinParams block_params(const std::string& dtype, const Array& narrow, int64_t block,
                            bool channels_last, bool log) {
  BlockMinParams p{};
  p.element = element_named(dtype);
  p.items = narrow.shape(0);
  p.labels = narrow.shape(channels_last ? 2 : 1);
  p.area = narrow.shape(channels_last ? 1 : 2);
  p.block = block;
  p.channels_last = channels_last;
  p.log = log;
  return p;
}

void block_min(const std::string& dtype, int64_t block, bool channels_last, Array in,
               Array out, Array codes) {
  DeviceBuffer from(in), result(out), indices(codes);
  BlockMinParams p = block_params(dtype, out, block, channels_last, false);
  p.wide_in = from.as();
  p.out = result.as();
  p.codes = indices.as<uint8_t>();
  segkern::block_min_fwd(p, Launcher{});
  result.copy_back();
  indices.copy_back();
}

void block_min_bwd(const std::string& dtype, int64_t block, bool channels_last, Array grad,
                   Array codes, Array grad_in) {
  DeviceBuffer from(grad), indices(codes), result(grad_in);
  BlockMinParams p = block_params(dtype, grad, block, channels_last, false);
  p.grad = from.as();
  p.codes = indices.as<uint8_t>();
  p.wide_out = result.as();
  segkern::block_min_bwd(p, Launcher{});
  result.copy_back();
}

void mean_field(const std::string& dtype, int64_t block, bool channels_last, bool log,
                Array unary, Array penalty, Array out, Array codes) {
  DeviceBuffer logits(unary), costs(penalty), result(out), indices(codes);
  BlockMinParams p = block_params(dtype, unary, block, channels_last, log);
  p.unary = logits.as();
  p.wide_in = costs.as();
  p.out = result.as();
  p.codes = indices.as<uint8_t>();
  segkern::mean_field_pass_fwd(p, Launcher{});
  result.copy_back();
  indices.copy_back();
}

void mean_field_bwd(const std::string& dtype, int64_t block, bool channels_last, bool log,
                    Array grad, Array output, Array codes, Array grad_unary,
                    Array grad_penalty) {
  DeviceBuffer g(grad), marginals(output), indices(codes), narrow(grad_unary), wide(grad_penalty);
  BlockMinParams p = block_params(dtype, grad, block, channels_last, log);
  p.grad = g.as();
  p.result = marginals.as();
  p.codes = indices.as<uint8_t>();
  p.out = narrow.as();
  p.wide_out = wide.as();
  segkern::mean_field_pass_bwd(p, Launcher{});
  narrow.copy_back();
  wide.copy_back();
}

}  // namespace

SIMT_MODULE(simt_deep_parsing, m) {
  m.def("filter_fwd", &filter_fwd);
  m.def("filter_bwd", &filter_bwd);
  m.def("block_min", &block_min);
  m.def("block_min_bwd", &block_min_bwd);
  m.def("mean_field", &mean_field);
  m.def("mean_field_bwd", &mean_field_bwd);
  simt::bind_int32_limit(m);
}
