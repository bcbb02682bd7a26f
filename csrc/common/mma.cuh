// Tensor-core tiles of 16-bit elements, and of float32 rounded to TF32, and copies to shared memory
// that overlap with work, for compute capability 8.0 and up. The tests' stand-in headers define the
// same for the CPU (tests/simt/include/simt/mma.h).
#pragma once

#include "device.cuh"

namespace segkern {

#if defined(SEGKERN_SIMT)

using simt::AsyncCopies;
using simt::load_matrices;
using simt::load_matrices_transposed;
using simt::multiply_add;
using simt::round_operand;

#else

// Copies of 16 bytes from global to shared memory, in groups that are waited for in order. What
// other threads copied is there after a barrier behind the wait.
struct AsyncCopies {
  // Zeros where `valid` is false; `from` must be an address of the tensor all the same.
  __device__ __forceinline__ void copy(void* to, const void* from, bool valid) {
    const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from),
                 "r"(bytes)
                 : "memory");
  }
  __device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
  // Until at most `kPending` of the committed groups may be unfinished.
  template <int kPending>
  __device__ __forceinline__ void wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
  }
};

// Four 8x8 matrices: lane 8 i + r gives the address of row r of matrix i; of matrix i, lane l gets
// elements 2 (l % 4) and the next of row l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared)
               : "memory");
}

// The same of the transposed matrices: lane l gets elements l / 4 of rows 2 (l % 4) and the next.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&to)[4], const void* row) {
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(shared)
               : "memory");
}

// A word of a fragment as multiply_add<T> takes it: float32 is rounded to TF32, to the nearest.
template <typename T>
__device__ __forceinline__ uint32_t round_operand(uint32_t word) {
  return word;
}
template <>
__device__ __forceinline__ uint32_t round_operand<float>(uint32_t word) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(word)));
  return rounded;
}

// sums += a b in PTX's fragments: of mma.m16n8k16 for 16-bit elements, of mma.m16n8k8 for float32
// that has been rounded to TF32. Either way a 16-byte row of load_matrices is half of the depth.
template <typename T>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1);
#define SEGKERN_MULTIPLY_ADD(type, name, depth)                                                 \
  template <>                                                                                   \
  __device__ __forceinline__ void multiply_add<type>(float (&sums)[4], const uint32_t(&a)[4],   \
                                                     uint32_t b0, uint32_t b1) {                \
    asm volatile("mma.sync.aligned.m16n8k" depth ".row.col.f32." name "." name                  \
                 ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"         \
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])                   \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));               \
  }
SEGKERN_MULTIPLY_ADD(__half, "f16", "16")
SEGKERN_MULTIPLY_ADD(__nv_bfloat16, "bf16", "16")
SEGKERN_MULTIPLY_ADD(float, "tf32", "8")
#undef SEGKERN_MULTIPLY_ADD

#endif

template <typename T>
__device__ __forceinline__ void round_operands(uint32_t (&words)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words[i] = round_operand<T>(words[i]);
  }
}

}  // namespace segkern
