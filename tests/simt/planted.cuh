// Kernels with known behaviour: one of each kind the rung must run, and one of each kind it must
// catch. tests/simt/test_planted.py says what is expected of each.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace planted {

constexpr int kBlock = 256;

// Correct: sum of `n` values. Warp shuffle, shared memory, barrier, shuffle, one atomic per block.
__global__ void block_sum(const float* __restrict__ in, float* __restrict__ out, int n) {
  __shared__ float partial[kBlock / 32];
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float value = i < n ? in[i] : 0.0f;
  for (int step = 16; step > 0; step /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, step);
  }
  if (threadIdx.x % 32 == 0) {
    partial[threadIdx.x / 32] = value;
  }
  __syncthreads();
  if (threadIdx.x >= kBlock / 32) {
    return;
  }
  value = partial[threadIdx.x];
  for (int step = kBlock / 64; step > 0; step /= 2) {
    value += __shfl_down_sync((1u << kBlock / 32) - 1, value, step, kBlock / 32);
  }
  if (threadIdx.x == 0) {
    atomicAdd(out, value);
  }
}

// Reverses each block's values through shared memory. Without the barrier it is a race.
template <bool kBarrier>
__global__ void reverse_block(const int* in, int* out) {
  __shared__ int tile[kBlock];
  tile[threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x];
  if (kBarrier) {
    __syncthreads();
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// Every thread reads, adds and writes without an atomic; the barrier in between makes the loss
// visible.
__global__ void lost_update(int* counter) {
  const int seen = *counter;
  __syncwarp();
  *counter = seen + static_cast<int>(threadIdx.x);
}

__global__ void write_at(float* out, int n, int shift) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < n) {
    out[i + shift] = 1.0f;
  }
}

__global__ void read_dynamic_shared(float* out, int index) {
  SEGKERN_DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + index];
}

__global__ void read_static_shared(float* out, int index) {
  __shared__ float tile[32];
  tile[threadIdx.x] = static_cast<float>(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + index];
}

__global__ void signed_overflow(int* out, int start) {
  out[threadIdx.x] = start + static_cast<int>(threadIdx.x);
}

__global__ void shift_too_far(int* out, int bits) {
  out[threadIdx.x] = 1 << (bits + static_cast<int>(threadIdx.x));
}

__global__ void load_float4(const float* in, float4* out, int shift) {
  out[threadIdx.x] = *reinterpret_cast<const float4*>(in + shift + 4 * threadIdx.x);
}

// The two halves of a block wait at different barriers.
__global__ void two_barriers(int* out) {
  if (threadIdx.x < blockDim.x / 2) {
    __syncthreads();
  } else {
    out[threadIdx.x] = 1;
    __syncthreads();
  }
}

// Half of a warp waits for the block, the other half for the warp.
__global__ void barrier_and_shuffle(int* out) {
  int value = static_cast<int>(threadIdx.x);
  if (threadIdx.x % 32 < 16) {
    __syncthreads();
  } else {
    value = __shfl_xor_sync(0xffffffffu, value, 1);
  }
  out[threadIdx.x] = value;
}

// Threads beyond n leave before the barrier: hardware counts them as arrived.
__global__ void early_exit(const int* in, int* out, int n) {
  __shared__ int tile[kBlock];
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) {
    return;
  }
  tile[i] = in[i];
  __syncthreads();
  out[i] = tile[n - 1 - i];
}

// Lane 0 reads lane 31, which leaves first when `leave` is set.
__global__ void shuffle_from_left(int* out, bool leave) {
  if (leave && threadIdx.x == 31) {
    return;
  }
  out[threadIdx.x] = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x), 31);
}

__global__ void shuffle_outside_mask(int* out) {
  if (threadIdx.x >= 16) {
    return;
  }
  out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, static_cast<int>(threadIdx.x), 16);
}

__global__ void not_in_own_mask(int* out) { out[threadIdx.x] = __any_sync(0x1u, 1); }

// Waits for a flag that nobody sets.
__global__ void spin_forever(int* flag) {
  while (atomicAdd(flag, 0) == 0) {
  }
}

// A lock: thread after thread adds to a plain counter. Works only if a spinning thread gives way.
__global__ void spin_lock(int* lock, int* counter) {
  while (atomicCAS(lock, 0, 1) != 0) {
  }
  const int seen = *counter;
  __threadfence();
  *counter = seen + 1;
  atomicExch(lock, 0);
}

