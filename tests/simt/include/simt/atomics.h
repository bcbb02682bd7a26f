// Atomic operations on global and shared memory, for the types hardware has them for. All return
// the old value.
//
// They are real atomics, since blocks may run on several OS threads, and scheduling points: another
// thread of the block may run before the caller goes on.
#pragma once

#include <cstdint>
#include <cstdio>
#include <type_traits>

#include "bits.h"
#include "scheduler.h"

namespace simt {

template <typename T>
struct identity_of {
  using type = T;
};
/// T in a position that template deduction ignores: atomicAdd(&a_float, 1) adds a float, as on the
/// device.
template <typename T>
using identity = typename identity_of<T>::type;

template <typename T, typename... Allowed>
constexpr bool is_one_of = (std::is_same_v<T, Allowed> || ...);

template <std::size_t Bytes>
using bits_of = std::conditional_t<Bytes == 2, std::uint16_t,
                                   std::conditional_t<Bytes == 4, std::uint32_t, std::uint64_t>>;

/// Replaces *address by update(*address) in one step.
template <typename T, typename Update>
T atomic_update(T* address, Update update) {
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(T) != 0) {
    fail("misaligned atomic");
  }
  using Bits = bits_of<sizeof(T)>;
  auto* bits = reinterpret_cast<Bits*>(address);
  Bits seen = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &seen, bit_cast<Bits>(update(bit_cast<T>(seen))), true,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  scheduling_point();
  return bit_cast<T>(seen);
}

/// Sum that wraps for integers, as hardware's does.
template <typename T>
T wrapping_add(T a, T b) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<Unsigned>(a) + static_cast<Unsigned>(b));
  } else {
    return a + b;
  }
}

/// Types atomicAdd takes; the half headers add theirs.
template <typename T>
struct has_atomic_add
    : std::bool_constant<is_one_of<T, int, unsigned, unsigned long long, float, double>> {};

template <typename T>
constexpr bool has_integer_atomics = is_one_of<T, int, unsigned, long long, unsigned long long>;

}  // namespace simt

template <typename T>
T atomicAdd(T* address, simt::identity<T> value) {
  static_assert(simt::has_atomic_add<T>::value, "CUDA has no atomicAdd for this type");
  return simt::atomic_update(address, [=](T old) { return simt::wrapping_add(old, value); });
}

template <typename T>
T atomicSub(T* address, simt::identity<T> value) {
  static_assert(simt::is_one_of<T, int, unsigned>, "CUDA has no atomicSub for this type");
  return simt::atomic_update(address, [=](T old) {
    return static_cast<T>(static_cast<unsigned>(old) - static_cast<unsigned>(value));
  });
}

template <typename T>
T atomicMax(T* address, simt::identity<T> value) {
  static_assert(simt::has_integer_atomics<T>, "CUDA has no atomicMax for this type");
  return simt::atomic_update(address, [=](T old) { return old < value ? value : old; });
}

template <typename T>
T atomicMin(T* address, simt::identity<T> value) {
  static_assert(simt::has_integer_atomics<T>, "CUDA has no atomicMin for this type");
  return simt::atomic_update(address, [=](T old) { return value < old ? value : old; });
}

template <typename T>
T atomicAnd(T* address, simt::identity<T> value) {
  static_assert(simt::has_integer_atomics<T>, "CUDA has no atomicAnd for this type");
  return simt::atomic_update(address, [=](T old) { return static_cast<T>(old & value); });
}

template <typename T>
T atomicOr(T* address, simt::identity<T> value) {
  static_assert(simt::has_integer_atomics<T>, "CUDA has no atomicOr for this type");
  return simt::atomic_update(address, [=](T old) { return static_cast<T>(old | value); });
}

template <typename T>
T atomicXor(T* address, simt::identity<T> value) {
  static_assert(simt::has_integer_atomics<T>, "CUDA has no atomicXor for this type");
  return simt::atomic_update(address, [=](T old) { return static_cast<T>(old ^ value); });
}

template <typename T>
T atomicExch(T* address, simt::identity<T> value) {
  static_assert(simt::is_one_of<T, int, unsigned, unsigned long long, float>,
                "CUDA has no atomicExch for this type");
  return simt::atomic_update(address, [=](T) { return value; });
}

template <typename T>
T atomicCAS(T* address, simt::identity<T> compare, simt::identity<T> value) {
  static_assert(simt::is_one_of<T, unsigned short, int, unsigned, unsigned long long>,
                "CUDA has no atomicCAS for this type");
  return simt::atomic_update(address, [=](T old) { return old == compare ? value : old; });
}

inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return simt::atomic_update(address, [=](unsigned old) { return old >= limit ? 0 : old + 1; });
}

inline unsigned atomicDec(unsigned* address, unsigned limit) {
  return simt::atomic_update(
      address, [=](unsigned old) { return old == 0 || old > limit ? limit : old - 1; });
}
