// simt::launch(kernel, grid, block, shared_bytes, args...): what `kernel<<<grid, block,
// shared_bytes>>>(args...)` is on the device. Returns when the grid has finished; throws
// simt::Error for what hardware would refuse or not survive.
#pragma once

#include <cstddef>
#include <functional>
#include <tuple>
#include <utility>

#include "scheduler.h"
#include "types.h"

namespace simt {

/// Limits of every architecture the library is compiled for (compute capability 8.0 to 12.0).
struct Limits {
  static constexpr unsigned kThreadsPerBlock = 1024;
  static constexpr unsigned kBlockZ = 64;
  static constexpr unsigned kGridX = 2147483647;
  static constexpr unsigned kGridYZ = 65535;
  static constexpr std::size_t kSharedBytes = 48 * 1024;  // static and dynamic, without opting in
  static constexpr std::size_t kSharedBytesOptIn = 227 * 1024;  // compute capability 9.0
  static constexpr std::size_t kParameterBytes = 4096;
};

/// A grid to run: the kernel's address (its name and static shared memory are looked up by it) and
/// a thread's work.
struct Launch {
  const void* kernel;
  dim3 grid;
  dim3 block;
  std::size_t dynamic_shared_bytes;
  std::function<void()> thread;
};

void run(const Launch& launch);

/// cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes).
void allow_dynamic_shared(const void* kernel, std::size_t bytes);

template <typename... P>
void allow_dynamic_shared(void (*kernel)(P...), std::size_t bytes) {
  allow_dynamic_shared(reinterpret_cast<const void*>(kernel), bytes);
}

template <typename... P, typename... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared_bytes, A&&... args) {
  static_assert((sizeof(P) + ... + 0) <= Limits::kParameterBytes, "kernel parameters exceed 4 KB");
  // Every thread gets its own copy of the parameters, as on the device.
  const std::tuple<P...> parameters(std::forward<A>(args)...);
  run({reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
       [&] { std::apply(kernel, parameters); }});
}

}  // namespace simt
