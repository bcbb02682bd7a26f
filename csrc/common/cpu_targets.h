// Row kernels compiled for several x86 instruction sets in one file, chosen at run time, so that a
// wheel built anywhere runs everywhere at the speed of the machine it meets. each_cpu_target.inl
// includes a file of kernels once per set, inside a namespace of its own.
//
// The kernels must be templates or functions of that namespace over raw pointers: a standard-library
// template instantiated there could be merged by the linker with a baseline one.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <immintrin.h>
#define SEGKERN_X86_TARGETS 1
#define SEGKERN_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define SEGKERN_TARGET_BEGIN(sets) \
  SEGKERN_PRAGMA(clang attribute push(__attribute__((target(sets))), apply_to = function))
#define SEGKERN_TARGET_END SEGKERN_PRAGMA(clang attribute pop)
#else
#define SEGKERN_TARGET_BEGIN(sets) \
  SEGKERN_PRAGMA(GCC push_options) SEGKERN_PRAGMA(GCC target(sets))
#define SEGKERN_TARGET_END SEGKERN_PRAGMA(GCC pop_options)
#endif
#define SEGKERN_TARGET_AVX2 SEGKERN_TARGET_BEGIN("avx2,fma,f16c,bmi,bmi2,popcnt")
#define SEGKERN_TARGET_AVX512 \
  SEGKERN_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,popcnt")
#endif

namespace segkern {

// A set's table where kernels are compiled for both types.
template <template <typename> class Table>
struct FloatTables {
  Table<float> of_float;
  Table<double> of_double;
};

enum class CpuLevel { kBaseline, kAvx2, kAvx512 };

// The best set this processor has. Kernels that only compare and copy give the same bits at every
// level; those that multiply and add may round differently (fused operations).
inline CpuLevel cpu_level() {
#if defined(SEGKERN_X86_TARGETS)
  static const CpuLevel level = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return avx2 && avx512 ? CpuLevel::kAvx512 : avx2 ? CpuLevel::kAvx2 : CpuLevel::kBaseline;
  }();
  return level;
#else
  return CpuLevel::kBaseline;
#endif
}

}  // namespace segkern
