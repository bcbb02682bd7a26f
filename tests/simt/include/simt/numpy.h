// NumPy arrays as kernel arguments, and the settings every bound module offers.
//
// A kernel never touches an array's own memory: it gets a fresh heap copy of exactly the array's
// bytes, so that AddressSanitizer sees the first byte out of bounds, and the copy is written back
// when the launch succeeded. bfloat16 travels as uint16 bit patterns, float16 as numpy.float16; the
// binding is told the type by name.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

namespace simt {

/// Device memory that starts as a copy of an array. An array without elements is a null pointer, as
/// in torch.
class DeviceBuffer {
 public:
  /// `offset` bytes in front of the data make a view that is less aligned than an allocation.
  explicit DeviceBuffer(pybind11::array array, std::size_t offset = 0)
      : array_(std::move(array)), offset_(offset) {
    if ((array_.flags() & pybind11::array::c_style) == 0) {
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

  pybind11::array array_;
  std::size_t offset_;
  void* memory_ = nullptr;
};

template <typename T>
struct TypeTag {
  using type = T;
};

/// Calls body(TypeTag<scalar_t>{}) for the type named as in torch and NumPy.
template <typename Body>
void dispatch_floating(const std::string& dtype, Body body) {
  if (dtype == "float32") {
    return body(TypeTag<float>{});
  }
  if (dtype == "float64") {
    return body(TypeTag<double>{});
  }
  if (dtype == "float16") {
    return body(TypeTag<__half>{});
  }
  if (dtype == "bfloat16") {
    return body(TypeTag<__nv_bfloat16>{});
  }
  throw std::invalid_argument("dtype must be float16, bfloat16, float32 or float64, got " + dtype);
}

/// set_schedule(order, seed, workers) and poison_byte(), which tests/simt/harness.py expects of
/// every module.
inline void bind_schedule(pybind11::module_& module) {
  module.def("set_schedule", [](const std::string& order, std::uint64_t seed, int workers) {
    Schedule next{Order::kLane, seed, workers};
    if (order == "reversed") {
      next.order = Order::kReversed;
    } else if (order == "shuffled") {
      next.order = Order::kShuffled;
    } else if (order != "lane") {
      throw std::invalid_argument("order must be lane, reversed or shuffled, got " + order);
    }
    schedule() = next;
  });
  module.def("poison_byte", &poison_byte);
}

}  // namespace simt
