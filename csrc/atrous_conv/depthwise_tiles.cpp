#include "depthwise_tiles.h"

#include <cstring>

#include "../common/cpu_targets.h"

namespace segkern {
namespace {

#define SEGKERN_INLINE inline __attribute__((always_inline))

namespace baseline {
constexpr int kVectorBytes = 16;
#define SEGKERN_STREAM_BYTES 0
#include "depthwise_tiles.inl"
#undef SEGKERN_STREAM_BYTES
}  // namespace baseline

#if defined(SEGKERN_X86_TARGETS)
SEGKERN_TARGET_AVX2
namespace avx2 {
constexpr int kVectorBytes = 32;
#define SEGKERN_STREAM_BYTES 0
#include "depthwise_tiles.inl"
#undef SEGKERN_STREAM_BYTES
}  // namespace avx2
SEGKERN_TARGET_END

SEGKERN_TARGET_AVX512
namespace avx512 {
constexpr int kVectorBytes = 64;
#define SEGKERN_STREAM_BYTES 64
#include "depthwise_tiles.inl"
#undef SEGKERN_STREAM_BYTES
}  // namespace avx512
SEGKERN_TARGET_END
#endif

}  // namespace

template <typename T>
const DepthwiseTiles<T>& depthwise_tiles() {
#if defined(SEGKERN_X86_TARGETS)
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::kDepthwiseTiles<T>;
    case CpuLevel::kAvx2:
      return avx2::kDepthwiseTiles<T>;
    default:
      break;
  }
#endif
  return baseline::kDepthwiseTiles<T>;
}

template const DepthwiseTiles<float>& depthwise_tiles();
template const DepthwiseTiles<double>& depthwise_tiles();

}  // namespace segkern
