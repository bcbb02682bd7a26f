// One product of a warpgroup as the convolution makes it, and the same with one mistake, which the
// stand-in headers must show.
#pragma once

#include <stdexcept>
#include <string>

#include "common/hopper.cuh"

namespace planted {

enum class Mistake {
  kNone,
  kNoWaitForBoxes,
  kTooFewBytes,
  kNoFence,
  kNoWaitForProduct,
  kOverwriteTooEarly,
  kWrongPattern,
  kUnswizzledStart,
};

inline Mistake mistake_named(const std::string& name) {
  const char* const names[] = {"none",         "no wait for boxes",    "too few bytes",
                               "no fence",     "no wait for product",  "overwrite too early",
                               "wrong pattern", "start inside a pattern"};
  for (int i = 0; i < 8; ++i) {
    if (name == names[i]) {
      return static_cast<Mistake>(i);
    }
  }
  throw std::invalid_argument("no mistake is called " + name);
}

constexpr int kLeftBytes = 64 * 128, kRightBytes = 128 * 128;
constexpr int kProductBytes = 1024 + kLeftBytes + kRightBytes + 16;

// sums[row][column] of 64 rows and 128 columns.
__global__ void product(Mistake mistake, const __grid_constant__ segkern::TensorMap left,
                        const __grid_constant__ segkern::TensorMap right, float* result) {
  SEGKERN_DYNAMIC_SHARED(unsigned char, shared);
  const uint32_t behind = segkern::shared_address(shared) % 1024;
  unsigned char* const ring = shared + (behind == 0 ? 0 : 1024 - behind);
  auto* const barrier = reinterpret_cast<uint64_t*>(ring + kLeftBytes + kRightBytes);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  if (thread == 0) {
    segkern::init_barrier(barrier, 1);
    segkern::publish_barriers();
  }
  __syncthreads();
  if (thread == 0) {
    segkern::arrive_expecting(
        barrier, kLeftBytes + (mistake == Mistake::kTooFewBytes ? kRightBytes / 2 : kRightBytes));
    segkern::load_box(ring, left, barrier, 0, 0, 0);
    segkern::load_box(ring + kLeftBytes, right, barrier, 0, 0, 0);
  }
  __syncthreads();
  if (mistake != Mistake::kNoWaitForBoxes) {
    segkern::wait_for(barrier, 0);
  }
  segkern::WarpgroupProducts products;
  float sums[64] = {};
  uint64_t a = segkern::operand_rows(ring);
  const uint64_t b = segkern::operand_rows(ring + kLeftBytes);
  if (mistake == Mistake::kWrongPattern) {
    a ^= uint64_t{3} << 62;
  } else if (mistake == Mistake::kUnswizzledStart) {
    a += 128 / 16;
  }
  if (mistake != Mistake::kNoFence) {
    products.begin();
  }
  for (int k = 0; k < 4; ++k) {
    products.multiply<__half>(sums, a + k * segkern::kNextDepth, b + k * segkern::kNextDepth);
  }
  products.commit();
  if (mistake == Mistake::kOverwriteTooEarly && thread == 0) {
    segkern::arrive_expecting(barrier, kLeftBytes);
    segkern::load_box(ring, left, barrier, 0, 1, 0);
  }
  if (mistake != Mistake::kNoWaitForProduct) {
    products.wait<0>(sums);
  }
  const int row = thread / 32 * 16 + lane / 4;
  for (int i = 0; i < 64; ++i) {
    const int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    result[(row + i % 4 / 2 * 8) * 128 + column] = sums[i];
  }
}

}  // namespace planted
