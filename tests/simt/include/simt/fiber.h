// Fibres: threads of execution that one OS thread switches between by hand. Each CUDA thread of a
// block is one.
//
// A switch saves the callee-saved registers on the fibre's own stack and swaps the stack pointer,
// about 3 ns on x86-64 and aarch64; elsewhere, or with -DSIMT_UCONTEXT, ucontext does it through
// two system calls. Under AddressSanitizer every switch is announced, so that stack checks follow
// the fibre.
#pragma once

#include <cstddef>
#include <vector>

namespace simt {

/// A saved execution context. A default-made Fiber stands for whoever calls switch_fiber from it:
/// the OS thread itself.
struct Fiber {
  void* context = nullptr;  // stack pointer, or ucontext_t*, while the fibre is not running
  const void* stack_bottom =
      nullptr;  // for AddressSanitizer; learnt at the first switch for an OS thread's own stack
  std::size_t stack_size = 0;
};

/// Stacks for the fibres of one block. Each lies above a guard page, so that an overflow faults
/// instead of running into a neighbour. Stacks are mapped on first use and reused in last-in
/// first-out order, while they are in cache.
class StackPool {
 public:
  StackPool() = default;
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;
  ~StackPool();

  static constexpr std::size_t kGuardBytes = 64 * 1024;  // a multiple of any page size
#ifdef __SANITIZE_ADDRESS__
  static constexpr std::size_t kStackBytes = 256 * 1024;  // frames carry red zones
#else
  static constexpr std::size_t kStackBytes = 64 * 1024;
#endif

  /// Lowest usable address of a free stack of kStackBytes.
  char* take();
  void give(char* stack) { free_.push_back(stack); }
  /// Marks the stack of a fibre that will never be resumed as free, and wipes AddressSanitizer's
  /// marks of its frames.
  void reclaim(char* stack);
  /// True where `address` lies in the guard of a stack of this pool.
  bool is_guard(const void* address) const;

 private:
  std::vector<char*> mapped_;  // start of each mapping: guard, then stack
  std::vector<char*> free_;
};

/// Prepares `fiber` to run entry() on the given stack at its first resume. entry must not return.
void prepare_fiber(Fiber& fiber, char* stack, void (*entry)());

/// Suspends `from`, which must be running, and resumes `to`. Returns when something switches back
/// to `from`.
void switch_fiber(Fiber& from, Fiber& to);

/// As switch_fiber for a fibre that is done: it is never resumed.
[[noreturn]] void leave_fiber(Fiber& from, Fiber& to);

/// First call in a fibre's entry; `from` is the fibre that resumed it.
void enter_fiber(Fiber& from);

}  // namespace simt
