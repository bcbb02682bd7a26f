#include "mask_rows.h"

#define SEGKERN_ROW_KERNELS "../masks/mask_rows.inl"
#include "../common/each_cpu_target.inl"

namespace segkern {

#if defined(SEGKERN_X86_TARGETS)
namespace {

// The count of bits of a whole vector at once, an extension that not every AVX-512 machine has.
__attribute__((target("avx512f,avx512vpopcntdq"))) int64_t shared_bits_by_vector(
    const uint32_t* a, const uint32_t* b, int64_t words) {
  __m512i sums[4] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512(),
                     _mm512_setzero_si512()};
  int64_t i = 0;
  for (; i + 64 <= words; i += 64) {
    for (int k = 0; k < 4; ++k) {
      const __m512i both = _mm512_and_si512(_mm512_loadu_si512(a + i + 16 * k),
                                            _mm512_loadu_si512(b + i + 16 * k));
      sums[k] = _mm512_add_epi64(sums[k], _mm512_popcnt_epi64(both));
    }
  }
  for (; i < words; i += 16) {
    const __mmask16 rest =
        words - i >= 16 ? __mmask16(0xffff) : static_cast<__mmask16>((1u << (words - i)) - 1);
    const __m512i both = _mm512_and_si512(_mm512_maskz_loadu_epi32(rest, a + i),
                                          _mm512_maskz_loadu_epi32(rest, b + i));
    sums[0] = _mm512_add_epi64(sums[0], _mm512_popcnt_epi64(both));
  }
  int64_t lanes[8], sum = 0;
  _mm512_storeu_si512(lanes, _mm512_add_epi64(_mm512_add_epi64(sums[0], sums[1]),
                                              _mm512_add_epi64(sums[2], sums[3])));
  for (const int64_t lane : lanes) {
    sum += lane;
  }
  return sum;
}

}  // namespace
#endif

const MaskRows& mask_rows() {
#if defined(SEGKERN_X86_TARGETS)
  static const MaskRows rows = [] {
    MaskRows best = rows_of_this_cpu();
    if (cpu_level() == CpuLevel::kAvx512 && __builtin_cpu_supports("avx512vpopcntdq")) {
      best.shared = shared_bits_by_vector;
    }
    return best;
  }();
  return rows;
#else
  return rows_of_this_cpu();
#endif
}

}  // namespace segkern
