// e^x in a form that the compiler turns into vectors; std::exp is a call for each number.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace segkern {

inline double exp_of(double x) { return std::exp(x); }

// To 2 units in the last place up to 88.3, by Cephes' polynomial; 0 below -87.3, NaN stays. For
// sums of probabilities: above 88.3 the result is wrong.
inline float exp_of(float x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const float t = x * 1.44269504088896341f + magic;
  const float whole = t - magic;
  const float r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  uint32_t bits, power;
  std::memcpy(&bits, &p, sizeof(bits));
  std::memcpy(&power, &t, sizeof(power));
  bits += power << 23;
  float scaled;
  std::memcpy(&scaled, &bits, sizeof(scaled));
  const float positive = x < -87.3f ? 0.0f : scaled;
  return x != x ? x : positive;
}

}  // namespace segkern
