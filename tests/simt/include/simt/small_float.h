// The 16-bit floating types in software: what cuda_fp16.h and cuda_bf16.h share.
//
// Conversions to them round to nearest even, once; subnormals are kept; every NaN becomes the
// canonical one, 0x7fff, as on the device. Arithmetic is done in double and rounded once, which
// gives the correctly rounded result of + - * / and sqrt for both formats (double has more than 2p
// + 2 bits of precision), and of fma with the intermediate rounded to odd.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "atomics.h"
#include "bits.h"
#include "warp.h"

namespace simt {

struct Binary16 {
  static constexpr int kExponentBits = 5, kMantissaBits = 10;
};
struct BFloat16 {
  static constexpr int kExponentBits = 8, kMantissaBits = 7;
};

/// The 16 bits nearest to `value`. Float arguments come as double, exactly.
template <typename Format>
std::uint16_t encode(double value) {
  constexpr int kMantissa = Format::kMantissaBits;
  constexpr int kBias = (1 << (Format::kExponentBits - 1)) - 1;
  constexpr std::uint64_t kInfinity = ((std::uint64_t{1} << Format::kExponentBits) - 1)
                                      << kMantissa;
  const auto bits = bit_cast<std::uint64_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 48 & 0x8000);
  if (std::isnan(value)) {
    return 0x7fff;
  }
  if (std::isinf(value)) {
    return static_cast<std::uint16_t>(sign | kInfinity);
  }
  const int exponent = static_cast<int>(bits >> 52 & 0x7ff) - 1023;
  if (exponent < 1 - kBias - kMantissa - 1) {
    return sign;  // under half the least subnormal, or a tie
  }
  std::uint64_t significand = (bits & 0xfffffffffffffu) | std::uint64_t{1} << 52;
  // Bits to drop: down to the mantissa's width, and further for a subnormal result.
  const int drop = 52 - kMantissa + (exponent < 1 - kBias ? 1 - kBias - exponent : 0);
  const std::uint64_t kept = significand >> drop;
  const std::uint64_t rest = significand & ((std::uint64_t{1} << drop) - 1);
  const std::uint64_t half = std::uint64_t{1} << (drop - 1);
  const std::uint64_t rounded = kept + (rest > half || (rest == half && (kept & 1) != 0) ? 1 : 0);
  // A carry out of the mantissa lands in the exponent, where it belongs.
  const std::uint64_t biased =
      exponent < 1 - kBias ? 0 : static_cast<std::uint64_t>(exponent + kBias - 1);
  const std::uint64_t magnitude = (biased << kMantissa) + rounded;
  return static_cast<std::uint16_t>(sign | (magnitude < kInfinity ? magnitude : kInfinity));
}

template <typename Format>
float decode(std::uint16_t bits) {
  if constexpr (Format::kExponentBits == 8) {
    return bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  } else {
    constexpr int kMantissa = Format::kMantissaBits;
    constexpr int kBias = (1 << (Format::kExponentBits - 1)) - 1;
    constexpr int kLargest = (1 << Format::kExponentBits) - 1;
    const int exponent = bits >> kMantissa & kLargest;
    const int mantissa = bits & ((1 << kMantissa) - 1);
    float magnitude;
    if (exponent == kLargest) {
      magnitude = mantissa != 0 ? bit_cast<float>(0x7fffffffu) : INFINITY;
      if (mantissa != 0) {
        return magnitude;
      }
    } else if (exponent == 0) {
      magnitude = std::ldexp(static_cast<float>(mantissa), 1 - kBias - kMantissa);
    } else {
      magnitude =
          std::ldexp(static_cast<float>(mantissa | 1 << kMantissa), exponent - kBias - kMantissa);
    }
    return (bits & 0x8000) != 0 ? -magnitude : magnitude;
  }
}