__global__ void uninitialised_static_shared(unsigned* out) {
  __shared__ unsigned tile[32];
  if (threadIdx.x >= 16) {
    tile[threadIdx.x] = threadIdx.x;
  }
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void uninitialised_dynamic_shared(unsigned* out) {
  SEGKERN_DYNAMIC_SHARED(unsigned, tile);
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void static_shared_40k(int* out) {
  __shared__ int tile[10 * 1024];
  tile[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

__device__ inline int deep(int depth) {
  volatile char frame[512];
  frame[depth % 512] = static_cast<char>(depth);
  return depth == 0 ? frame[0] : deep(depth - 1) + frame[depth % 512];
}
__global__ void recurse(int* out, int depth) { out[threadIdx.x] = deep(depth); }

// Each thread writes its linear place in grid and block.
__global__ void coordinates(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  out[block * threads + thread] = static_cast<int>(block * threads + thread);
}

// One row of results per warp intrinsic, kWarpRows in all, for lane values in[32]. The oracle is in
// the test.
constexpr int kWarpRows = 18;
__global__ void warp_intrinsics(const int* in, int* out) {
  constexpr unsigned kAll = 0xffffffffu;
  const int lane = static_cast<int>(threadIdx.x);
  const int value = in[lane];
  int row = 0;
  const auto put = [&](auto result) { out[32 * row++ + lane] = static_cast<int>(result); };
  put(__shfl_sync(kAll, value, 5));
  put(__shfl_sync(kAll, value, lane + 3, 8));
  put(__shfl_up_sync(kAll, value, 3));
  put(__shfl_up_sync(kAll, value, 2, 16));
  put(__shfl_down_sync(kAll, value, 7));
  put(__shfl_down_sync(kAll, value, 1, 4));
  put(__shfl_xor_sync(kAll, value, 9));
  put(__shfl_xor_sync(kAll, value, 12, 8));
  put(__any_sync(kAll, value == 3));
  put(__all_sync(kAll, value >= -100));
  put(__ballot_sync(kAll, value > 0));
  put(__match_any_sync(kAll, value));
  put(__reduce_add_sync(kAll, value));
  put(__reduce_min_sync(kAll, value));
  put(__reduce_max_sync(kAll, static_cast<unsigned>(value)));
  put(__reduce_xor_sync(kAll, static_cast<unsigned>(value)));
  put(__popc(static_cast<unsigned>(value)) + __clz(value) + __ffs(value));
  put(__brev(static_cast<unsigned>(value)));
}

// The halves of each warp work apart, each with its own mask: sums of 16 and maxima of 16.
__global__ void split_warp(const int* in, int* out) {
  int value = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    for (int step = 8; step > 0; step /= 2) {
      value += __shfl_xor_sync(0x0000ffffu, value, step);
    }
  } else {
    value = __reduce_max_sync(0xffff0000u, value);
    __syncwarp(0xffff0000u);
  }
  __syncwarp();
  out[threadIdx.x] = value;
}

// Block-wide votes over in[]: three results per thread.
__global__ void block_votes(const int* in, int* out) {
  const int value = in[threadIdx.x];
  out[3 * threadIdx.x] = __syncthreads_count(value > 0);
  out[3 * threadIdx.x + 1] = __syncthreads_and(value > 0);
  out[3 * threadIdx.x + 2] = __syncthreads_or(value > 0);
}

// Atomics of all threads on one cell each, from out[0] on; `sum` for the type under test.
template <typename T>
__global__ void atomic_sum(const T* in, T* sum) {
  atomicAdd(sum, in[blockIdx.x * blockDim.x + threadIdx.x]);
}
__global__ void atomic_integers(const int* in, int* out) {
  const int value = in[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(out, value);
  atomicMax(out + 1, value);
  atomicMin(out + 2, value);
  atomicOr(out + 3, value);
  atomicAnd(out + 4, value);
  atomicXor(out + 5, value);
  for (int seen = out[6]; seen < value;) {
    const int before = atomicCAS(out + 6, seen, value);
    if (before == seen) {
      break;
    }
    seen = before;
  }
}

// scalar_t -> float -> scalar_t, and the four operations; out holds 6 rows of n.
template <typename scalar_t>
__global__ void small_float_arithmetic(const scalar_t* a, const scalar_t* b, scalar_t* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) {
    return;
  }
  out[i] = static_cast<scalar_t>(static_cast<float>(a[i]));
  out[n + i] = a[i] + b[i];
  out[2 * n + i] = a[i] - b[i];
  out[3 * n + i] = a[i] * b[i];
  out[4 * n + i] = a[i] / b[i];
  out[5 * n + i] = __hfma(a[i], b[i], a[i]);
}
template <typename scalar_t>
__global__ void widen(const scalar_t* in, float* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) {
    out[i] = static_cast<float>(in[i]);
  }
}
template <typename scalar_t>
__global__ void narrow(const float* in, scalar_t* out, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) {
    out[i] = static_cast<scalar_t>(in[i]);
  }
}

}  // namespace planted
