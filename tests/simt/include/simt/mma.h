// What csrc/common/mma.cuh promises, on the CPU: PTX's fragments, and copies that land as late as
// their waits allow, so that a missing wait or barrier shows.
#pragma once

#include <cstdint>
#include <cstring>

#include "scheduler.h"
#include "small_float.h"
#include "warp.h"

namespace simt {

class AsyncCopies {
 public:
  void copy(void* to, const void* from, bool valid) {
    if (reinterpret_cast<std::uintptr_t>(to) % 16 != 0 ||
        (valid && reinterpret_cast<std::uintptr_t>(from) % 16 != 0)) {
      fail("cp.async: misaligned address");
    }
    if (count_ == kMost) {
      fail("cp.async: more than 64 copies of a thread are under way");
    }
    pending_[count_++] = {to, valid ? from : nullptr, group_};
  }
  void commit() { ++group_; }
  template <int kPending>
  void wait() {
    int kept = 0;
    for (int i = 0; i < count_; ++i) {
      const Copy copy = pending_[i];
      if (copy.group >= group_ - kPending) {
        pending_[kept++] = copy;
      } else if (copy.from == nullptr) {
        std::memset(copy.to, 0, 16);
      } else {
        std::memcpy(copy.to, copy.from, 16);
      }
    }
    count_ = kept;
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    int group;
  };
  static constexpr int kMost = 64;
  Copy pending_[kMost];
  int count_ = 0, group_ = 0;
};

/// The values that all lanes of the warp give, by lane. They are there until the calling lane's
/// next warp operation.
inline const std::uint64_t* all_lanes(std::uint64_t value, Site site) {
  return reinterpret_cast<const std::uint64_t*>(
      warp_operation(Operation::kAllLanes, 0xffffffffu, value, 0, site));
}

inline void load_matrices(std::uint32_t (&to)[4], const void* row, Site site = Site::here()) {
  const auto address = reinterpret_cast<std::uintptr_t>(row);
  if (address % 16 != 0) {
    fail("ldmatrix: misaligned address");
  }
  const std::uint64_t* rows = all_lanes(address, site);
  const int lane = lane_id();
  for (int i = 0; i < 4; ++i) {
    const auto* from = reinterpret_cast<const char*>(rows[8 * i + lane / 4]);
    std::memcpy(&to[i], from + 4 * (lane % 4), 4);
  }
}

inline void load_matrices_transposed(std::uint32_t (&to)[4], const void* row,
                                     Site site = Site::here()) {
  const auto address = reinterpret_cast<std::uintptr_t>(row);
  if (address % 16 != 0) {
    fail("ldmatrix: misaligned address");
  }
  const std::uint64_t* rows = all_lanes(address, site);
  const int lane = lane_id();
  for (int i = 0; i < 4; ++i) {
    std::uint16_t pair[2];
    for (int k = 0; k < 2; ++k) {
      const auto* from = reinterpret_cast<const char*>(rows[8 * i + 2 * (lane % 4) + k]);
      std::memcpy(&pair[k], from + 2 * (lane / 4), 2);
    }
    std::memcpy(&to[i], pair, 4);
  }
}

/// Of float32: cvt.rna.tf32, which keeps 10 bits of the fraction, ties away from zero.
template <typename T>
std::uint32_t round_operand(std::uint32_t word) {
  if constexpr (sizeof(T) == 2) {
    return word;
  } else {
    const bool finite = (word >> 23 & 0xff) != 0xff;
    const bool nan = !finite && (word & 0x7fffff) != 0;
    return nan ? 0x7fffffffu & ~0x1fffu : (finite ? word + 0x1000 : word) & ~0x1fffu;
  }
}

template <typename T>
void multiply_add(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                  std::uint32_t b1, Site site = Site::here()) {
  constexpr int kInWord = 4 / static_cast<int>(sizeof(T)), kDepth = 8 * kInWord;
  const auto element = [](std::uint32_t word, int part) {
    if constexpr (sizeof(T) == 2) {
      return static_cast<float>(T::from_bits(static_cast<std::uint16_t>(word >> (16 * part))));
    } else {
      word &= ~0x1fffu;  // hardware does not read the rest
      float value;
      static_cast<void>(part);
      std::memcpy(&value, &word, 4);
      return value;
    }
  };
  const std::uint32_t own[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const std::uint64_t* lanes = all_lanes(reinterpret_cast<std::uintptr_t>(own), site);
  const auto words = [&](int lane) { return reinterpret_cast<const std::uint32_t*>(lanes[lane]); };
  const int row = lane_id() / 4, column = 2 * (lane_id() % 4);
  for (int i = 0; i < 4; ++i) {
    float total = 0;  // products of such elements are exact
    for (int k = 0; k < kDepth; ++k) {
      const int owner = k % (kDepth / 2) / kInWord, half = k / (kDepth / 2);
      const std::uint32_t of_a = words(4 * row + owner)[2 * half + i / 2];
      const std::uint32_t of_b = words(4 * (column + i % 2) + owner)[4 + half];
      total += element(of_a, k % kInWord) * element(of_b, k % kInWord);
    }
    sums[i] += total;
  }
  warp_operation(Operation::kSyncWarp, 0xffffffffu, 0, 0, site);  // the words are read
}

}  // namespace simt
