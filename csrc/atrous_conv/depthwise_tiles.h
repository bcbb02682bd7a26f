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

// A tile of the rows of a plane: elements from the plane's first to each row that it reads and
// makes; -1 is padding, or no output.
struct RowTile {
  int64_t in[kTileInputs];
  int64_t out[kTileOutputs];
};

template <typename T>
struct DepthwiseTiles {
  // Element is T's own or, for float, kBFloat16.
  void (*pixels)(const PixelTile<T>& tile, Element element);
  // For each tile, output rows a = init + the sum of weights w[i][k] times input rows a + i, shifted
  // by offset[k], for taps k in [first, last) and whole blocks of kRowBlock from x0 to x1.
  void (*rows)(const T* in, const RowTile* tiles, int64_t count, const T* w, const int64_t* offset,
               int first, int last, T init, T* y, int64_t x0, int64_t x1);
  // Rows of `width` elements behind each other (at least kRowBlock) to rows `step` apart.
  void (*load)(const char* from, Element element, T* to, int64_t width, int64_t step,
               int64_t rows);
};

template <typename T>
const DepthwiseTiles<T>& depthwise_tiles();

}  // namespace segkern
