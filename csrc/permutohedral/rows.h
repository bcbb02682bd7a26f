// The vectorised row kernels of the lattice and of mean field, for the processor at hand. A row is
// `stride` floats, one a channel, padded to whole vectors of 8; what lies behind the
// channels stays zero in sums, and minus infinity in logits.
#pragma once

#include <cstdint>

namespace segkern {

constexpr int64_t kRowVector = 8;  // floats

inline int64_t row_stride(int64_t channels) {
  return (channels + kRowVector - 1) / kRowVector * kRowVector;
}

// A share of a lattice's points: `vertex`, `weight` (and slots) of its first point onwards.
struct CornerRows {
  const int32_t* row;   // (n, corners) vertices or slots
  const float* weight;  // (n, corners)
  int corners;
  const float* scale;   // (n,) factor of each point, or null
  float gain;           // factor of all points
  int64_t following;    // points behind these, whose rows are fetched ahead
};

struct LatticeRows {
  // sums[row] += weight * scale * gain * values
  void (*splat)(const CornerRows& at, const float* values, float* sums, int64_t stride, int64_t n);
  // out = scale * gain * sum over corners of weight * sums[row]
  void (*slice)(const CornerRows& at, const float* sums, float* out, int64_t stride, int64_t n);
  // out = base + factor * (the same), factor a row; base may be out
  void (*slice_add)(const CornerRows& at, const float* sums, const float* factor,
                    const float* base, float* out, int64_t stride, int64_t n);
  // Vertices begin to end: the sum of their slots, which are cleared.
  void (*merge)(float* slots, const int32_t* offsets, float* sums, int64_t stride, int64_t begin,
                int64_t end);
  // out = in + (in[before] + in[after]) / 2
  void (*blur)(const float* in, const int32_t* neighbours, float* out, int64_t stride,
               int64_t begin, int64_t end);
  void (*softmax)(const float* logits, float* out, int64_t stride, int64_t n);
  // out = q * (grad - sum(q * grad))
  void (*softmax_backward)(const float* q, const float* grad, float* out, int64_t stride,
                           int64_t n);
  // out += in * matrix, matrix (channels, stride)
  void (*mix_add)(const float* in, const float* matrix, float* out, int64_t channels,
                  int64_t stride, int64_t n);
  // Sums over n rows: sums += a * b; matrix (channels, stride): matrix[i] += a[i] * b
  void (*dot_add)(const float* a, const float* b, float* sums, int64_t stride, int64_t n);
  void (*outer_add)(const float* a, const float* b, float* matrix, int64_t channels,
                    int64_t stride, int64_t n);
  // Rows from channel planes, with a sign, and back; `fill` goes behind the channels.
  void (*pack)(const float* planes, int64_t plane, int64_t channels, float sign, float fill,
               float* rows, int64_t stride, int64_t n);
  void (*unpack)(const float* rows, int64_t stride, int64_t channels, float sign, float* planes,
                 int64_t plane, int64_t n);
  // Embeds one block of points: features (dims, kPointBlock) to the multiples of D of the
  // remainder-0 vertex, the rest behind it, and the ranks of the rest; all (D, kPointBlock).
  void (*embed)(const double* features, const double* scales, int dims, int32_t* rem0,
                double* rest, int32_t* rank);
};

const LatticeRows& lattice_rows();

}  // namespace segkern
