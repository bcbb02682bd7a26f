// Python module simt_esp: the spatial pyramid, through the same plan, choice of kernels and grids
// as on the device (csrc/atrous_conv/esp_launch.cuh).
#include <memory>
#include <vector>

#include "atrous_conv/esp_launch.cuh"
#include "conv_binding.h"

using simt::Array;
using simt::DeviceBuffer;

namespace {

// Sizes (N, M, H, W), type, whether channels-last.
using Map = std::tuple<std::array<int64_t, 4>, std::string, bool>;
// Bytes with what the schedule poisons fresh memory with.
DeviceBuffer fresh(int64_t bytes, int poison) {
  std::vector<unsigned char> filled(static_cast<std::size_t>(bytes),
                                    static_cast<unsigned char>(poison));
  return DeviceBuffer({filled.data(), {bytes}, 1});
}

// Rates are of both axes, branch by branch; weights are (outputs, reduced, kh, kw); reduce and
// residual may be empty.
void esp(const Map& map, Array in, Array reduce, const std::vector<Array>& weights,
         const std::vector<int64_t>& rates, bool hierarchical, Array residual,
         const GivenEpilogue& given, Array out, int poison) {
  const auto& [sizes, dtype, channels_last] = map;
  DeviceBuffer input(in), reducing(reduce), added(residual), result(out);
  const Epilogue epilogue(given);
  std::vector<std::unique_ptr<DeviceBuffer>> kept;
  segkern::EspParams p{};
  p.batch = sizes[0];
  p.in_channels = sizes[1];
  p.height = sizes[2];
  p.width = sizes[3];
  p.reduced = weights.at(0).shape(1);
  p.kernel_h = weights[0].shape(2);
  p.kernel_w = weights[0].shape(3);
  p.branches = static_cast<int>(weights.size());
  for (int b = 0; b < p.branches; ++b) {
    kept.push_back(std::make_unique<DeviceBuffer>(weights[b]));
    p.rate_h[b] = rates.at(2 * b);
    p.rate_w[b] = rates.at(2 * b + 1);
    p.outputs[b] = weights[b].shape(0);
    p.out_channels += p.outputs[b];
    p.weight[b] = kept.back()->as();
  }
  p.hierarchical = hierarchical;
  p.element = simt::element_named(dtype);
  p.channels_last = channels_last;
  p.in = input.as();
  p.reduce = reducing.as();
  p.residual = added.as();
  epilogue.set(p);
  p.out = result.as();
  const segkern::EspPlan plan(p);
  const DeviceBuffer reduced = fresh(plan.reduced_bytes, poison);
  const DeviceBuffer packed = fresh(plan.weight_bytes, poison);
  segkern::esp_pyramid(p, reduced.as(), packed.as(), simt::Launcher{});
  result.copy_back();
}

}  // namespace

SIMT_MODULE(simt_esp, module) {
  module.def("esp", &esp);
}
