#include "depthwise_rows.h"

#include <cstring>

#include "../common/cpu_targets.h"

namespace segkern {
namespace {

#define SEGKERN_INLINE inline __attribute__((always_inline))

namespace baseline {
constexpr int kVectorBytes = 16;
#define SEGKERN_F16C 0
#if defined(SEGKERN_X86_TARGETS)
#define SEGKERN_STREAM_BYTES 16
#else
#define SEGKERN_STREAM_BYTES 0
#endif
#include "depthwise_rows.inl"
#undef SEGKERN_F16C
#undef SEGKERN_STREAM_BYTES
}  // namespace baseline

#if defined(SEGKERN_X86_TARGETS)
SEGKERN_TARGET_AVX2
namespace avx2 {
constexpr int kVectorBytes = 32;
#define SEGKERN_F16C 1
#define SEGKERN_STREAM_BYTES 32
#include "depthwise_rows.inl"
#undef SEGKERN_STREAM_BYTES
}  // namespace avx2
SEGKERN_TARGET_END

SEGKERN_TARGET_AVX512
namespace avx512 {
constexpr int kVectorBytes = 64;
#define SEGKERN_STREAM_BYTES 64
#include "depthwise_rows.inl"
#undef SEGKERN_STREAM_BYTES
}  // namespace avx512
SEGKERN_TARGET_END
#endif

}  // namespace

template <typename T>
const DepthwiseRows<T>& depthwise_rows() {
#if defined(SEGKERN_X86_TARGETS)
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::kDepthwiseRows<T>;
    case CpuLevel::kAvx2:
      return avx2::kDepthwiseRows<T>;
    default:
      break;
  }
#endif
  return baseline::kDepthwiseRows<T>;
}

template const DepthwiseRows<float>& depthwise_rows();
template const DepthwiseRows<double>& depthwise_rows();

}  // namespace segkern
