// Filtering on the CPU. Splatting adds rows where they belong, in point order within a slab; a
// vertex is the sum of its slabs' slots in slab order, so results do not depend on the threads.
#include <algorithm>
#include <utility>

#include <torch/csrc/stable/ops.h>

#include "permutohedral.h"

namespace segkern {

LatticeFilter::LatticeFilter(const LatticeView& lattice, int64_t channels)
    : lattice_(lattice),
      stride_(row_stride(channels)),
      slots_(lattice.offsets[lattice.count] * stride_, true),
      // One row of zeros behind the vertices stands for all missing neighbours.
      sums_((lattice.count + 1) * stride_),
      other_((lattice.count + 1) * stride_) {
  std::fill_n(sums_.get() + lattice.count * stride_, stride_, 0.0f);
  std::fill_n(other_.get() + lattice.count * stride_, stride_, 0.0f);
}

CornerRows LatticeFilter::corners(const int32_t* rows, int64_t begin, const float* scale,
                                  float gain) const {
  const int64_t first = begin * lattice_.corners();
  return {rows + first, lattice_.weight + first, lattice_.corners(),
          scale ? scale + begin : nullptr, gain};
}

void LatticeFilter::splat(int64_t begin, int64_t end, const float* scale, float gain,
                          const float* rows) {
  lattice_rows().splat(corners(lattice_.slot, begin, scale, gain), rows, slots_.get(), stride_,
                       end - begin);
}

void LatticeFilter::blur(bool reverse) {
  const LatticeRows& rows = lattice_rows();
  const int64_t grain = std::max<int64_t>(1, 65536 / stride_);
  torch::stable::parallel_for(0, lattice_.count, grain, [&](int64_t begin, int64_t end) {
    rows.merge(slots_.get(), lattice_.offsets, sums_.get(), stride_, begin, end);
  });
  for (int i = 0; i < lattice_.corners(); ++i) {
    const int axis = reverse ? lattice_.dims - i : i;
    const int32_t* neighbours = lattice_.neighbours + axis * lattice_.bound * 2;
    torch::stable::parallel_for(0, lattice_.count, grain, [&](int64_t begin, int64_t end) {
      rows.blur(sums_.get(), neighbours, other_.get(), stride_, begin, end);
    });
    std::swap(sums_, other_);
  }
}

void LatticeFilter::slice(int64_t begin, int64_t end, const float* scale, float* out) const {
  lattice_rows().slice(corners(lattice_.vertex, begin, scale, lattice_.alpha()), sums_.get(), out,
                       stride_, end - begin);
}

void LatticeFilter::slice_add(int64_t begin, int64_t end, const float* scale, const float* factor,
                              const float* base, float* out) const {
  lattice_rows().slice_add(corners(lattice_.vertex, begin, scale, lattice_.alpha()), sums_.get(),
                           factor, base, out, stride_, end - begin);
}

}  // namespace segkern
