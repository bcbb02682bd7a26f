// Building permutohedral lattices on the CPU, and filtering with them.
#pragma once

#include <vector>

#include "../common/aligned.h"
#include "blur_order.h"
#include "lattice.h"
#include "rows.h"

namespace segkern {

// One set of points: element (i, j) is data[i * point_stride + j * dim_stride].
struct PointFeatures {
  const float* data;
  int64_t point_stride, dim_stride;
};

enum class BuildError { kNone, kNotFinite, kTooWide };

// Fills the arrays of `lattice` from its points, and its count. kTooWide: the coordinates of the
// vertices need more than the 128 bits of the widest key; `bits` says how many.
BuildError build_lattice_cpu(const PointFeatures& features, LatticeView& lattice, int* bits);

// Adds to out (P, d) the gradient of sum(a * filter(b)) to the features; a, b (channels, P).
void add_feature_grad_cpu(const LatticeView& lattice, const PointFeatures& features,
                          const float* a, const float* b, int64_t channels, bool reverse,
                          float* out);

// The scale of each dimension for which the filter is a Gaussian of variance 1.
void embedding_scales(int dims, double* scales);

// One block of points as doubles, dimension-major; zeros behind the last point.
void load_point_block(const PointFeatures& features, int dims, int64_t begin, int64_t n,
                      double* block);

// The filter of one lattice over rows of channels, in the three steps that a caller interleaves
// with its own work on a slab of points: splat, blur, slice.
class LatticeFilter {
 public:
  LatticeFilter(const LatticeView& lattice, int64_t channels);

  int64_t stride() const { return stride_; }

  // Adds rows of points begin to end, all of one slab, to the slots.
  void splat(int64_t begin, int64_t end, const float* scale, float gain, const float* rows);

  // From the slots, which are cleared, to blurred vertex rows.
  void blur(bool reverse);

  // out = the filtered rows of points begin to end, times scale; or out = base + factor * those.
  void slice(int64_t begin, int64_t end, const float* scale, float* out) const;
  void slice_add(int64_t begin, int64_t end, const float* scale, const float* factor,
                 const float* base, float* out) const;

  // The blurred row of a vertex.
  const float* vertex_row(int32_t vertex) const { return sums_.get() + vertex * stride_; }

 private:
  CornerRows corners(const int32_t* rows, int64_t begin, int64_t end, const float* scale,
                     float gain) const;

  LatticeView lattice_;
  int64_t stride_;
  AlignedFloats slots_, sums_, other_;
  std::vector<BlurStep> order_[2];  // forwards and reversed, once needed
};

}  // namespace segkern
