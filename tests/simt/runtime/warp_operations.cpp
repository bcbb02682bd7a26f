// When a warp operation completes and what each lane gets from it. See block.h.
#include <algorithm>
#include <cstdio>

#include "block.h"
#include "names.h"

namespace simt {
namespace {

const char* const kNames[] = {
    "__syncthreads",     "__syncthreads_count", "__syncthreads_and", "__syncthreads_or",
    "__syncwarp",        "__shfl_sync",         "__shfl_up_sync",    "__shfl_down_sync",
    "__shfl_xor_sync",   "__any_sync",          "__all_sync",        "__ballot_sync",
    "__match_any_sync",  "__match_all_sync",    "__reduce_add_sync", "__reduce_add_sync",
    "__reduce_min_sync", "__reduce_min_sync",   "__reduce_max_sync", "__reduce_max_sync",
    "__reduce_and_sync", "__reduce_or_sync",    "__reduce_xor_sync", "a matrix instruction"};

std::uint32_t reduce(Operation operation, std::uint32_t a, std::uint32_t b) {
  const auto as_signed = [](std::uint32_t x) { return static_cast<std::int32_t>(x); };
  switch (operation) {
    case Operation::kReduceAddSigned:
    case Operation::kReduceAddUnsigned: return a + b;
    case Operation::kReduceMinSigned: return as_signed(a) < as_signed(b) ? a : b;
    case Operation::kReduceMinUnsigned: return std::min(a, b);
    case Operation::kReduceMaxSigned: return as_signed(a) > as_signed(b) ? a : b;
    case Operation::kReduceMaxUnsigned: return std::max(a, b);
    case Operation::kReduceAnd: return a & b;
    case Operation::kReduceOr: return a | b;
    default: return a ^ b;
  }
}

}  // namespace

const char* name(Operation operation) { return kNames[static_cast<int>(operation)]; }

std::string describe(uint3 v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}

std::string describe(Operation operation, Site site) {
  const std::string file = site.file;
  return std::string(name(operation)) + " (" + file.substr(file.rfind('/') + 1) + ":" +
         std::to_string(site.line) + ")";
}

std::string describe_mask(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

void BlockRunner::try_complete_warp_operation(int warp, unsigned mask) {
  const std::uint32_t lanes = live_[warp] & mask;
  if (lanes == 0 || (in_warp_operation_[warp] & lanes) != lanes) {
    return;
  }
  Thread* const threads = &threads_[warp * kWarpThreads];
  const Operation operation = threads[__builtin_ctz(lanes)].operation;
  // Lanes of the mask that wait elsewhere may still come; if they never do, the deadlock report
  // shows both places.
  for (std::uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const Thread& thread = threads[__builtin_ctz(rest)];
    if (thread.operation != operation || thread.mask != mask) {
      return;
    }
  }
  switch (operation) {
    case Operation::kSyncWarp: break;
    case Operation::kShuffle:
    case Operation::kShuffleUp:
    case Operation::kShuffleDown:
    case Operation::kShuffleXor: complete_shuffle(warp, lanes); break;
    case Operation::kAllLanes: complete_all_lanes(warp, lanes); break;
    default: complete_vote(warp, lanes);
  }
  for (std::uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    threads[__builtin_ctz(rest)].state = Thread::State::kRunnable;
  }
  in_warp_operation_[warp] &= ~lanes;
  ready_.insert(warp, lanes);
  idle_yields_ = 0;
}

void BlockRunner::complete_shuffle(int warp, unsigned lanes) {
  const int base = warp * kWarpThreads;
  for (std::uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    Thread& thread = threads_[base + lane];
    if ((lanes >> thread.source & 1) == 0) {
      const char* why = base + thread.source >= thread_count_     ? "does not exist in the block"
                        : (thread.mask >> thread.source & 1) == 0 ? "is not in the mask "
                                                                  : "has left the kernel";
      fail(base + lane,
           describe(thread.operation, thread.site) + ": lane " + std::to_string(lane) +
               " reads lane " + std::to_string(thread.source) + ", which " + why +
               ((thread.mask >> thread.source & 1) == 0 ? describe_mask(thread.mask) : ""));
    }
    thread.result = threads_[base + thread.source].value;
  }
}

void BlockRunner::complete_all_lanes(int warp, unsigned lanes) {
  const int base = warp * kWarpThreads;
  if (lanes != 0xffffffffu) {
    const Thread& thread = threads_[base + __builtin_ctz(lanes)];
    fail(base + __builtin_ctz(lanes), describe(thread.operation, thread.site) +
                                          ": lanes of the warp are missing or have left");
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    all_lanes_[warp][lane] = threads_[base + lane].value;
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    threads_[base + lane].result = reinterpret_cast<std::uintptr_t>(all_lanes_[warp].data());
  }
}

void BlockRunner::complete_vote(int warp, unsigned lanes) {
  Thread* const threads = &threads_[warp * kWarpThreads];
  const auto lanes_with = [&](std::uint64_t value) {
    std::uint32_t equal = 0;
    for (std::uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      if (threads[lane].value == value) {
        equal |= 1u << lane;
      }
    }
    return equal;
  };
  const Thread& first = threads[__builtin_ctz(lanes)];
  std::uint64_t common = 0;
  switch (first.operation) {
    case Operation::kAny: common = lanes_with(1) != 0; break;
    case Operation::kAll: common = lanes_with(1) == lanes; break;
    case Operation::kBallot: common = lanes_with(1); break;
    case Operation::kMatchAll: common = lanes_with(first.value) == lanes ? lanes : 0; break;
    case Operation::kMatchAny: break;
    default: {
      auto total = static_cast<std::uint32_t>(first.value);
      for (std::uint32_t rest = lanes & (lanes - 1); rest != 0; rest &= rest - 1) {
        total = reduce(first.operation, total,
                       static_cast<std::uint32_t>(threads[__builtin_ctz(rest)].value));
      }
      common = total;
    }
  }
  for (std::uint32_t rest = lanes; rest != 0; rest &= rest - 1) {
    Thread& thread = threads[__builtin_ctz(rest)];
    thread.result = first.operation == Operation::kMatchAny ? lanes_with(thread.value) : common;
  }
}

}  // namespace simt
