// Geometry of a 2-D pooling and the three ways its positions are stored. Shared by pooling and
// unpooling, host and device; includes neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/host_device.h"

namespace segkern {

// How the position of a window's maximum is stored. The tensor's dtype names the format.
enum class IndexFormat : int32_t {
  kOffset,  // uint8, (..., out_h, out_w): code = kh * kernel_w + kw inside the window
  kPacked,  // int32, (..., out_h, words_per_row): codes of 2 or 4 bits, lowest bits first
  kFlat,    // int64, (..., out_h, out_w): torch's position h * in_w + w in the input plane
};

// Pooling windows over one plane. "in" is the pooled side (the input of a pooling, the output of
// an unpooling), "out" the side with one element a window.
struct PoolWindow {
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  int64_t in_h, in_w;
  int64_t out_h, out_w;

  SEGKERN_HOST_DEVICE int64_t taps() const { return kernel_h * kernel_w; }

  // Row and column in the plane that `code` names for window (oh, ow); may lie in the padding.
  SEGKERN_HOST_DEVICE int64_t row(int64_t oh, int64_t code) const {
    return oh * stride_h - pad_h + code / kernel_w * dilation_h;
  }
  SEGKERN_HOST_DEVICE int64_t col(int64_t ow, int64_t code) const {
    return ow * stride_w - pad_w + code % kernel_w * dilation_w;
  }
  SEGKERN_HOST_DEVICE bool inside(int64_t h, int64_t w) const {
    return h >= 0 && h < in_h && w >= 0 && w < in_w;
  }

  // Whether window (oh, ow) holds no element at all, which dilation and padding can bring about.
  SEGKERN_HOST_DEVICE bool empty(int64_t oh, int64_t ow) const {
    return axis_empty(row(oh, 0), dilation_h, kernel_h, in_h) ||
           axis_empty(col(ow, 0), dilation_w, kernel_w, in_w);
  }
  SEGKERN_HOST_DEVICE static bool axis_empty(int64_t start, int64_t dilation, int64_t kernel,
                                             int64_t length) {
    const int64_t first = start >= 0 ? 0 : (-start + dilation - 1) / dilation;
    return first >= kernel || start + first * dilation >= length;
  }

  // Windows tile the plane from its corner: every element belongs to at most one window, found by
  // a division. This is what SegNet, DeconvNet, ENet and VGG use, and what the fast paths need.
  SEGKERN_HOST_DEVICE bool tiled() const {
    return kernel_h == stride_h && kernel_w == stride_w && pad_h == 0 && pad_w == 0 &&
           dilation_h == 1 && dilation_w == 1;
  }
  SEGKERN_HOST_DEVICE bool tiled_2x2() const {
    return tiled() && kernel_h == 2 && kernel_w == 2;
  }

