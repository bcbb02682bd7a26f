// Launch limits, the order of blocks, the OS threads that run them, and faults turned into errors.
// See launch.h.
#include "simt/launch.h"

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "block.h"
#include "kernel_info.h"
#include "names.h"

namespace simt {
namespace {

std::mutex opt_in_mutex;
std::map<const void*, std::size_t> opt_in_bytes;

void check(const Launch& launch) {
  const KernelInfo& kernel = kernel_info(launch.kernel);
  const auto refuse = [&](const std::string& reason) {
    throw Error("kernel " + kernel.name + ": invalid launch configuration: " + reason);
  };
  const dim3 &grid = launch.grid, &block = launch.block;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
    refuse("grid " + describe(grid) + " is empty");
  }
  if (block.x == 0 || block.y == 0 || block.z == 0) {
    refuse("block " + describe(block) + " is empty");
  }
  if (grid.x > Limits::kGridX || grid.y > Limits::kGridYZ || grid.z > Limits::kGridYZ) {
    refuse("grid must be at most (2147483647, 65535, 65535), got " + describe(grid));
  }
  const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
  if (block.x > Limits::kThreadsPerBlock || block.y > Limits::kThreadsPerBlock ||
      threads > Limits::kThreadsPerBlock) {
    refuse("a block must have at most 1024 threads, got " + describe(block));
  }
  if (block.z > Limits::kBlockZ) {
    refuse("block z must be at most 64, got " + describe(block));
  }

  const std::size_t total = kernel.static_shared_bytes + launch.dynamic_shared_bytes;
  std::size_t limit = Limits::kSharedBytes;
  {
    const std::lock_guard<std::mutex> lock(opt_in_mutex);
    const auto opted = opt_in_bytes.find(launch.kernel);
    if (opted != opt_in_bytes.end()) {
      limit = std::max(limit, kernel.static_shared_bytes + opted->second);
    }
  }
  limit = std::min(limit, Limits::kSharedBytesOptIn);
  if (total > limit) {
    refuse("shared memory must be at most " + std::to_string(limit) + " bytes, got " +
           std::to_string(kernel.static_shared_bytes) + " static + " +
           std::to_string(launch.dynamic_shared_bytes) + " dynamic");
  }
}

// The position-th block to run. Shuffled order is an affine permutation of the block numbers: any
// grid, no table.
class BlockOrder {
 public:
  BlockOrder(const Schedule& schedule, std::uint64_t count)
      : order_(schedule.order), count_(count) {
    step_ = (schedule.seed * 0x9E3779B97F4A7C15u >> 16) % count_ | 1;
    while (std::gcd(step_, count_) != 1) {
      ++step_;
    }
    offset_ = (schedule.seed * 0xD1B54A32D192ED03u >> 16) % count_;
  }
  std::uint64_t operator[](std::uint64_t position) const {
    switch (order_) {
      case Order::kLane: return position;
      case Order::kReversed: return count_ - 1 - position;
      case Order::kShuffled: break;
    }
    __extension__ using Wide = unsigned __int128;
    return static_cast<std::uint64_t>((static_cast<Wide>(step_) * position + offset_) % count_);
  }

 private:
  Order order_;
  std::uint64_t count_, step_, offset_;
};

// Runners, with the stacks they have mapped, are kept for the next launch.
class RunnerPool {
 public:
  std::unique_ptr<BlockRunner> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) {
      return std::make_unique<BlockRunner>();
    }
    auto runner = std::move(free_.back());
    free_.pop_back();
    return runner;
  }
  void give(std::unique_ptr<BlockRunner> runner) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(runner));
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<BlockRunner>> free_;
};

RunnerPool& runners() {
  static RunnerPool pool;
  return pool;
}

#ifdef __SANITIZE_ADDRESS__

// AddressSanitizer reports faults itself, with the access that caused them.
struct FaultHandler {};
struct SignalStack {};

