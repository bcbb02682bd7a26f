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

constexpr size_t kLargePage = size_t{2} << 20;

// Asks for large pages under the whole ones of a range not touched yet: one page fault instead of
// 512.
inline void prefer_large_pages(void* data, size_t bytes) {
#if defined(__linux__)
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage;
  const uintptr_t last = (begin + bytes) / kLargePage * kLargePage;
  if (first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
#else
  (void)data, (void)bytes;
#endif
}

// Floats aligned for vectors; large ones in large pages where the system gives them, which saves
// most of the page faults of memory that is used once.
class AlignedFloats {
 public:
  AlignedFloats() = default;
  explicit AlignedFloats(int64_t size, bool zero = false) {
    const size_t bytes = static_cast<size_t>(size) * sizeof(float);
    const size_t alignment = bytes >= 2 * kLargePage ? kLargePage : 64;
    const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    data_ = static_cast<float*>(std::aligned_alloc(alignment, rounded ? rounded : alignment));
    if (!data_) {
      throw std::bad_alloc();
    }
    prefer_large_pages(data_, rounded);
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
