// From run-time element types and sizes to kernel template arguments. Used by the launch functions
// and by the tests that run the kernels on the CPU.
#pragma once

#include "device.cuh"
#include "element.h"

namespace segkern {

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<double | float | __half | __nv_bfloat16>).
template <typename Body>
void by_type(Element element, const Body& body) {
  switch (element) {
    case Element::kFloat64:
      return body(TypeTag<double>{});
    case Element::kFloat32:
      return body(TypeTag<float>{});
    case Element::kFloat16:
      return body(TypeTag<__half>{});
    case Element::kBFloat16:
      return body(TypeTag<__nv_bfloat16>{});
  }
}

// Calls body(TypeTag<unsigned integer of the element's size>), for kernels that only move bits.
template <typename Body>
void by_bits(Element element, const Body& body) {
  switch (element_size(element)) {
    case 8:
      return body(TypeTag<uint64_t>{});
    case 4:
      return body(TypeTag<uint32_t>{});
    default:
      return body(TypeTag<uint16_t>{});
  }
}

// Calls body(TypeTag<int32_t>) where that counts the threads and the padding of their last block,
// else body(TypeTag<int64_t>). The limit is the launcher's, so that tests can reach both.
template <typename Launch, typename Body>
void by_index(const Launch& launch, int64_t threads, const Body& body) {
  if (threads + kBlockThreads <= launch.int32_limit) {
    body(TypeTag<int32_t>{});
  } else {
    body(TypeTag<int64_t>{});
  }
}

}  // namespace segkern
