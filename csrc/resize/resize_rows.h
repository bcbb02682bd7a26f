// The vectorised row kernels of bilinear resampling, for the processor at hand.
#pragma once

#include <cstdint>

namespace segkern {

// Elements that kernels may read behind rows where it says "and beyond", and write behind results
// where it says so.
constexpr int64_t kResizeBeyond = 32;
constexpr int64_t kResizeLanes = 16;

// The weights of a row of outputs in blocks of `lanes`: output b * lanes + l reads
// in[base[b] + lane[b * lanes + l]] and the element behind it.
template <typename T>
struct BlockTable {
  const int64_t* base;
  const void* lane;  // integers as wide as T
  const T *near, *far;
  int64_t blocks;
  bool pairs;  // lanes count through two vectors; else through one
};

// T is float or double.
template <typename T>
struct ResizeRows {
  int lanes;  // of expand_blocks; 0 where the processor cannot
  // out[o] = near[o] * in[first[o]] + far[o] * in[first[o] + 1] for o < n; in and beyond.
  void (*expand)(const T* in, const int64_t* first, const T* near, const T* far, int64_t n, T* out);
  // The same from blocks; in and out and beyond.
  void (*expand_blocks)(const T* in, const BlockTable<T>& table, T* out);
  // The same over pixels of several channels; first[o] counts from pixel `origin`, at which `in`
  // begins. in and out and beyond where the channels are not a multiple of 64 bytes.
  void (*expand_pixels)(const T* in, int64_t origin, const int64_t* first, const T* near,
                        const T* far, int64_t n, int64_t channels, T* out);
  // out[r][x] = near[r] * a[x] + far[r] * b[x] for x < n; b is not read where far[r] is 0.
  void (*blend)(const T* a, const T* b, const T* near, const T* far, int64_t rows, int64_t n,
                T* out);
  // Both at once for n pixels of whole vectors: `one` and `two` are input rows, `above` and `below`
  // their weights; `two` is not read where `below` is 0. `past`: stores past the caches, out at a
  // multiple of 64 bytes.
  void (*blend_pixels)(const T* one, const T* two, const int64_t* first, const T* near,
                       const T* far, T above, T below, int64_t n, int64_t channels, bool past,
                       T* out);
  // sum[x] = carried[x] + sum over k < count of near[k] * in[k * step + x] for x < n, in that
  // order, and carry[x] the sum of far[k] * in[k * step + x]; carried may be null. `add`: adds to
  // what is in both instead; n is then a multiple of kResizeLanes.
  void (*gather)(const T* in, int64_t step, const T* near, const T* far, int64_t count, int64_t n,
                 const T* carried, bool add, T* sum, T* carry);
  // Pixel i of n, of several channels, is the sum of the pixels of `in` from begin[i] - origin on,
  // with weights[start[i]] to weights[start[i + 1]]. in and out and beyond.
  void (*mix_pixels)(const T* in, int64_t origin, const int64_t* begin, const int64_t* start,
                     const T* weights, int64_t n, int64_t channels, T* out);
};

template <typename T>
const ResizeRows<T>& resize_rows();

}  // namespace segkern
