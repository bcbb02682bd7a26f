// Vectorised kernels for depthwise convolution with 3x3 taps and stride 1, for the processor at
// hand. Outputs that lie a rate apart share inputs; a tile of them is made in registers, so that an
// input is loaded once for up to nine products whatever the rate.
#pragma once

#include <cstdint>

#include "../common/element.h"

namespace segkern {

constexpr int kTileOutputs = 4;                 // outputs of a tile along an axis, at most
constexpr int kTileInputs = kTileOutputs + 2;  // inputs that they read
// Channels-last tiles have at least this many channels.
constexpr int64_t kTileChannels = 16;

// Output (a, b) of a channels-last tile is the sum of weight (i, j) times input (a + i, b + j).
// Pointers are to the first channel of a pixel; null is padding, or no output.
template <typename T>
struct PixelTile {
  const char* in[kTileInputs][kTileInputs];
  const char* residual[kTileOutputs][kTileOutputs];
  char* out[kTileOutputs][kTileOutputs];
  const T* weight;  // (9, weight_step) by taps
  int64_t weight_step;
  const T* shift;  // per channel, or null
  const T* slope;  // of PReLU
  int64_t slope_step;
  int activation;
  int64_t channels;
  bool stream;  // past the caches, where aligned
};

template <typename T>
struct DepthwiseTiles {
  // Element is T's own or, for float, kBFloat16.
  void (*pixels)(const PixelTile<T>& tile, Element element);
  // Rows y[a] = init + the sum of weights w[i][k] times rows[a + i], shifted by offset[k], for taps
  // k in [first, last), for whole blocks of kRowBlock elements from x0 to x1. Null rows are
  // padding, or no output.
  void (*rows)(const T* const* rows, const T* w, const int64_t* offset, int first, int last, T init,
               T* const* y, int64_t x0, int64_t x1);
};

template <typename T>
const DepthwiseTiles<T>& depthwise_tiles();

}  // namespace segkern
