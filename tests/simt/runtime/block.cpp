// One block in execution: start, the scheduling loop, barriers, scheduling points, faults. See
// block.h; what warp operations compute is in warp_operations.cpp.
#include "block.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include "names.h"

__thread uint3 threadIdx;
__thread uint3 blockIdx;
__thread dim3 blockDim;
__thread dim3 gridDim;

namespace simt {
namespace {

__thread BlockRunner* active_runner = nullptr;

// A thread that only spins gives way at every 32nd atomic or fence (in shuffled order at one in
// four, drawn). After this many in a row without any thread leaving or completing a barrier, nobody
// is waiting for anything that will come.
constexpr std::uint64_t kYieldPeriod = 32;
constexpr std::uint64_t kMaxIdleYields = 1u << 20;

uint3 coordinates(std::uint64_t index, const dim3& extent) {
  const std::uint64_t rows = index / extent.x;
  return {static_cast<unsigned>(index % extent.x), static_cast<unsigned>(rows % extent.y),
          static_cast<unsigned>(rows / extent.y)};
}

std::uint64_t mix(std::uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

}  // namespace

bool ThreadSet::empty() const {
  return std::all_of(words_.begin(), words_.end(), [](std::uint32_t word) { return word == 0; });
}

int ThreadSet::lowest() const {
  int warp = 0;
  while (words_[warp] == 0) {
    ++warp;
  }
  return warp * kWarpThreads + __builtin_ctz(words_[warp]);
}

int ThreadSet::highest() const {
  int warp = kMaxWarps - 1;
  while (words_[warp] == 0) {
    --warp;
  }
  return warp * kWarpThreads + (31 - __builtin_clz(words_[warp]));
}

int ThreadSet::next_from(int start) const {
  const int first = start / kWarpThreads;
  const std::uint32_t tail = words_[first] & (~0u << start % kWarpThreads);
  if (tail != 0) {
    return first * kWarpThreads + __builtin_ctz(tail);
  }
  for (int step = 1; step <= kMaxWarps; ++step) {
    const int warp = (first + step) % kMaxWarps;
    if (words_[warp] != 0) {
      return warp * kWarpThreads + __builtin_ctz(words_[warp]);
    }
  }
  return -1;
}

BlockRunner::~BlockRunner() { std::free(dynamic_shared_); }

BlockRunner* BlockRunner::active() { return active_runner; }

std::uint64_t BlockRunner::random() { return mix(random_state_++); }

void BlockRunner::begin(const Launch& launch, const Schedule& schedule) {
  launch_ = &launch;
  schedule_ = &schedule;
  kernel_ = &kernel_info(launch.kernel);
  static_shared_ = StaticShared(*kernel_);
}

void BlockRunner::run(std::uint64_t index) {
  start(index);
  try {
    while (live_count_ > 0) {
      if (ready_.empty()) {
        if (yielded_.empty()) {
          report_deadlock();
        }
        std::swap(ready_, yielded_);
      }
      resume(choose());
      if (fault_address_ != nullptr) {
        fail(current_, describe_fault());
      }
      if (failed_) {
        throw Error(error_);
      }
    }
  } catch (...) {
    finish();
    throw;
  }
  finish();
}

void BlockRunner::start(std::uint64_t index) {
  const Launch& launch = *launch_;
  random_state_ = mix(schedule_->seed) ^ mix(index);
  block_index_ = coordinates(index, launch.grid);
  thread_count_ = live_count_ = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  threads_.assign(thread_count_, Thread{});
  ready_ = yielded_ = ThreadSet{};
  live_.fill(0);
  in_warp_operation_.fill(0);
  for (int thread = 0; thread < thread_count_; ++thread) {
    ready_.insert(thread);
    live_[thread / kWarpThreads] |= 1u << thread % kWarpThreads;
  }
  at_barrier_count_ = 0;
  steps_ = idle_yields_ = 0;
  failed_ = false;
  fault_address_ = nullptr;

  blockIdx = block_index_;
  blockDim = launch.block;
  gridDim = launch.grid;
  // Exactly the bytes asked for, from malloc: AddressSanitizer sees the first byte beyond.
  dynamic_shared_ = std::malloc(launch.dynamic_shared_bytes);
  if (launch.dynamic_shared_bytes > 0) {
    std::memset(dynamic_shared_, poison_byte(), launch.dynamic_shared_bytes);
  }
  static_shared_.fill(poison_byte());
}

void BlockRunner::finish() noexcept {
  for (Thread& thread : threads_) {
    if (thread.stack != nullptr) {
      stacks_.reclaim(thread.stack);
    }
  }
  threads_.clear();
  std::free(dynamic_shared_);
  dynamic_shared_ = nullptr;
}

int BlockRunner::choose() {
  switch (schedule_->order) {
    case Order::kLane: return ready_.lowest();
    case Order::kReversed: return ready_.highest();
    case Order::kShuffled: break;
  }
  return ready_.next_from(static_cast<int>(random() % thread_count_));
}

void BlockRunner::resume(int index) {
  Thread& thread = threads_[index];
  if (thread.state == Thread::State::kNew) {
    thread.stack = stacks_.take();
    prepare_fiber(thread.fiber, thread.stack, &BlockRunner::thread_main);
    thread.state = Thread::State::kRunnable;
  }
  ready_.erase(index);
  current_ = index;
  ++steps_;
  threadIdx = coordinates(index, launch_->block);
  active_runner = this;
  switch_fiber(scheduler_, thread.fiber);
  active_runner = nullptr;
  if (thread.state == Thread::State::kLeft) {
    stacks_.give(thread.stack);
    thread.stack = nullptr;
    if (!failed_) {
      on_left(index);
    }
  }
}

void BlockRunner::suspend() { switch_fiber(threads_[current_].fiber, scheduler_); }

void BlockRunner::thread_main() {
  BlockRunner* self = active_runner;
  enter_fiber(self->scheduler_);
  Thread& thread = self->threads_[self->current_];
  try {
    self->launch_->thread();
  } catch (const std::exception& error) {
    // Carried to the scheduler's stack by hand: no exception may cross a switch.
    self->failed_ = true;
    self->error_ = error.what();
  }
  thread.state = Thread::State::kLeft;
  leave_fiber(thread.fiber, self->scheduler_);
}

// A thread that leaves counts as arrived wherever others wait for it.
void BlockRunner::on_left(int thread) {
  const int warp = thread / kWarpThreads;
  live_[warp] &= ~(1u << thread % kWarpThreads);
  --live_count_;
  idle_yields_ = 0;
  for (std::uint32_t waiting = in_warp_operation_[warp]; waiting != 0;
       waiting &= in_warp_operation_[warp]) {
    const int lane = __builtin_ctz(waiting);
    waiting &= waiting - 1;
    try_complete_warp_operation(warp, threads_[warp * kWarpThreads + lane].mask);
  }
  try_complete_block_barrier();
}

int BlockRunner::block_barrier(Operation operation, bool predicate, Site site) {
  Thread& thread = threads_[current_];
  thread.state = Thread::State::kAtBlockBarrier;
  thread.operation = operation;
  thread.value = predicate;
  thread.site = site;
  ++at_barrier_count_;
  try_complete_block_barrier();
  suspend();
  return static_cast<int>(thread.result);
}

void BlockRunner::try_complete_block_barrier() {
  if (at_barrier_count_ == 0 || at_barrier_count_ < live_count_) {
    return;
  }
  // All live threads wait at a barrier. Hardware counts arrivals and would let them pass; the
  // programming guide calls it undefined unless they are at the same one.
  int first = -1;
  std::uint64_t count = 0;
  for (int i = 0; i < thread_count_; ++i) {
    if (threads_[i].state != Thread::State::kAtBlockBarrier) {
      continue;
    }
    if (first < 0) {
      first = i;
    }
    const Thread &a = threads_[first], &b = threads_[i];
    if (a.operation != b.operation || a.site.line != b.site.line ||
        std::strcmp(a.site.file, b.site.file) != 0) {
      fail(i, "waits at " + describe(b.operation, b.site) + " while thread " +
                  describe(coordinates(first, launch_->block)) + " waits at " +
                  describe(a.operation, a.site) +
                  ": all threads of a block must reach the same barrier");
    }
    count += b.value;
  }
  for (int i = 0; i < thread_count_; ++i) {
    Thread& thread = threads_[i];
    if (thread.state != Thread::State::kAtBlockBarrier) {
      continue;
    }
    thread.state = Thread::State::kRunnable;
    thread.result = thread.operation == Operation::kSyncThreadsAnd
                        ? count == static_cast<std::uint64_t>(live_count_)
                    : thread.operation == Operation::kSyncThreadsOr ? count != 0
                                                                    : count;
    ready_.insert(i);
  }
  at_barrier_count_ = 0;
  idle_yields_ = 0;
}

std::uint64_t BlockRunner::warp_operation(Operation operation, unsigned mask, std::uint64_t value,
                                          int source, Site site) {
  const int warp = current_ / kWarpThreads;
  const std::uint32_t bit = 1u << current_ % kWarpThreads;
  if ((mask & bit) == 0) {
    fail(current_, describe(operation, site) + ": the calling lane is not in the mask " +
                       describe_mask(mask));
  }
  Thread& thread = threads_[current_];
  thread.state = Thread::State::kInWarpOperation;
  thread.operation = operation;
  thread.mask = mask;
  thread.value = value;
  thread.source = source;
  thread.site = site;
  in_warp_operation_[warp] |= bit;
  try_complete_warp_operation(warp, mask);
  suspend();
  return thread.result;
}

void BlockRunner::scheduling_point() {
  const bool yield =
      schedule_->order == Order::kShuffled ? random() % 4 == 0 : ++steps_ % kYieldPeriod == 0;
  if (!yield) {
    return;
  }
  if (++idle_yields_ > kMaxIdleYields) {
    fail(current_, "no thread of the block makes progress: it spins on memory that nobody writes");
  }
  yielded_.insert(current_);
  suspend();
}

void BlockRunner::on_fault(const void* address) {
  fault_address_ = address;
  failed_ = true;
  switch_fiber(threads_[current_].fiber, scheduler_);
}

std::string BlockRunner::describe_fault() const {
  if (stacks_.is_guard(fault_address_)) {
    return "stack overflow: a thread has " + std::to_string(StackPool::kStackBytes / 1024) + " KB";
  }
  char text[64];
  std::snprintf(text, sizeof text, "illegal or misaligned memory access at %p", fault_address_);
  return text;
}

std::string BlockRunner::locate(int thread) const {
  return "kernel " + kernel_->name + ", block " + describe(block_index_) + ", thread " +
         describe(coordinates(thread, launch_->block));
}

void BlockRunner::fail(int thread, const std::string& message) {
  throw Error(locate(thread) + ": " + message);
}

void BlockRunner::report_deadlock() {
  // One line for each place where threads wait, with the first of them.
  std::map<std::string, std::pair<int, int>> places;
  int first = -1;
  for (int i = 0; i < thread_count_; ++i) {
    const Thread& thread = threads_[i];
    if (thread.state == Thread::State::kLeft) {
      continue;
    }
    if (first < 0) {
      first = i;
    }
    std::string place = describe(thread.operation, thread.site);
    if (thread.state == Thread::State::kInWarpOperation) {
      place += " with mask " + describe_mask(thread.mask);
    }
    auto& [count, example] = places.try_emplace(place, 0, i).first->second;
    ++count;
  }
  std::string message = "deadlock";
  for (const auto& [place, waiting] : places) {
    message += "; " + std::to_string(waiting.first) + " thread(s) from " +
               describe(coordinates(waiting.second, launch_->block)) + " wait at " + place;
  }
  const int left = thread_count_ - live_count_;
  if (left > 0) {
    message += "; " + std::to_string(left) + " left the kernel";
  }
  fail(first, message);
}

int block_barrier(Operation operation, bool predicate, Site site) {
  return active_runner->block_barrier(operation, predicate, site);
}

std::uint64_t warp_operation(Operation operation, unsigned mask, std::uint64_t value, int source,
                             Site site) {
  return active_runner->warp_operation(operation, mask, value, source, site);
}

int lane_id() { return active_runner->current_thread() % kWarpThreads; }
void scheduling_point() { active_runner->scheduling_point(); }
void* dynamic_shared() { return active_runner->dynamic_shared(); }
std::uint64_t steps() { return active_runner->steps(); }
void fail(const std::string& message) {
  active_runner->fail(active_runner->current_thread(), message);
}

}  // namespace simt
