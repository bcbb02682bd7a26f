// Windows of more than 256 elements, whose codes do not fit a byte: only the flat index format
// holds them. Rare, so a plain loop: one task is one row of windows.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "max_pool.h"

namespace segkern {
namespace {

template <typename scalar_t>
void pool_window(const PoolParams& p, int64_t plane, int64_t oh, int64_t ow, int64_t lane) {
  using wide_t = std::conditional_t<sizeof(scalar_t) == 2, float, scalar_t>;
  const PoolWindow& w = p.window;
  const int64_t stride = p.channels_last ? p.channels : 1;
  const scalar_t* in = static_cast<const scalar_t*>(p.in);
  int64_t best = -1;
  wide_t best_value = -INFINITY;
  for (int64_t k = 0; k < w.taps(); ++k) {
    const int64_t h = w.row(oh, k);
    const int64_t x = w.col(ow, k);
    if (w.inside(h, x)) {
      const int64_t at = ((plane * w.in_h + h) * w.in_w + x) * stride + lane;
      const wide_t value = static_cast<wide_t>(in[at]);
      if (best < 0 || value > best_value || value != value) {
        best = h * w.in_w + x;
        best_value = value;
      }
    }
  }
  const int64_t to = ((plane * w.out_h + oh) * w.out_w + ow) * stride + lane;
  static_cast<scalar_t*>(p.out)[to] = static_cast<scalar_t>(best_value);
  static_cast<int64_t*>(p.indices)[to] = best;
}

}  // namespace

void max_pool_wide_cpu(const PoolParams& p) {
  const PoolWindow& w = p.window;
  const int64_t planes = p.channels_last ? p.batch : p.batch * p.channels;
  const int64_t lanes = p.channels_last ? p.channels : 1;
  SEGKERN_DISPATCH_FLOATING(p.element, [&] {
    torch::stable::parallel_for(0, planes * w.out_h, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        for (int64_t i = 0; i < w.out_w * lanes; ++i) {
          pool_window<scalar_t>(p, task / w.out_h, task % w.out_h, i / lanes, i % lanes);
        }
      }
    });
  });
}

}  // namespace segkern
