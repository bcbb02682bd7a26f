#include "cpu_rows.h"

#include "../common/cpu_targets.h"

namespace segkern {
namespace {

namespace baseline {
#include "cpu_rows.inl"
}

#if defined(SEGKERN_X86_TARGETS)
SEGKERN_TARGET_AVX2
namespace avx2 {
#include "cpu_rows.inl"
}
SEGKERN_TARGET_END

SEGKERN_TARGET_AVX512
namespace avx512 {
#include "cpu_rows.inl"
}
SEGKERN_TARGET_END
#endif

}  // namespace

const PoolRows& pool_rows() {
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
