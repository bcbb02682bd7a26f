// Fibres: the context switch for x86-64 and aarch64, the portable one, and the stacks. See fiber.h.
#include "simt/fiber.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>

#if !defined(SIMT_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define SIMT_UCONTEXT
#endif

#ifdef SIMT_UCONTEXT
#include <ucontext.h>
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef SIMT_UCONTEXT
// Saves what the ABI lets a callee change freely on the running stack, stores the stack pointer
// through the first argument, and unwinds the same frame from the stack given as the second.
// Floating-point control words are not saved: kernels do not change the rounding mode.
extern "C" void simt_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
  .text
  .globl simt_switch
  .hidden simt_switch
  .type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size simt_switch, .-simt_switch
)");
#else
asm(R"(
  .text
  .globl simt_switch
  .hidden simt_switch
  .type simt_switch, %function
simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
  .size simt_switch, .-simt_switch
)");
#endif
#endif

namespace simt {
namespace {

#ifdef SIMT_UCONTEXT

// A running fibre's context is written by swapcontext into a ucontext_t that lives as long as the
// switch: on the stack of the one who waits.
void switch_context(Fiber& from, Fiber& to) {
  ucontext_t self;
  from.context = &self;
  swapcontext(&self, static_cast<ucontext_t*>(to.context));
}

void prepare_context(Fiber& fiber, char* stack, void (*entry)()) {
  // The new context itself sits at the top of the stack it describes; it is read once, before
  // anything is pushed.
  const std::size_t reserved = (sizeof(ucontext_t) + 63) / 64 * 64;
  auto* context = new (stack + StackPool::kStackBytes - reserved) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = StackPool::kStackBytes - reserved;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  fiber.context = context;
}

#else

void switch_context(Fiber& from, Fiber& to) { simt_switch(&from.context, to.context); }

void prepare_context(Fiber& fiber, char* stack, void (*entry)()) {
  auto* top = reinterpret_cast<std::uint64_t*>(stack + StackPool::kStackBytes);
#if defined(__x86_64__)
  // From the top: a null return address that ends backtraces, `entry` as simt_switch's return
  // address (popping it leaves the stack aligned as at any function's start), six zeroed registers.
  constexpr int kWords = 8;
  std::memset(top - kWords, 0, kWords * sizeof(std::uint64_t));
  top[-2] = reinterpret_cast<std::uint64_t>(entry);
  fiber.context = top - kWords;
#else
  constexpr int kWords = 20, kLinkRegister = 11;
  std::memset(top - kWords, 0, kWords * sizeof(std::uint64_t));
  top[-kWords + kLinkRegister] = reinterpret_cast<std::uint64_t>(entry);
  fiber.context = top - kWords;
#endif
}

#endif

}  // namespace

char* StackPool::take() {
  if (free_.empty()) {
    constexpr std::size_t bytes = kGuardBytes + kStackBytes;
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED || mprotect(base, kGuardBytes, PROT_NONE) != 0) {
      throw std::system_error(errno, std::generic_category(), "simt: cannot map a fibre's stack");
    }
    mapped_.push_back(static_cast<char*>(base));
    return mapped_.back() + kGuardBytes;
  }
  char* stack = free_.back();
  free_.pop_back();
  return stack;
}

void StackPool::reclaim(char* stack) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(stack, kStackBytes);
#endif
  give(stack);
}

bool StackPool::is_guard(const void* address) const {
  for (const char* base : mapped_) {
    if (address >= base && address < base + kGuardBytes) {
      return true;
    }
  }
  return false;
}

StackPool::~StackPool() {
  for (char* base : mapped_) {
    munmap(base, kGuardBytes + kStackBytes);
  }
}

void prepare_fiber(Fiber& fiber, char* stack, void (*entry)()) {
  fiber.stack_bottom = stack;
  fiber.stack_size = StackPool::kStackBytes;
  prepare_context(fiber, stack, entry);
}

#ifdef __SANITIZE_ADDRESS__

void switch_fiber(Fiber& from, Fiber& to) {
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, to.stack_bottom, to.stack_size);
  switch_context(from, to);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void leave_fiber(Fiber& from, Fiber& to) {
  __sanitizer_start_switch_fiber(nullptr, to.stack_bottom,
                                 to.stack_size);  // null: this fibre's fake stack is freed
  switch_context(from, to);
  std::abort();
}

void enter_fiber(Fiber& from) {
  __sanitizer_finish_switch_fiber(nullptr, &from.stack_bottom, &from.stack_size);
}

#else

void switch_fiber(Fiber& from, Fiber& to) { switch_context(from, to); }

void leave_fiber(Fiber& from, Fiber& to) {
  switch_context(from, to);
  std::abort();
}

void enter_fiber(Fiber&) {}

#endif

}  // namespace simt
