// Device math: the names CUDA adds to <math.h>. Intrinsics marked approximate on the device
// (__expf, __fdividef, rsqrtf ...) are exact to rounding here; a test that compares bits with the
// device must not use them.
#pragma once

#include <math.h>

#include <cstdint>
#include <limits>
#include <type_traits>

// max and min as the device has them: of a number and a NaN they give the number.
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double max(double a, float b) { return fmax(a, b); }
inline double min(double a, float b) { return fmin(a, b); }

// Of integers of different types: in their common type, by the usual conversions.
template <typename A, typename B,
          typename = std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>>>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B,
          typename = std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>>>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}

inline float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return exp10f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }  // NaN gives 0

// The device returns 0 for a divisor beyond 2^126, whose reciprocal would be subnormal.
inline float __fdividef(float x, float y) {
  return fabsf(y) > 0x1p126f && fabsf(y) <= 0x1.fffffep127f ? 0.0f * x : x / y;
}

// One rounding each, and never fused with a neighbour: -ffp-contract=off holds for the whole build.
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }

namespace simt {

/// The device's conversion to an integer: out of range gives the nearest end, NaN gives 0 for
/// 32-bit types.
template <typename Integer, typename Float>
Integer to_integer(Float rounded) {
  constexpr Integer lowest = std::numeric_limits<Integer>::min();
  constexpr Integer highest = std::numeric_limits<Integer>::max();
  if (rounded != rounded) {
    return sizeof(Integer) == 4 ? 0 : static_cast<Integer>(1ull << 63);
  }
  if (rounded <= static_cast<Float>(lowest)) {
    return lowest;
  }
  if (rounded >= static_cast<Float>(highest)) {
    return highest;
  }
  return static_cast<Integer>(rounded);
}

}  // namespace simt

// __float2int_rn and its kin: nearest even, towards zero, down, up.
#define SIMT_CONVERT(Float, from, Integer, to)           \
  inline Integer __##from##2##to##_rn(Float x) {         \
    return simt::to_integer<Integer>(std::nearbyint(x)); \
  }                                                      \
  inline Integer __##from##2##to##_rz(Float x) {         \
    return simt::to_integer<Integer>(std::trunc(x));     \
  }                                                      \
  inline Integer __##from##2##to##_rd(Float x) {         \
    return simt::to_integer<Integer>(std::floor(x));     \
  }                                                      \
  inline Integer __##from##2##to##_ru(Float x) { return simt::to_integer<Integer>(std::ceil(x)); }
SIMT_CONVERT(float, float, int, int)
SIMT_CONVERT(float, float, unsigned, uint)
SIMT_CONVERT(float, float, long long, ll)
SIMT_CONVERT(float, float, unsigned long long, ull)
SIMT_CONVERT(double, double, int, int)
SIMT_CONVERT(double, double, unsigned, uint)
SIMT_CONVERT(double, double, long long, ll)
SIMT_CONVERT(double, double, unsigned long long, ull)
#undef SIMT_CONVERT

inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return x; }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
