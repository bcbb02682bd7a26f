// What kernels share: vectors of elements, comparison types, division of work. No torch, no host
// code; tests compile the kernels for the CPU against stand-ins for the three CUDA headers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

// Dynamic shared memory of a kernel; the tests' stand-in headers define it for the CPU.
#ifndef SEGKERN_DYNAMIC_SHARED
#define SEGKERN_DYNAMIC_SHARED(type, name)                                \
  extern __shared__ __align__(16) unsigned char segkern_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(segkern_dynamic_shared)
#endif

namespace segkern {

constexpr int kBlockThreads = 256;
constexpr unsigned kFullWarp = 0xffffffffu;

// N elements moved by one instruction.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vec {
  T lane[N];
};

template <typename T, int N>
__device__ __forceinline__ Vec<T, N> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T, N>*>(from);
}

template <typename T, int N>
__device__ __forceinline__ void store_vec(T* to, const Vec<T, N>& vec) {
  *reinterpret_cast<Vec<T, N>*>(to) = vec;
}

// The type that elements are compared and summed in: float for half types.
__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
struct Narrow {
  static __device__ __forceinline__ T from(T v) { return v; }
};
template <>
struct Narrow<__half> {
  static __device__ __forceinline__ __half from(float v) { return __float2half_rn(v); }
};
template <>
struct Narrow<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 from(float v) { return __float2bfloat16_rn(v); }
};

template <typename index_t>
__device__ __forceinline__ index_t thread_index() {
  return static_cast<index_t>(blockIdx.x) * static_cast<index_t>(kBlockThreads) +
         static_cast<index_t>(threadIdx.x);
}

// Quotient and remainder in one step; index_t is 32 bits where the host proved that enough.
template <typename index_t>
struct Split {
  index_t outer, inner;
  __device__ __forceinline__ Split(index_t value, int64_t divisor)
      : outer(value / static_cast<index_t>(divisor)),
        inner(value - outer * static_cast<index_t>(divisor)) {}
};

}  // namespace segkern
