// Sizes of grids.
#pragma once

#include "../common/device.cuh"

namespace segkern {

inline int64_t blocks_of(int64_t threads) {
  return (threads + kBlockThreads - 1) / kBlockThreads;
}

// Blocks for each of `units` that stride over at most `most` pieces of work, whose number is known
// only on the device: enough to fill it, and no more.
inline int64_t striding_blocks(int64_t most, int64_t units) {
  constexpr int64_t kEnough = 4096;
  const int64_t share = units < kEnough / 16 ? kEnough / units : 16;
  const int64_t wanted = blocks_of(most);
  return wanted < share ? wanted : share;
}

}  // namespace segkern
