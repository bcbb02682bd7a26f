// Pixels of maps and bins as dense runs of channels in the type that is summed in, whatever the
// layout and the element; for the CPU kernels.
#pragma once

#include <type_traits>
#include <vector>

#include "roi_rows.h"

namespace segkern {

// Channels that are worked on together: rows of some bins then stay in the nearest cache.
constexpr int64_t kRoiChannels = 64;

template <typename S>
using RoiWide = std::conditional_t<std::is_same_v<S, double>, double, float>;

// to[i * channels + c] = element c of pixel i, pixels side by side. `stride`: between the channels
// of a plane layout, or between the pixels of a channels-last one.
template <typename S, typename T>
void gather_pixels(const S* from, int64_t stride, bool channels_last, int64_t pixels,
                   int64_t channels, T* to, std::vector<T>& scratch) {
  if (channels_last) {
    for (int64_t i = 0; i < pixels; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        to[i * channels + c] = static_cast<T>(from[i * stride + c]);
      }
    }
  } else if constexpr (std::is_same_v<S, T>) {
    roi_rows(T{}).transpose(from, stride, channels, pixels, to, channels);
  } else {
    scratch.resize(pixels * channels);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < pixels; ++i) {
        scratch[c * pixels + i] = static_cast<T>(from[c * stride + i]);
      }
    }
    roi_rows(T{}).transpose(scratch.data(), pixels, channels, pixels, to, channels);
  }
}

// The opposite, of dense runs.
template <typename S, typename T>
void scatter_pixels(const T* from, int64_t stride, bool channels_last, int64_t pixels,
                    int64_t channels, S* to, std::vector<T>& scratch) {
  if (channels_last) {
    for (int64_t i = 0; i < pixels; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        to[i * stride + c] = static_cast<S>(from[i * channels + c]);
      }
    }
  } else if constexpr (std::is_same_v<S, T>) {
    roi_rows(T{}).transpose(from, channels, pixels, channels, to, stride);
  } else {
    scratch.resize(pixels * channels);
    roi_rows(T{}).transpose(from, channels, pixels, channels, scratch.data(), pixels);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < pixels; ++i) {
        to[c * stride + i] = static_cast<S>(scratch[c * pixels + i]);
      }
    }
  }
}

}  // namespace segkern
