// The rung's model of execution: what barriers, warp operations and atomics ask of the scheduler.
//
// A block's threads are fibres on one OS thread. A fibre runs until it waits at a barrier or warp
// operation, or leaves the kernel; nothing else interrupts it. The scheduler then resumes whichever
// ready thread its order names: the lowest, the highest, or one drawn at random. With the first
// two, whole warps run far ahead of others, as they may on hardware. A kernel whose result depends
// on the order has a race.
//
// What is strict here, beyond hardware:
//   * A block barrier completes when every thread that has not left waits at the same source line.
//   * A warp operation completes when every lane of its mask that has not left waits in the same
//     operation with the same mask.
//   * A shuffle may not read a lane that has left, never existed or is outside the mask.
//   * __activemask() is the calling lane alone, the least that hardware promises.
//   * Shared memory holds a pattern that differs between orders when a block starts.
//
// What it does not show: two threads are never interrupted between two of these points, blocks wait
// for each other only through atomics, and a spin on plain or volatile memory never ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "error.h"

namespace simt {

enum class Order { kLane, kReversed, kShuffled };

/// How launches run: process-wide, set by the test between launches.
struct Schedule {
  Order order = Order::kLane;
  std::uint64_t seed = 0;  // of kShuffled: same seed, same order
  int workers = 1;         // OS threads that share the blocks of a grid
};
Schedule& schedule();

/// The byte that fills shared memory before each block, and that tests fill fresh outputs with.
/// It depends on the order, so that a value nobody wrote differs between orders.
unsigned char poison_byte();

enum class Operation : unsigned char {
  kSyncThreads,
  kSyncThreadsCount,
  kSyncThreadsAnd,
  kSyncThreadsOr,
  kSyncWarp,
  kShuffle,
  kShuffleUp,
  kShuffleDown,
  kShuffleXor,
  kAny,
  kAll,
  kBallot,
  kMatchAny,
  kMatchAll,
  kReduceAddSigned,
  kReduceAddUnsigned,
  kReduceMinSigned,
  kReduceMinUnsigned,
  kReduceMaxSigned,
  kReduceMaxUnsigned,
  kReduceAnd,
  kReduceOr,
  kReduceXor,
  kAllLanes,
};

/// Waits for the block. The predicate's count over the block's live threads is returned for
/// kSyncThreadsCount, whether it holds for all or any of them for kSyncThreadsAnd and
/// kSyncThreadsOr.
int block_barrier(Operation operation, bool predicate, Site site);

/// Waits for the lanes of `mask`. `value` is the lane's operand; `source` the lane a shuffle reads.
/// kAllLanes (a tile or matrix instruction) gives a pointer to the values of all 32 lanes.
std::uint64_t warp_operation(Operation operation, unsigned mask, std::uint64_t value, int source,
                             Site site);

/// Lane of the calling thread in its warp.
int lane_id();

/// Called by every atomic and fence: lets other threads run now and then, so that spinning on
/// memory makes progress (and a spin that never ends is reported).
void scheduling_point();

/// The block's dynamic shared memory, 16-byte aligned, of exactly the size given at launch.
void* dynamic_shared();

/// Ends the launch with an error that names the kernel, block and thread.
[[noreturn]] void fail(const std::string& message);

/// Scheduler steps taken by the block so far: the rung's clock.
std::uint64_t steps();

}  // namespace simt
