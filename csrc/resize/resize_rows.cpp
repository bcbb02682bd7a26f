#include "resize_rows.h"

#include <cstring>
#include <type_traits>

// Vectors are passed by reference to functions that are always inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace segkern {
namespace {

struct ResizeRowTable {
  ResizeRows<float> single;
  ResizeRows<double> wide;
};

}  // namespace
}  // namespace segkern

#define SEGKERN_ROW_KERNELS "../resize/resize_rows.inl"
#include "../common/each_cpu_target.inl"

namespace segkern {

template <>
const ResizeRows<float>& resize_rows<float>() {
  return rows_of_this_cpu().single;
}

template <>
const ResizeRows<double>& resize_rows<double>() {
  return rows_of_this_cpu().wide;
}

}  // namespace segkern
