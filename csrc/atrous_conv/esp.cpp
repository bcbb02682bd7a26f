#include "esp.h"

#include <torch/csrc/stable/library.h>

#include "esp_host.h"

namespace segkern {
namespace {

Tensor esp_pyramid_cpu(
    const Tensor& input, const std::optional<Tensor>& reduce_weight, std::vector<Tensor> weights,
    IntList rates, const std::optional<Tensor>& residual, const std::optional<Tensor>& scale,
    const std::optional<Tensor>& shift, const std::optional<Tensor>& slope, bool hierarchical,
    int64_t activation) {
  return esp_pyramid_host(input, reduce_weight, weights, rates, residual, scale, shift, slope,
                          hierarchical, activation, false,
                          [](const EspParams& p) { esp_cpu(p); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("esp_pyramid", TORCH_BOX(&esp_pyramid_cpu));
}

}  // namespace segkern
