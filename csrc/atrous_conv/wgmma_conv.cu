#include "dense.h"

#include "../common/launch.cuh"
#include "wgmma_launch.cuh"

namespace segkern {
namespace {

// Launches as many blocks as the device has multiprocessors, or fewer where there are fewer tiles.
struct HopperLauncher {
  cudaStream_t stream;

  template <typename... Params, typename... Args>
  void persistent(void (*kernel)(Params...), int64_t tiles, int threads, int bytes,
                  Args... args) const {
    int device = 0, major = 0, minor = 0, multiprocessors = 0;
    STD_CUDA_CHECK(cudaGetDevice(&device));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    STD_CUDA_CHECK(
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    if (major != 9 || minor != 0) {
      throw std::runtime_error(
          "wgmma_conv2d: input must be on a GPU of compute capability 9.0, got " +
          std::to_string(major) + "." + std::to_string(minor));
    }
    cudaFuncAttributes attributes{};
    STD_CUDA_CHECK(cudaFuncGetAttributes(&attributes, kernel));
    if (attributes.sharedSizeBytes >= kWgmmaAbsent) {
      throw std::runtime_error(
          "wgmma_conv2d: segkern must be compiled for 9.0a, with the a, for this kernel");
    }
    STD_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    const int64_t blocks = tiles < multiprocessors ? tiles : multiprocessors;
    kernel<<<static_cast<unsigned>(blocks), threads, bytes, stream>>>(args...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace

void launch_wgmma_conv(const DenseParams& params, cudaStream_t stream) {
  wgmma_conv(params, HopperLauncher{stream});
}

}  // namespace segkern
