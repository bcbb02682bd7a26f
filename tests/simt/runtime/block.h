// One block in execution: its threads, their waits, and the choice of who runs next.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "kernel_info.h"
#include "simt/fiber.h"
#include "simt/launch.h"
#include "simt/scheduler.h"

namespace simt {

constexpr int kWarpThreads = 32;
constexpr int kMaxWarps = Limits::kThreadsPerBlock / kWarpThreads;

/// A set of a block's threads, one word a warp.
class ThreadSet {
 public:
  void insert(int thread) { words_[thread / kWarpThreads] |= 1u << thread % kWarpThreads; }
  void insert(int warp, std::uint32_t lanes) { words_[warp] |= lanes; }
  void erase(int thread) { words_[thread / kWarpThreads] &= ~(1u << thread % kWarpThreads); }
  std::uint32_t warp(int warp) const { return words_[warp]; }
  bool empty() const;
  int lowest() const;
  int highest() const;
  /// The first member at or after `start` (a thread), going round.
  int next_from(int start) const;

 private:
  std::array<std::uint32_t, kMaxWarps> words_{};
};

struct Thread {
  enum class State : unsigned char { kNew, kRunnable, kAtBlockBarrier, kInWarpOperation, kLeft };

  Fiber fiber;
  char* stack = nullptr;
  State state = State::kNew;
  // What it waits for, and the answer once released.
  Operation operation{};
  unsigned mask = 0;
  int source = 0;
  std::uint64_t value = 0;
  std::uint64_t result = 0;
  Site site;
};

/// Runs blocks of one launch after another on the calling OS thread.
class BlockRunner {
 public:
  BlockRunner() = default;
  BlockRunner(const BlockRunner&) = delete;
  BlockRunner& operator=(const BlockRunner&) = delete;
  ~BlockRunner();

  /// Takes up a launch on the calling OS thread. Both arguments must outlive the calls of run.
  void begin(const Launch& launch, const Schedule& schedule);
  /// Runs block number `index` of the launch to its end. Throws Error.
  void run(std::uint64_t index);

  // Called on a fibre, by the functions of scheduler.h.
  int block_barrier(Operation operation, bool predicate, Site site);
  std::uint64_t warp_operation(Operation operation, unsigned mask, std::uint64_t value, int source,
                               Site site);
  void scheduling_point();
  [[noreturn]] void fail(int thread, const std::string& message);
  int current_thread() const { return current_; }
  void* dynamic_shared() const { return dynamic_shared_; }
  std::uint64_t steps() const { return steps_; }

  /// Called by the signal handler when the running thread touches an address it may not: does not
  /// return if a kernel thread was running.
  void on_fault(const void* address);

  /// The runner whose kernel thread the calling OS thread is running, or null.
  static BlockRunner* active();

 private:
  static void thread_main();
  void start(std::uint64_t index);
  void finish() noexcept;
  int choose();
  void resume(int thread);
  void suspend();
  void on_left(int thread);
  void try_complete_block_barrier();
  void try_complete_warp_operation(int warp, unsigned mask);
  void complete_shuffle(int warp, unsigned lanes);
  void complete_all_lanes(int warp, unsigned lanes);
  void complete_vote(int warp, unsigned lanes);
  [[noreturn]] void report_deadlock();
  std::string locate(int thread) const;
  std::string describe_fault() const;
  std::uint64_t random();

  const Launch* launch_ = nullptr;
  const Schedule* schedule_ = nullptr;
  const KernelInfo* kernel_ = nullptr;
  StaticShared static_shared_;
  std::uint64_t random_state_ = 0;
  uint3 block_index_{};

  StackPool stacks_;
  Fiber scheduler_;
  std::vector<Thread> threads_;
  ThreadSet ready_;
  ThreadSet yielded_;  // gave way at a scheduling point; run when nobody else can
  std::array<std::uint32_t, kMaxWarps> live_{};
  std::array<std::uint32_t, kMaxWarps> in_warp_operation_{};
  std::array<std::array<std::uint64_t, kWarpThreads>, kMaxWarps> all_lanes_{};
  int thread_count_ = 0;
  int live_count_ = 0;
  int at_barrier_count_ = 0;
  int current_ = -1;
  std::uint64_t steps_ = 0;
  std::uint64_t idle_yields_ = 0;  // since a thread last left or passed a barrier

  void* dynamic_shared_ = nullptr;
  bool failed_ = false;
  std::string error_;
  const void* fault_address_ = nullptr;
};

}  // namespace simt
