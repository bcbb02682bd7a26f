#include "rows.h"

#include <type_traits>

#include "lattice.h"

// Vectors are passed by reference to functions that are always inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

#define SEGKERN_ROW_KERNELS "../permutohedral/rows.inl"
#include "../common/each_cpu_target.inl"

namespace segkern {

const LatticeRows& lattice_rows() { return rows_of_this_cpu(); }

}  // namespace segkern
