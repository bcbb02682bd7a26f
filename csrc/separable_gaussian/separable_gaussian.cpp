// The exact Gaussian over the pixels of a grid: one pass along each axis.
#include <algorithm>
#include <cmath>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/aligned.h"
#include "separable_args.h"
#include "tap_rows.h"
#include "taps.h"

namespace segkern {
namespace {

struct AxisPass {
  int64_t length, step;
  std::vector<float> taps;

  int64_t radius() const { return static_cast<int64_t>(taps.size()) - 1; }
};

// exp(-k^2 / 2 w^2), or its derivative in w.
AxisPass make_pass(float width, int64_t length, int64_t step, bool derivative) {
  AxisPass pass{length, step, {}};
  const double w = width;
  for (int64_t k = 0; k <= gaussian_radius(width, length); ++k) {
    const double square = static_cast<double>(k) * static_cast<double>(k) / (w * w);
    pass.taps.push_back(
        static_cast<float>(std::exp(-0.5 * square) * (derivative ? square / w : 1.0)));
  }
  return pass;
}

// Columns worked on at once, so that the rows of all taps stay in the first-level cache.
constexpr int64_t kStrip = 128;

// Lines whose pixels lie next to each other; from a copy with zeros at both ends.
void filter_lines(const AxisPass& pass, const float* in, float* out, int64_t lines) {
  const int64_t radius = pass.radius(), length = pass.length;
  torch::stable::parallel_for(0, lines, 64, [&](int64_t first, int64_t last) {
    AlignedFloats padded(length + 2 * radius, true);
    float* middle = padded.get() + radius;
    for (int64_t line = first; line < last; ++line) {
      std::copy_n(in + line * length, length, middle);
      tap_rows().apply(middle, 1, radius, radius, pass.taps.data(), out + line * length, length);
    }
  });
}

// Lines whose pixels are `step` apart: `step` neighbouring lines at a time.
void filter_columns(const AxisPass& pass, const float* in, float* out, int64_t pixels) {
  const int64_t radius = pass.radius();
  const int64_t groups = pixels / (pass.length * pass.step);
  const int64_t strips = (pass.step + kStrip - 1) / kStrip;
  torch::stable::parallel_for(0, groups * strips, 1, [&](int64_t first, int64_t last) {
    for (int64_t s = first; s < last; ++s) {
      const int64_t x = s % strips * kStrip;
      const int64_t at = s / strips * pass.length * pass.step + x;
      const int64_t n = std::min(kStrip, pass.step - x);
      for (int64_t i = 0; i < pass.length; ++i) {
        tap_rows().apply(in + at + i * pass.step, pass.step, std::min(radius, i),
                         std::min(radius, pass.length - 1 - i), pass.taps.data(),
                         out + at + i * pass.step, n);
      }
    }
  });
}

// `derivative`: the axis whose taps are replaced by their derivatives in its width, or -1.
Tensor separable_gaussian_cpu(const Tensor& values, const Tensor& widths, int64_t derivative) {
  const SeparableCall call = check_separable(values, widths, derivative);
  const auto* width = static_cast<const float*>(call.widths.data_ptr());
  std::vector<AxisPass> passes;
  for (int64_t i = 0; i < call.axes(); ++i) {
    SEGKERN_CHECK(width[i] > 0 && std::isfinite(width[i]),
                  "separable_gaussian: widths must be positive and finite, got ", width[i]);
    if (call.sizes[i] > 0) {
      passes.push_back(make_pass(width[i], call.sizes[i], call.step(i), i == derivative));
    }
  }
  Tensor out = empty_in_layout(sizes_of(values), ScalarType::Float, values, false);
  if (out.numel() == 0) {
    return out;
  }
  const int64_t pixels = call.pixels();
  const auto filter_plane = [&](const float* in, float* to, float* scratch) {
    // The passes take turns between two arrays and end in `to`.
    const float* from = in;
    float* target = passes.size() % 2 ? to : scratch;
    for (const AxisPass& pass : passes) {
      if (pass.step == 1) {
        filter_lines(pass, from, target, pixels / pass.length);
      } else {
        filter_columns(pass, from, target, pixels);
      }
      from = target;
      target = target == to ? scratch : to;
    }
  };
  // Threads share out planes; where there are few planes, each plane's passes.
  const bool many = call.planes >= torch::stable::get_num_threads();
  torch::stable::parallel_for(
      0, call.planes, many ? 1 : call.planes, [&](int64_t first, int64_t last) {
        AlignedFloats scratch(pixels);
        for (int64_t plane = first; plane < last; ++plane) {
          filter_plane(static_cast<const float*>(call.values.data_ptr()) + plane * pixels,
                       static_cast<float*>(out.data_ptr()) + plane * pixels, scratch.get());
        }
      });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("separable_gaussian", TORCH_BOX(&separable_gaussian_cpu));
}

}  // namespace segkern
