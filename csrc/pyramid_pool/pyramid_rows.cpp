#include "pyramid_rows.h"

#include <cstring>

// Vectors are passed by reference to functions that are always inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace segkern {
namespace {

struct PyramidRowTable {
  PyramidRows<float> single;
  PyramidRows<double> wide;
};

}  // namespace
}  // namespace segkern

#define SEGKERN_ROW_KERNELS "../pyramid_pool/pyramid_rows.inl"
#include "../common/each_cpu_target.inl"

namespace segkern {

template <>
const PyramidRows<float>& pyramid_rows<float>() {
  return rows_of_this_cpu().single;
}

template <>
const PyramidRows<double>& pyramid_rows<double>() {
  return rows_of_this_cpu().wide;
}

}  // namespace segkern
