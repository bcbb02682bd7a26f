// Included by a file of row kernels after it has named them, relative to this folder:
//
//   #define SEGKERN_ROW_KERNELS "../max_pool/cpu_rows.inl"
//   #include "../common/each_cpu_target.inl"
//
// Compiles the kernels once per instruction set and defines rows_of_this_cpu(), the best set's
// table `kRows`. What kernels may contain is said in cpu_targets.h. SEGKERN_VECTOR_BYTES is the size
// of the set's vector registers; the compiler's own macros do not change with the set.
#include "cpu_targets.h"

namespace segkern {
namespace {

namespace baseline {
#define SEGKERN_VECTOR_BYTES 16
#include SEGKERN_ROW_KERNELS
#undef SEGKERN_VECTOR_BYTES
}

#if defined(SEGKERN_X86_TARGETS)
SEGKERN_TARGET_AVX2
namespace avx2 {
#define SEGKERN_VECTOR_BYTES 32
#include SEGKERN_ROW_KERNELS
#undef SEGKERN_VECTOR_BYTES
}
SEGKERN_TARGET_END

SEGKERN_TARGET_AVX512
namespace avx512 {
#define SEGKERN_VECTOR_BYTES 64
#include SEGKERN_ROW_KERNELS
#undef SEGKERN_VECTOR_BYTES
}
SEGKERN_TARGET_END
#endif

auto rows_of_this_cpu() -> decltype((baseline::kRows)) {
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

}  // namespace
}  // namespace segkern