  // Packed format: 2 bits where four codes are enough, else 4 bits for windows of up to 16.
  SEGKERN_HOST_DEVICE int bits() const { return taps() <= 4 ? 2 : 4; }
  SEGKERN_HOST_DEVICE int per_word() const { return 32 / bits(); }
  SEGKERN_HOST_DEVICE int64_t words_per_row() const {
    return (out_w + per_word() - 1) / per_word();
  }
  // Elements of one row of the index tensor.
  SEGKERN_HOST_DEVICE int64_t index_row(IndexFormat format) const {
    return format == IndexFormat::kPacked ? words_per_row() : out_w;
  }
};

// The plane index of window (oh, ow) with `code`. A window that holds no element names none: -1
// (torch gives a position outside the window there, sometimes inside the plane).
SEGKERN_HOST_DEVICE inline int64_t flat_index(const PoolWindow& w, int64_t oh, int64_t ow,
                                              int64_t code) {
  const int64_t h = w.row(oh, code);
  const int64_t x = w.col(ow, code);
  return w.inside(h, x) ? h * w.in_w + x : -1;
}

// The code of plane index `flat` in window (oh, ow), or -1 where it is not one of its elements.
SEGKERN_HOST_DEVICE inline int64_t offset_code(const PoolWindow& w, int64_t oh, int64_t ow, int64_t flat) {
  if (flat < 0 || flat >= w.in_h * w.in_w) {
    return -1;
  }
  const int64_t h = flat / w.in_w - w.row(oh, 0);
  const int64_t x = flat % w.in_w - w.col(ow, 0);
  if (h < 0 || x < 0 || h % w.dilation_h || x % w.dilation_w || h / w.dilation_h >= w.kernel_h ||
      x / w.dilation_w >= w.kernel_w) {
    return -1;
  }
  return h / w.dilation_h * w.kernel_w + x / w.dilation_w;
}

// The code of a stored index: -1 where it names no element of its window, 0 in an empty window.
SEGKERN_HOST_DEVICE inline int64_t window_code(const PoolWindow& w, IndexFormat format, int64_t oh,
                                               int64_t ow, int64_t index) {
  if (w.empty(oh, ow)) {
    return 0;
  }
  const int64_t code = format == IndexFormat::kFlat ? offset_code(w, oh, ow, index) : index;
  const bool named = code >= 0 && code < w.taps() && w.inside(w.row(oh, code), w.col(ow, code));
  return named ? code : -1;
}

constexpr int64_t kMaxOffsetTaps = 256;
constexpr int64_t kMaxPackedTaps = 16;

// The value that `indices` holds for window column ow, in a row of indices that starts at `row`
// with `stride` elements between neighbouring columns: a code, or a plane index.
SEGKERN_HOST_DEVICE inline int64_t stored_index(const PoolWindow& w, IndexFormat format,
                                                const void* indices, int64_t row, int64_t stride,
                                                int64_t ow) {
  switch (format) {
    case IndexFormat::kOffset:
      return static_cast<const uint8_t*>(indices)[row + ow * stride];
    case IndexFormat::kPacked: {
      const uint32_t word =
          static_cast<const uint32_t*>(indices)[row + ow / w.per_word() * stride];
      return word >> (w.bits() * (ow % w.per_word())) & ((1u << w.bits()) - 1);
    }
    default:
      return static_cast<const int64_t*>(indices)[row + ow * stride];
  }
}

// The plane position that a stored index names for window (oh, ow); -1 if it is not in the plane.
SEGKERN_HOST_DEVICE inline int64_t plane_position(const PoolWindow& w, IndexFormat format,
                                                  int64_t oh, int64_t ow, int64_t index) {
  if (format == IndexFormat::kFlat) {
    return index >= 0 && index < w.in_h * w.in_w ? index : -1;
  }
  if (index >= w.taps()) {
    return -1;
  }
  const int64_t h = w.row(oh, index);
  const int64_t x = w.col(ow, index);
  return w.inside(h, x) ? h * w.in_w + x : -1;
}

// One call of any pooling or unpooling kernel, forward or backward: `in` is the tensor of planes,
// `out` the tensor with one element a window, `indices` the positions; which of them is read and
// which written is the kernel's business. All three are dense in the same layout.
struct PoolParams {
  PoolWindow window;
  int64_t batch;     // product of the dimensions before C
  int64_t channels;
  Element element;
  IndexFormat format;
  bool channels_last;
  void* in;
  void* out;
  void* indices;
};

// Re-encodes the indices of `from` (whose in and out are unused) as format `to`.
struct ConvertParams {
  PoolParams from;
  IndexFormat to;
  void* indices;

  // Elements of one row of windows in the target, and of the windows that each of them holds.
  SEGKERN_HOST_DEVICE int64_t row() const { return from.window.index_row(to); }
  SEGKERN_HOST_DEVICE int per_element() const {
    return to == IndexFormat::kPacked ? from.window.per_word() : 1;
  }
};

}  // namespace segkern