/// x + y rounded to odd: rounding it again, to a shorter format, gives what one rounding would
/// have.
inline double add_to_odd(double x, double y) {
  const double sum = x + y;
  if (!std::isfinite(sum)) {
    return sum;
  }
  const double x_part = sum - y;
  const double error = (x - x_part) + (y - (sum - x_part));  // exact: Knuth's two-sum
  if (error == 0 || (bit_cast<std::uint64_t>(sum) & 1) != 0) {
    return sum;
  }
  return std::nextafter(sum, error > 0 ? INFINITY : -INFINITY);
}

template <typename Format>
class SmallFloat {
 public:
  SmallFloat() = default;  // trivial: may be a __shared__ variable
  template <typename T, typename = std::enable_if_t<std::is_arithmetic_v<T>>>
  SmallFloat(T value) : bits_(encode<Format>(static_cast<double>(value))) {}

  operator float() const { return decode<Format>(bits_); }

  static SmallFloat from_bits(std::uint16_t bits) {
    SmallFloat value;
    value.bits_ = bits;
    return value;
  }
  std::uint16_t bits() const { return bits_; }

  friend SmallFloat operator+(SmallFloat a, SmallFloat b) { return a.wide() + b.wide(); }
  friend SmallFloat operator-(SmallFloat a, SmallFloat b) { return a.wide() - b.wide(); }
  friend SmallFloat operator*(SmallFloat a, SmallFloat b) { return a.wide() * b.wide(); }
  friend SmallFloat operator/(SmallFloat a, SmallFloat b) { return a.wide() / b.wide(); }
  friend SmallFloat operator-(SmallFloat a) { return from_bits(a.bits_ ^ 0x8000); }
  friend SmallFloat operator+(SmallFloat a) { return a; }
  friend SmallFloat& operator+=(SmallFloat& a, SmallFloat b) { return a = a + b; }
  friend SmallFloat& operator-=(SmallFloat& a, SmallFloat b) { return a = a - b; }
  friend SmallFloat& operator*=(SmallFloat& a, SmallFloat b) { return a = a * b; }
  friend SmallFloat& operator/=(SmallFloat& a, SmallFloat b) { return a = a / b; }
  friend bool operator==(SmallFloat a, SmallFloat b) { return a.wide() == b.wide(); }
  friend bool operator!=(SmallFloat a, SmallFloat b) { return a.wide() != b.wide(); }
  friend bool operator<(SmallFloat a, SmallFloat b) { return a.wide() < b.wide(); }
  friend bool operator<=(SmallFloat a, SmallFloat b) { return a.wide() <= b.wide(); }
  friend bool operator>(SmallFloat a, SmallFloat b) { return a.wide() > b.wide(); }
  friend bool operator>=(SmallFloat a, SmallFloat b) { return a.wide() >= b.wide(); }

