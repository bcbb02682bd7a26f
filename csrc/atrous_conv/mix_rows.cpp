#include "mix_rows.h"

#include <cstring>

#define SEGKERN_INLINE inline __attribute__((always_inline))
#define SEGKERN_ROW_KERNELS "../atrous_conv/mix_rows.inl"
#include "../common/each_cpu_target.inl"

namespace segkern {

template <>
const MixRows<float>& mix_rows() {
  return rows_of_this_cpu().of_float;
}

template <>
const MixRows<double>& mix_rows() {
  return rows_of_this_cpu().of_double;
}

}  // namespace segkern
