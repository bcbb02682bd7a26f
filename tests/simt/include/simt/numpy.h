// NumPy arrays as kernel arguments.
//
// A kernel never touches an array's own memory: it gets a fresh heap copy of exactly the array's
// bytes, so that AddressSanitizer sees the first byte out of bounds, and the copy is written back
// when the launch succeeded. bfloat16 travels as uint16 bit patterns, float16 as numpy.float16; the
// binding is told the type by name.
#pragma once

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"
#include "python.h"

namespace simt {

/// Device memory that starts as a copy of an array. An array without elements is a null pointer, as
/// in torch.
class DeviceBuffer {
 public:
  /// `offset` bytes in front of the data make a view that is less aligned than an allocation.
  explicit DeviceBuffer(Array array, std::size_t offset = 0)
      : array_(std::move(array)), offset_(offset) {
    if (!array_.contiguous) {
      throw std::invalid_argument("arrays must be C-contiguous");
    }
    const auto bytes = static_cast<std::size_t>(array_.nbytes());
    if (bytes == 0) {
      return;
    }
    if (posix_memalign(&memory_, kAlignment, bytes + offset) != 0) {
      throw std::bad_alloc();
    }
    std::memcpy(data(), array_.data(), bytes);
  }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { std::free(memory_); }

  template <typename T = void>
  T* as() const {
    return static_cast<T*>(memory_ == nullptr ? nullptr : data());
  }
  /// Writes the data back to the array, which must be writeable.
  void copy_back() {
    if (memory_ != nullptr) {
      std::memcpy(array_.mutable_data(), data(), array_.nbytes());
    }
  }

 private:
  static constexpr std::size_t kAlignment = 256;  // what cudaMalloc promises
  void* data() const { return static_cast<char*>(memory_) + offset_; }

  Array array_;
  std::size_t offset_;
  void* memory_ = nullptr;
};

}  // namespace simt