  friend SmallFloat __hadd(SmallFloat a, SmallFloat b) { return a + b; }
  friend SmallFloat __hsub(SmallFloat a, SmallFloat b) { return a - b; }
  friend SmallFloat __hmul(SmallFloat a, SmallFloat b) { return a * b; }
  friend SmallFloat __hdiv(SmallFloat a, SmallFloat b) { return a / b; }
  friend SmallFloat __hneg(SmallFloat a) { return -a; }
  friend SmallFloat __habs(SmallFloat a) { return from_bits(a.bits_ & 0x7fff); }
  friend SmallFloat __hfma(SmallFloat a, SmallFloat b, SmallFloat c) {
    return add_to_odd(a.wide() * b.wide(), c.wide());
  }
  friend SmallFloat hsqrt(SmallFloat a) { return std::sqrt(a.wide()); }
  friend bool __hisnan(SmallFloat a) { return std::isnan(a.wide()); }
  friend int __hisinf(SmallFloat a) { return std::isinf(a.wide()) ? (a.wide() < 0 ? -1 : 1) : 0; }
  friend bool __heq(SmallFloat a, SmallFloat b) { return a == b; }
  friend bool __hne(SmallFloat a, SmallFloat b) { return a < b || a > b; }  // false for NaN
  friend bool __hneu(SmallFloat a, SmallFloat b) { return a != b; }         // true for NaN
  friend bool __hlt(SmallFloat a, SmallFloat b) { return a < b; }
  friend bool __hle(SmallFloat a, SmallFloat b) { return a <= b; }
  friend bool __hgt(SmallFloat a, SmallFloat b) { return a > b; }
  friend bool __hge(SmallFloat a, SmallFloat b) { return a >= b; }
  // Of a number and a NaN: the number; the _nan forms give NaN. Zeros are ordered: -0 < +0.
  friend SmallFloat __hmax(SmallFloat a, SmallFloat b) {
    if (__hisnan(a)) {
      return __hisnan(b) ? from_bits(0x7fff) : b;
    }
    if (__hisnan(b)) {
      return a;
    }
    return a == b ? from_bits(a.bits_ & b.bits_) : a > b ? a : b;
  }
  friend SmallFloat __hmin(SmallFloat a, SmallFloat b) {
    if (__hisnan(a)) {
      return __hisnan(b) ? from_bits(0x7fff) : b;
    }
    if (__hisnan(b)) {
      return a;
    }
    return a == b ? from_bits(a.bits_ | b.bits_) : a < b ? a : b;
  }
  friend SmallFloat __hmax_nan(SmallFloat a, SmallFloat b) {
    return __hisnan(a) || __hisnan(b) ? from_bits(0x7fff) : __hmax(a, b);
  }
  friend SmallFloat __hmin_nan(SmallFloat a, SmallFloat b) {
    return __hisnan(a) || __hisnan(b) ? from_bits(0x7fff) : __hmin(a, b);
  }

 private:
  double wide() const { return decode<Format>(bits_); }
  std::uint16_t bits_;
};

/// Two of them in one 32-bit word: __half2, __nv_bfloat162.
template <typename Format>
struct alignas(4) SmallFloat2 {
  using Element = SmallFloat<Format>;
  Element x, y;

  SmallFloat2() = default;
  SmallFloat2(Element x, Element y) : x(x), y(y) {}

  friend SmallFloat2 __hadd2(SmallFloat2 a, SmallFloat2 b) { return {a.x + b.x, a.y + b.y}; }
  friend SmallFloat2 __hsub2(SmallFloat2 a, SmallFloat2 b) { return {a.x - b.x, a.y - b.y}; }
  friend SmallFloat2 __hmul2(SmallFloat2 a, SmallFloat2 b) { return {a.x * b.x, a.y * b.y}; }
  friend SmallFloat2 __hfma2(SmallFloat2 a, SmallFloat2 b, SmallFloat2 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
  }
  friend SmallFloat2 __hmax2(SmallFloat2 a, SmallFloat2 b) {
    return {__hmax(a.x, b.x), __hmax(a.y, b.y)};
  }
  friend SmallFloat2 __hmin2(SmallFloat2 a, SmallFloat2 b) {
    return {__hmin(a.x, b.x), __hmin(a.y, b.y)};
  }
  friend SmallFloat2 __hmax2_nan(SmallFloat2 a, SmallFloat2 b) {
    return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)};
  }
  friend SmallFloat2 operator+(SmallFloat2 a, SmallFloat2 b) { return __hadd2(a, b); }
  friend SmallFloat2 operator-(SmallFloat2 a, SmallFloat2 b) { return __hsub2(a, b); }
  friend SmallFloat2 operator*(SmallFloat2 a, SmallFloat2 b) { return __hmul2(a, b); }
};

template <typename Format>
struct is_shuffled<SmallFloat<Format>> : std::true_type {};
template <typename Format>
struct is_shuffled<SmallFloat2<Format>> : std::true_type {};
template <typename Format>
struct has_atomic_add<SmallFloat<Format>> : std::true_type {};

}  // namespace simt
