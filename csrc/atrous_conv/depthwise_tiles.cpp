#include "depthwise_tiles.h"

#include <cstring>

#define SEGKERN_INLINE inline __attribute__((always_inline))
#define SEGKERN_ROW_KERNELS "../atrous_conv/depthwise_tiles.inl"
#include "../common/each_cpu_target.inl"

namespace segkern {

template <>
const DepthwiseTiles<float>& depthwise_tiles() {
  return rows_of_this_cpu().of_float;
}

template <>
const DepthwiseTiles<double>& depthwise_tiles() {
  return rows_of_this_cpu().of_double;
}

}  // namespace segkern
