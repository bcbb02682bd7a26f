// Stands in for the CUDA runtime when a kernel file (.cuh) is compiled by g++ and run on the CPU.
//
// This folder comes first on the include path, so that `#include <cuda_runtime.h>` in a kernel file
// finds this file and the kernel needs no #ifdef. What it offers is what hardware defines, with one
// thread of execution (a fibre) per CUDA thread; what is stricter than hardware is listed in
// simt/scheduler.h. A host program runs kernels with simt::launch (simt/launch.h).
//
// Rules for a kernel file:
//   * dynamic shared memory is declared with SEGKERN_DYNAMIC_SHARED(type, name), below;
//   * __shared__ variables are trivially constructible and local to a kernel or device function;
//   * warp-synchronous code names its mask; spinning is done on atomics;
//   * local arrays stay small: a thread has 64 KB of stack.
//
// To put an operator on this rung, write bind_<op>.cpp (bind_max_pool.cpp is the model: it hands
// the operator's own choice of kernel and grid a launcher over simt::launch) and test_simt_<op>.py,
// which runs every case in all schedules with check_orders and a few of them with run_sanitized.
// planted.cuh and test_planted.py show what is caught, and how it reads.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>

#define SEGKERN_SIMT 1

#define __host__
#define __device__
#define __global__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
// A block stays on one OS thread, whose copy of the variable is the block's.
#define __shared__ static thread_local

/// Declares `type* name`, the block's dynamic shared memory. On the device it is
///   extern __shared__ __align__(16) unsigned char segkern_dynamic_shared[];
///   type* name = reinterpret_cast<type*>(segkern_dynamic_shared);
#define SEGKERN_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::simt::dynamic_shared())

// For declarations of launch functions that a kernel's header may hold.
using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0 };

#include "simt/atomics.h"
#include "simt/bits.h"
#include "simt/hopper.h"
#include "simt/launch.h"
#include "simt/math.h"
#include "simt/memory.h"
#include "simt/mma.h"
#include "simt/sync.h"
#include "simt/types.h"
#include "simt/warp.h"
