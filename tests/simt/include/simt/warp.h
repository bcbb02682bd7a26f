// Warp shuffles, votes, matches and reductions.
#pragma once

#include <cstring>
#include <string>
#include <type_traits>

#include "scheduler.h"
#include "types.h"

namespace simt {

/// Types that hardware shuffles: 4- and 8-byte arithmetic types, and the half types (which their
/// headers add).
template <typename T>
struct is_shuffled
    : std::bool_constant<std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8)> {};

template <typename T>
T shuffle(Operation operation, unsigned mask, T value, int source, Site site) {
  static_assert(is_shuffled<T>::value, "CUDA has no shuffle for this type");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(operation, mask, bits, source, site);
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

/// First lane of the segment of `width` lanes that the calling lane is in.
inline int segment(int width) {
  if (width < 1 || width > warpSize || (width & (width - 1)) != 0) {
    fail("a shuffle's width must be a power of two up to 32, got " + std::to_string(width));
  }
  return lane_id() & ~(width - 1);
}

}  // namespace simt

// A source beyond the segment leaves a lane with its own value.

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              simt::Site site = simt::Site::here()) {
  const int lane = simt::segment(width) + (source & (width - 1));
  return simt::shuffle(simt::Operation::kShuffle, mask, value, lane, site);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 simt::Site site = simt::Site::here()) {
  const int self = simt::lane_id(), first = simt::segment(width);
  const int lane =
      delta > static_cast<unsigned>(self - first) ? self : self - static_cast<int>(delta);
  return simt::shuffle(simt::Operation::kShuffleUp, mask, value, lane, site);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   simt::Site site = simt::Site::here()) {
  const int self = simt::lane_id(), last = simt::segment(width) + width - 1;
  const int lane =
      delta > static_cast<unsigned>(last - self) ? self : self + static_cast<int>(delta);
  return simt::shuffle(simt::Operation::kShuffleDown, mask, value, lane, site);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  simt::Site site = simt::Site::here()) {
  const int self = simt::lane_id(), last = simt::segment(width) + width - 1;
  const int other = self ^ (lane_mask & (warpSize - 1));
  return simt::shuffle(simt::Operation::kShuffleXor, mask, value, other > last ? self : other,
                       site);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, simt::Site site = simt::Site::here()) {
  simt::warp_operation(simt::Operation::kSyncWarp, mask, 0, 0, site);
}

inline int __any_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return static_cast<int>(
      simt::warp_operation(simt::Operation::kAny, mask, predicate != 0, 0, site));
}

inline int __all_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return static_cast<int>(
      simt::warp_operation(simt::Operation::kAll, mask, predicate != 0, 0, site));
}

inline unsigned __ballot_sync(unsigned mask, int predicate, simt::Site site = simt::Site::here()) {
  return static_cast<unsigned>(
      simt::warp_operation(simt::Operation::kBallot, mask, predicate != 0, 0, site));
}

/// The least that hardware promises: lanes on the same path need not be active together.
inline unsigned __activemask() { return 1u << simt::lane_id(); }

template <typename T>
unsigned __match_any_sync(unsigned mask, T value, simt::Site site = simt::Site::here()) {
  static_assert(simt::is_shuffled<T>::value, "CUDA has no match for this type");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return static_cast<unsigned>(
      simt::warp_operation(simt::Operation::kMatchAny, mask, bits, 0, site));
}

template <typename T>
unsigned __match_all_sync(unsigned mask, T value, int* predicate,
                          simt::Site site = simt::Site::here()) {
  static_assert(simt::is_shuffled<T>::value, "CUDA has no match for this type");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const auto lanes =
      static_cast<unsigned>(simt::warp_operation(simt::Operation::kMatchAll, mask, bits, 0, site));
  *predicate = lanes != 0;
  return lanes;
}

#define SIMT_REDUCE(name, T, operation)                                                      \
  inline T name(unsigned mask, T value, simt::Site site = simt::Site::here()) {              \
    return static_cast<T>(simt::warp_operation(simt::Operation::operation, mask,             \
                                               static_cast<std::uint32_t>(value), 0, site)); \
  }
SIMT_REDUCE(__reduce_add_sync, int, kReduceAddSigned)
SIMT_REDUCE(__reduce_add_sync, unsigned, kReduceAddUnsigned)
SIMT_REDUCE(__reduce_min_sync, int, kReduceMinSigned)
SIMT_REDUCE(__reduce_min_sync, unsigned, kReduceMinUnsigned)
SIMT_REDUCE(__reduce_max_sync, int, kReduceMaxSigned)
SIMT_REDUCE(__reduce_max_sync, unsigned, kReduceMaxUnsigned)
SIMT_REDUCE(__reduce_and_sync, unsigned, kReduceAnd)
SIMT_REDUCE(__reduce_or_sync, unsigned, kReduceOr)
SIMT_REDUCE(__reduce_xor_sync, unsigned, kReduceXor)
#undef SIMT_REDUCE
