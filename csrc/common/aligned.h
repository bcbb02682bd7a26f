// Scratch memory of the CPU kernels.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace segkern {

// Floats aligned for vectors; large ones in large pages where the system gives them, which saves
// most of the page faults of memory that is used once.
class AlignedFloats {
 public:
  AlignedFloats() = default;
  explicit AlignedFloats(int64_t size, bool zero = false) {
    constexpr size_t kLargePage = size_t{2} << 20;
    const size_t bytes = static_cast<size_t>(size) * sizeof(float);
    const size_t alignment = bytes >= 2 * kLargePage ? kLargePage : 64;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    data_ = static_cast<float*>(std::aligned_alloc(alignment, rounded ? rounded : alignment));
    if (!data_) {
      throw std::bad_alloc();
    }
#if defined(__linux__)
    if (alignment == kLargePage) {
      madvise(data_, rounded, MADV_HUGEPAGE);
    }
#endif
    if (zero) {
      std::memset(data_, 0, bytes);
    }
  }
  AlignedFloats(AlignedFloats&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  AlignedFloats& operator=(AlignedFloats&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~AlignedFloats() { std::free(data_); }

  float* get() { return data_; }
  const float* get() const { return data_; }

 private:
  float* data_ = nullptr;
};

}  // namespace segkern
