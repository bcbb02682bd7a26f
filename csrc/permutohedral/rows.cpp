#include "rows.h"

#include <type_traits>

#include "../common/cpu_targets.h"
#include "lattice.h"

// Vectors are passed by reference to functions that are always inlined.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace segkern {
namespace {

namespace baseline {
#include "rows.inl"
}

#if defined(SEGKERN_X86_TARGETS)
SEGKERN_TARGET_AVX2
namespace avx2 {
#include "rows.inl"
}
SEGKERN_TARGET_END

SEGKERN_TARGET_AVX512
namespace avx512 {
#include "rows.inl"
}
SEGKERN_TARGET_END
#endif

}  // namespace

const LatticeRows& lattice_rows() {
#if defined(SEGKERN_X86_TARGETS)
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::kRows;
    case CpuLevel::kAvx2:
      return avx2::kRows;
    default:
      break;
  }
#endif
  return baseline::kRows;
}

}  // namespace segkern
