#include "tap_rows.h"

// Vectors are passed by reference to functions that are always inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

#define SEGKERN_ROW_KERNELS "../separable_gaussian/tap_rows.inl"
#include "../common/each_cpu_target.inl"

namespace segkern {

const TapRows& tap_rows() { return rows_of_this_cpu(); }

}  // namespace segkern
