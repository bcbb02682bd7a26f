// The launches of the spatial pyramid; `launch` as in max_pool_launch.cuh.
#pragma once

#include "../common/kernel_dispatch.cuh"
#include "esp_pyramid.cuh"

namespace segkern {

// `reduced` and `packed` are the buffers of esp_plan.h, aligned to 16 bytes as all of `p`.
template <typename Launch>
void esp_pyramid(EspParams p, void* reduced, void* packed, const Launch& launch) {
  const EspPlan plan(p);
  for (int b = 0; b < p.branches; ++b) {  // a longer rate meets the map no more than its length
    p.rate_h[b] = std::min(p.rate_h[b], p.height);
    p.rate_w[b] = std::min(p.rate_w[b], p.width);
  }
  const auto run = [&](auto tag) {
    using T = typename decltype(tag)::type;
    auto* const words = static_cast<uint32_t*>(packed);
    launch(esp_prepare_kernel<T>, int64_t{plan.prepare_blocks} * kBlockThreads, p, plan, words,
           static_cast<T*>(reduced));
    launch(p.channels_last ? esp_pyramid_kernel<T, true> : esp_pyramid_kernel<T, false>,
           int64_t{plan.pyramid_blocks} * kBlockThreads, p, plan,
           static_cast<const uint32_t*>(words), static_cast<const T*>(reduced));
  };
  switch (p.element) {
    case Element::kFloat16:
      return run(TypeTag<__half>{});
    case Element::kBFloat16:
      return run(TypeTag<__nv_bfloat16>{});
    default:
      return run(TypeTag<float>{});
  }
}

}  // namespace segkern
