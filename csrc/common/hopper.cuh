// Hopper's own instructions (compute capability 9.0, compiled for sm_90a): barriers in shared
// memory that count bytes, boxes of tensors copied by hardware, products of a warpgroup. PTX ISA,
// sections mbarrier, cp.async.bulk.tensor and wgmma. The tests' stand-in headers define the same
// for the CPU (tests/simt/include/simt/hopper.h); what descriptors hold is made here for both.
#pragma once

#include "device.cuh"
#include "tensor_map.h"

// Whether device code being compiled now may use these instructions.
#if defined(SEGKERN_SIMT) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define SEGKERN_ON_HOPPER 1
#else
#define SEGKERN_ON_HOPPER 0
#endif

namespace segkern {

// Bytes of a row of an operand in shared memory, and the alignment of its first row: eight rows of
// 128 bytes are the pattern in which 16-byte chunk c of row r lies at place c ^ r.
constexpr int kSwizzleRow = 128;
constexpr int kSwizzleAlignment = 1024;

#if defined(SEGKERN_SIMT)

using simt::arrive;
using simt::arrive_expecting;
using simt::grow_registers;
using simt::init_barrier;
using simt::load_box;
using simt::publish_barriers;
using simt::shared_address;
using simt::shrink_registers;
using simt::wait_for;
using simt::WarpgroupProducts;

#else

__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}

#if SEGKERN_ON_HOPPER

// A barrier's phase ends after `arrivals` arrivals, and when all bytes that they expect are there.
__device__ __forceinline__ void init_barrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}

// After the last init_barrier and in front of __syncthreads: the copy engine sees the barriers too.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

// Arrives and adds to the bytes that the phase waits for.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}

// Until the phase of this parity has ended; before the first phase ends, that of parity 1 has.
__device__ __forceinline__ void wait_for(uint64_t* barrier, uint32_t parity) {
  uint32_t done = 0;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier)), "r"(parity)
        : "memory");
  } while (done == 0);
}

// Copies the box of `map` at these coordinates, the innermost first, to shared memory in the
// pattern above; what lies outside the tensor is zero. All bytes of the box count towards the
// barrier.
__device__ __forceinline__ void load_box(void* to, const TensorMap& map, uint64_t* barrier, int c0,
                                         int c1, int c2) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
      : "memory");
}
__device__ __forceinline__ void load_box(void* to, const TensorMap& map, uint64_t* barrier, int c0,
                                         int c1, int c2, int c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

// Registers of each thread of a warpgroup, from here on.
template <int kCount>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

#define SEGKERN_SUMS_4(s, i) "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3])
#define SEGKERN_SUMS_16(s, i)                                                  \
  SEGKERN_SUMS_4(s, i), SEGKERN_SUMS_4(s, i + 4), SEGKERN_SUMS_4(s, i + 8),    \
      SEGKERN_SUMS_4(s, i + 12)
#define SEGKERN_SUMS_64(s, i)                                                      \
  SEGKERN_SUMS_16(s, i), SEGKERN_SUMS_16(s, i + 16), SEGKERN_SUMS_16(s, i + 32),   \
      SEGKERN_SUMS_16(s, i + 48)
#define SEGKERN_NAMES_64                                                                     \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, "    \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "    \
  "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "    \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SEGKERN_NAMES_128                                                                    \
  SEGKERN_NAMES_64                                                                           \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, "  \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "    \
  "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, " \
  "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

template <typename T>
__device__ __forceinline__ void warpgroup_multiply(float (&sums)[64], uint64_t a, uint64_t b);
template <typename T>
__device__ __forceinline__ void warpgroup_multiply(float (&sums)[128], uint64_t a, uint64_t b);

#define SEGKERN_WARPGROUP_MULTIPLY(type, name)                                                   \
  template <>                                                                                    \
  __device__ __forceinline__ void warpgroup_multiply<type>(float(&sums)[64], uint64_t a,         \
                                                           uint64_t b) {                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                    \
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name                    \
                 " {" SEGKERN_NAMES_64 "}, %64, %65, p, 1, 1, 0, 0;\n}"                          \
                 : SEGKERN_SUMS_64(sums, 0)                                                      \
                 : "l"(a), "l"(b), "r"(1));                                                      \
  }                                                                                              \
  template <>                                                                                    \
  __device__ __forceinline__ void warpgroup_multiply<type>(float(&sums)[128], uint64_t a,        \
                                                           uint64_t b) {                         \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"                                   \
                 "wgmma.mma_async.sync.aligned.m64n256k16.f32." name "." name                    \
                 " {" SEGKERN_NAMES_128 "}, %128, %129, p, 1, 1, 0, 0;\n}"                       \
                 : SEGKERN_SUMS_64(sums, 0), SEGKERN_SUMS_64(sums, 64)                           \
                 : "l"(a), "l"(b), "r"(1));                                                      \
  }
SEGKERN_WARPGROUP_MULTIPLY(__half, "f16")
SEGKERN_WARPGROUP_MULTIPLY(__nv_bfloat16, "bf16")
#undef SEGKERN_WARPGROUP_MULTIPLY
#undef SEGKERN_NAMES_128
#undef SEGKERN_NAMES_64
#undef SEGKERN_SUMS_64
#undef SEGKERN_SUMS_16
#undef SEGKERN_SUMS_4

// Products of a warpgroup, in groups that finish in order. Between begin and the wait for their
// group the sums, and both operands in shared memory, belong to the tensor cores.
struct WarpgroupProducts {
  // What this thread did to its sums is done.
  __device__ __forceinline__ void begin() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  }
  // sums += a b for a of 64 x 16, b of 16 x (2 kSums), in PTX's fragment of wgmma: sums[4 j + 2 i +
  // k] is of row 16 (warp % 4) + 8 i + lane / 4 and column 8 j + 2 (lane % 4) + k. Both operands
  // are descriptors of rows along the depth; see operand_rows.
  template <typename T, int kSums>
  __device__ __forceinline__ void multiply(float (&sums)[kSums], uint64_t a, uint64_t b) {
    warpgroup_multiply<T>(sums, a, b);
  }
  __device__ __forceinline__ void commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  }
  // Until at most `kPending` groups may be unfinished.
  template <int kPending, int kSums>
  __device__ __forceinline__ void wait(float (&sums)[kSums]) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
    if (kPending == 0) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
        asm volatile("" : "+f"(sums[i])::"memory");  // no read of them moves in front of the wait
      }
    }
  }
};

#endif  // SEGKERN_ON_HOPPER
#endif  // SEGKERN_SIMT

// The descriptor of an operand of WarpgroupProducts::multiply: rows of 128 bytes along the depth
// in the pattern above, `rows` the first of them. Bits 0-13: address / 16; 16-29: 1, unused here;
// 32-45: bytes from eight rows to the next eight / 16; 62-63: 1 for this pattern.
__device__ __forceinline__ uint64_t operand_rows(const void* rows) {
  constexpr uint64_t kPattern = uint64_t{1} << 62 | uint64_t{kSwizzleAlignment / 16} << 32 |
                                uint64_t{1} << 16;
  return kPattern | (shared_address(rows) & 0x3ffff) >> 4;
}

// What is added to it for the next 16 elements of two bytes of every row.
constexpr uint64_t kNextDepth = 16 * 2 / 16;

}  // namespace segkern
