// Filtering on the CPU. Splatting adds rows where they belong, in point order within a slab; a
// vertex is the sum of its slabs' slots in slab order, so results do not depend on the threads.
#include <algorithm>
#include <utility>

#include <torch/csrc/stable/ops.h>

#include "permutohedral.h"

namespace segkern {
namespace {

// Axes run through tables of vertices in shares of so many bytes: a few of them fit the
// second-level cache.
constexpr int64_t kShareBytes = int64_t{256} << 10;

}  // namespace

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

CornerRows LatticeFilter::corners(const int32_t* rows, int64_t begin, int64_t end,
                                  const float* scale, float gain) const {
  const int64_t first = begin * lattice_.corners();
  return {rows + first, lattice_.weight + first,         lattice_.corners(),
          scale ? scale + begin : nullptr, gain, lattice_.points - end};
}

void LatticeFilter::splat(int64_t begin, int64_t end, const float* scale, float gain,
                          const float* rows) {
  lattice_rows().splat(corners(lattice_.slot, begin, end, scale, gain), rows, slots_.get(), stride_,
                       end - begin);
}

void LatticeFilter::blur(bool reverse) {
  const LatticeRows& rows = lattice_rows();
  std::vector<BlurStep>& order = order_[reverse];
  if (order.empty()) {
    const int64_t row_bytes = stride_ * static_cast<int64_t>(sizeof(float));
    order = blur_order(lattice_, reverse, std::max<int64_t>(1, kShareBytes / row_bytes));
  }
  const int64_t grain = std::max<int64_t>(1, 16384 / stride_);
  float* buffers[2] = {sums_.get(), other_.get()};
  for (const BlurStep& step : order) {
    torch::stable::parallel_for(step.begin, step.end, grain, [&](int64_t begin, int64_t end) {
      if (step.stage == 0) {
        rows.merge(slots_.get(), lattice_.offsets, buffers[0], stride_, begin, end);
      } else {
        const int axis = blurred_axis(lattice_, step.stage - 1, reverse);
        rows.blur(buffers[(step.stage - 1) % 2], axis_neighbours(lattice_, axis),
                  buffers[step.stage % 2], stride_, begin, end);
      }
    });
  }
  if (lattice_.corners() % 2) {
    std::swap(sums_, other_);
  }
}

void LatticeFilter::slice(int64_t begin, int64_t end, const float* scale, float* out) const {
  lattice_rows().slice(corners(lattice_.vertex, begin, end, scale, lattice_.alpha()), sums_.get(), out,
                       stride_, end - begin);
}

void LatticeFilter::slice_add(int64_t begin, int64_t end, const float* scale, const float* factor,
                              const float* base, float* out) const {
  lattice_rows().slice_add(corners(lattice_.vertex, begin, end, scale, lattice_.alpha()), sums_.get(),
                           factor, base, out, stride_, end - begin);
}

}  // namespace segkern
