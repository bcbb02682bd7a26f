#include "mix_rows.h"

#include <cstring>

#include "../common/cpu_targets.h"

namespace segkern {
namespace {

#define SEGKERN_INLINE inline __attribute__((always_inline))

namespace baseline {
constexpr int kVectorBytes = 16;
#include "mix_rows.inl"
}  // namespace baseline

#if defined(SEGKERN_X86_TARGETS)
SEGKERN_TARGET_AVX2
namespace avx2 {
constexpr int kVectorBytes = 32;
#include "mix_rows.inl"
}  // namespace avx2
SEGKERN_TARGET_END

SEGKERN_TARGET_AVX512
namespace avx512 {
constexpr int kVectorBytes = 64;
#include "mix_rows.inl"
}  // namespace avx512
SEGKERN_TARGET_END
#endif

}  // namespace

template <typename T>
const MixRows<T>& mix_rows() {
#if defined(SEGKERN_X86_TARGETS)
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::kMixRows<T>;
    case CpuLevel::kAvx2:
      return avx2::kMixRows<T>;
    default:
      break;
  }
#endif
  return baseline::kMixRows<T>;
}

template const MixRows<float>& mix_rows();
template const MixRows<double>& mix_rows();

}  // namespace segkern
