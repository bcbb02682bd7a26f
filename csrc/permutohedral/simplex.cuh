// The simplex of the lattice that encloses a point, with the CPU kernels' arithmetic: it decides
// which vertices exist. Adams, Baek and Davis 2010, section 3.
#pragma once

#include <type_traits>

#include "../common/device.cuh"
#include "lattice_params.h"

namespace segkern {
namespace {

template <int kDims>
struct Simplex {
  static constexpr int kCorners = kDims + 1;

  int32_t quotient[kCorners];  // coordinates of corner 0, divided by D
  int32_t place[kCorners];     // of each coordinate in ascending order of its remainder
  double rest[kCorners];       // of the point's coordinates, less those of corner 0

  // `feature(j)` is the point's j-th feature. Products are rounded before they are added.
  template <typename Feature>
  __device__ __forceinline__ Simplex(const double* scales, const Feature& feature) {
    double total = 0;
#pragma unroll
    for (int j = kDims; j > 0; --j) {
      const double scaled = __dmul_rn(scales[j - 1], feature(j - 1));
      rest[j] = __dadd_rn(total, -__dmul_rn(static_cast<double>(j), scaled));
      total = __dadd_rn(total, scaled);
    }
    rest[0] = total;
    const double inverse = 1.0 / kCorners;
    const double magic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds, ties to even
    int32_t whole = 0;
#pragma unroll
    for (int j = 0; j < kCorners; ++j) {
      const double v = __dadd_rn(__dadd_rn(__dmul_rn(rest[j], inverse), magic), -magic);
      quotient[j] = static_cast<int32_t>(v);
      whole += quotient[j];
      rest[j] = __dadd_rn(rest[j], -__dmul_rn(v, kCorners));
    }
#pragma unroll
    for (int j = 0; j < kCorners; ++j) {
      int32_t rank = whole;
#pragma unroll
      for (int i = 0; i < kCorners; ++i) {
        if (i != j) {
          rank += i < j ? !(rest[i] < rest[j]) ? 1 : 0 : rest[j] < rest[i] ? 1 : 0;
        }
      }
      place[j] = rank;
    }
#pragma unroll
    for (int j = 0; j < kCorners; ++j) {
      const int32_t move = place[j] < 0 ? 1 : place[j] >= kCorners ? -1 : 0;
      quotient[j] += move;
      rest[j] -= move * kCorners;
      place[j] = kDims - (place[j] + move * kCorners);
    }
  }
};

}  // namespace

// Calls body(std::integral_constant<int, dims>).
template <int kDims = 1, typename Body>
void by_dims(int dims, const Body& body) {
  if constexpr (kDims < kMaxLatticeDims) {
    if (dims != kDims) {
      return by_dims<kDims + 1>(dims, body);
    }
  }
  body(std::integral_constant<int, kDims>{});
}

}  // namespace segkern