#else

// While a grid runs, SIGSEGV and SIGBUS in a kernel end the launch with an error, as an illegal
// address does on the device. Faults of anything else go to the handler that was there before.
class FaultHandler {
 public:
  FaultHandler() {
    struct sigaction action{};
    action.sa_sigaction = &FaultHandler::handle;
    // The handler leaves by switching to the scheduler's stack: the signal must not stay blocked.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &previous_segv_);
    sigaction(SIGBUS, &action, &previous_bus_);
  }
  ~FaultHandler() {
    sigaction(SIGSEGV, &previous_segv_, nullptr);
    sigaction(SIGBUS, &previous_bus_, nullptr);
  }

 private:
  static void handle(int signal, siginfo_t* info, void*) {
    if (BlockRunner* runner = BlockRunner::active()) {
      runner->on_fault(info->si_addr);
    }
    // Not a kernel's: the access is repeated under the handler that was there before.
    sigaction(signal, signal == SIGSEGV ? &previous_segv_ : &previous_bus_, nullptr);
  }
  static inline struct sigaction previous_segv_{};
  static inline struct sigaction previous_bus_{};
};

// A stack for the handler of this OS thread: the one that overflowed cannot carry it.
class SignalStack {
 public:
  SignalStack() : memory_(kBytes) {
    stack_t stack{};
    stack.ss_sp = memory_.data();
    stack.ss_size = kBytes;
    sigaltstack(&stack, &previous_);
  }
  ~SignalStack() { sigaltstack(&previous_, nullptr); }

 private:
  static constexpr std::size_t kBytes = 64 * 1024;
  std::vector<char> memory_;
  stack_t previous_{};
};

#endif

void run_blocks(const Launch& launch, std::uint64_t blocks) {
  const Schedule schedule = simt::schedule();
  const BlockOrder order(schedule, blocks);
  std::atomic<std::uint64_t> next{0};
  std::mutex error_mutex;
  std::exception_ptr error;
  const auto work = [&] {
    [[maybe_unused]] const SignalStack signal_stack;
    auto runner = runners().take();
    try {
      runner->begin(launch, schedule);
      for (std::uint64_t i = next++; i < blocks; i = next++) {
        runner->run(order[i]);
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (error == nullptr) {
        error = std::current_exception();
      }
      next = blocks;
    }
    runners().give(std::move(runner));
  };
  std::vector<std::thread> helpers;
  const auto wanted = std::min<std::uint64_t>(std::max(schedule.workers, 1), blocks);
  for (std::uint64_t i = 1; i < wanted; ++i) {
    helpers.emplace_back(work);
  }
  work();
  for (std::thread& helper : helpers) {
    helper.join();
  }
  if (error != nullptr) {
    std::rethrow_exception(error);
  }
}

}  // namespace

Schedule& schedule() {
  static Schedule current;
  return current;
}

unsigned char poison_byte() {
  switch (schedule().order) {
    case Order::kLane: return 0xCD;
    case Order::kReversed: return 0xFF;  // NaN in every floating type, -1 in every signed one
    case Order::kShuffled: break;
  }
  return static_cast<unsigned char>(0x21 + 0x3A * schedule().seed);
}

void allow_dynamic_shared(const void* kernel, std::size_t bytes) {
  const std::size_t limit = Limits::kSharedBytesOptIn - kernel_info(kernel).static_shared_bytes;
  if (bytes > limit) {
    throw Error("kernel " + kernel_info(kernel).name + ": dynamic shared memory must be at most " +
                std::to_string(limit) + " bytes, got " + std::to_string(bytes));
  }
  const std::lock_guard<std::mutex> lock(opt_in_mutex);
  opt_in_bytes[kernel] = bytes;
}

void run(const Launch& launch) {
  check(launch);
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  [[maybe_unused]] const FaultHandler faults;
  run_blocks(launch, std::uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z);
}

}  // namespace simt
