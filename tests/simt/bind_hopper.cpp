// Python module simt_hopper: the dense convolution for Hopper, through the same tensor maps, choice
// of kernel and grid as on the device (csrc/atrous_conv/wgmma_launch.cuh), and mistakes planted in
// the use of its instructions.
#include "atrous_conv/wgmma_launch.cuh"
#include "dense_binding.h"
#include "planted_hopper.cuh"

using simt::Array;
using simt::DeviceBuffer;

namespace {

// A device of few multiprocessors: blocks that work several tiles, and several blocks.
struct PersistentLauncher {
  int64_t multiprocessors;

  template <typename... Params, typename... Args>
  void persistent(void (*kernel)(Params...), int64_t tiles, int threads, int bytes,
                  Args... args) const {
    simt::allow_dynamic_shared(kernel, bytes);
    const int64_t blocks = tiles < multiprocessors ? tiles : multiprocessors;
    simt::launch(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads), bytes,
                 args...);
  }
};

void dense(const Geometry& geometry, int64_t out_channels, int64_t multiprocessors, bool flip,
           int activation, Array in, Array weight, Array scale, Array shift, Array slope,
           Array residual, Array out) {
  run_dense(geometry, out_channels, flip, {activation, scale, shift, slope}, in, weight, residual,
            out, [&](const auto& p) {
              segkern::wgmma_conv(p, PersistentLauncher{multiprocessors});
            });
}

// One product of the planted kernel, 64 x 64 by 128 x 64 along the depth, with a mistake or none.
void planted_product(const std::string& mistake, Array a, Array b, Array sums) {
  DeviceBuffer left(a), right(b), result(sums);
  const auto boxes = [](const DeviceBuffer& data, int64_t rows) {
    return segkern::make_tensor_map(
        {data.as(), segkern::Element::kFloat16, 3, {64, rows, 1}, {64, rows, 1}});
  };
  simt::allow_dynamic_shared(planted::product, planted::kProductBytes);
  simt::launch(planted::product, 1, 128, planted::kProductBytes, planted::mistake_named(mistake),
               boxes(left, 64), boxes(right, 128), result.as<float>());
  result.copy_back();
}

}  // namespace

SIMT_MODULE(simt_hopper, module) {
  module.def("dense", &dense);
  module.def("planted_product", &planted_product);
}
