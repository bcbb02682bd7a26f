// The one place where kernels are launched.
#pragma once

#include <stdexcept>
#include <string>

#include <torch/csrc/stable/macros.h>

#include "device.cuh"

namespace segkern {

// Launches `threads` threads, one work item each, in blocks of kBlockThreads on a stream; the
// kernel gets the arguments as they are. Returns without a launch where there is nothing to do.
struct CudaLauncher {
  cudaStream_t stream;
  static constexpr int64_t int32_limit = INT32_MAX;

  template <typename... Params, typename... Args>
  void operator()(void (*kernel)(Params...), int64_t threads, Args... args) const {
    if (threads <= 0) {
      return;
    }
    const int64_t blocks = (threads + kBlockThreads - 1) / kBlockThreads;
    if (blocks > INT32_MAX) {
      throw std::runtime_error("segkern: a kernel would need " + std::to_string(blocks) +
                               " blocks, more than a grid has");
    }
    kernel<<<static_cast<unsigned>(blocks), kBlockThreads, 0, stream>>>(args...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  // `blocks` blocks of kBlockThreads with so many bytes of dynamic shared memory, which may be more
  // than the 48 KB that need no permission.
  template <typename... Params, typename... Args>
  void with_shared(void (*kernel)(Params...), int64_t blocks, int bytes, Args... args) const {
    STD_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    if (blocks > INT32_MAX) {
      throw std::runtime_error("segkern: a kernel would need " + std::to_string(blocks) +
                               " blocks, more than a grid has");
    }
    kernel<<<static_cast<unsigned>(blocks), kBlockThreads, bytes, stream>>>(args...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
};

}  // namespace segkern
