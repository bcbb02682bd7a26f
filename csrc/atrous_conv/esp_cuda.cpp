#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "esp_host.h"
#include "esp_plan.h"

namespace segkern {
namespace {

Tensor esp_pyramid_cuda(
    const Tensor& input, const std::optional<Tensor>& reduce_weight, std::vector<Tensor> weights,
    IntList rates, const std::optional<Tensor>& residual, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, const std::optional<Tensor>& slope, bool hierarchical,
    int64_t activation) {
  const OnDeviceOf device(input);
  return esp_pyramid_host(
      input, reduce_weight, weights, rates, residual, scale, shift, slope, hierarchical,
      activation, true, [&](const EspParams& p) {
        const EspPlan plan(p);
        const auto bytes = [&](int64_t count) {
          return empty_in_layout({count}, ScalarType::Byte, input, false);
        };
        Tensor reduced = bytes(plan.reduced_bytes), packed = bytes(plan.weight_bytes);
        launch_esp_pyramid(p, reduced.data_ptr(), packed.data_ptr(), device.stream());
      });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("esp_pyramid", TORCH_BOX(&esp_pyramid_cuda));
}

}  // namespace segkern
