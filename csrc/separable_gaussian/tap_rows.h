// The vectorised kernel of the separable Gaussian, for the processor at hand.
#pragma once

#include <cstdint>

namespace segkern {

struct TapRows {
  // out[x] = taps[0] * in[x] + sum over k of taps[k] * (in[x - k * step] + in[x + k * step]) for
  // x < n; offsets end at `below` on the one side and at `above` on the other.
  void (*apply)(const float* in, int64_t step, int64_t below, int64_t above, const float* taps,
                float* out, int64_t n);
};

const TapRows& tap_rows();

}  // namespace segkern
