// Block barriers, fences and the clock.
#pragma once

#include "scheduler.h"

inline void __syncthreads(simt::Site site = simt::Site::here()) {
  simt::block_barrier(simt::Operation::kSyncThreads, false, site);
}

inline int __syncthreads_count(int predicate, simt::Site site = simt::Site::here()) {
  return simt::block_barrier(simt::Operation::kSyncThreadsCount, predicate != 0, site);
}

inline int __syncthreads_and(int predicate, simt::Site site = simt::Site::here()) {
  return simt::block_barrier(simt::Operation::kSyncThreadsAnd, predicate != 0, site);
}

inline int __syncthreads_or(int predicate, simt::Site site = simt::Site::here()) {
  return simt::block_barrier(simt::Operation::kSyncThreadsOr, predicate != 0, site);
}

// Fibres of one block share an OS thread; blocks on other OS threads need a real fence.
inline void __threadfence() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  simt::scheduling_point();
}
inline void __threadfence_block() { __threadfence(); }
inline void __threadfence_system() { __threadfence(); }

inline void __nanosleep(unsigned) { simt::scheduling_point(); }

inline long long clock64() { return static_cast<long long>(simt::steps()); }

[[noreturn]] inline void __trap() { simt::fail("__trap"); }
