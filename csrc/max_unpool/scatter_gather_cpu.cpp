// Scatter and gather for windows that overlap, are padded or dilated, and for flat indices. A task
// is one plane, or one image's block of channels in channels-last, walked in raster order of the
// windows: sums and winners do not depend on the number of threads.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "../max_pool/code_rows.h"
#include "scatter_gather.h"

namespace segkern {
namespace {

constexpr int64_t kLaneBlock = 16;  // channels of a task: a cache line of float

struct Unit {
  const PoolParams& p;
  const PoolWindow& w = p.window;
  int64_t plane = 0;    // plane, or image in channels-last
  int64_t channel = 0;  // first channel of the block, 0 in contiguous planes
  int64_t lanes = 1;    // channels of the block
  int64_t stride = 1;   // elements between positions

  // Offset of position `i` of the tensor with `positions` positions a plane.
  int64_t at(int64_t i, int64_t positions) const {
    return (plane * positions + i) * stride + channel;
  }

  // The plane position that a window names; -1 where that is not inside the plane.
  int64_t position(int64_t oh, int64_t ow, int64_t lane) const {
    const int64_t row = (plane * w.out_h + oh) * w.index_row(p.format) * stride + channel + lane;
    return plane_position(w, p.format, oh, ow,
                          stored_index(w, p.format, p.indices, row, stride, ow));
  }
};

// Calls visit(window, lane, position) for all windows of a unit; false on a bad index. Windows that
// lie wholly inside the plane, nearly all of them, find positions in a table of their taps.
template <typename Visit>
bool each_window(const Unit& u, const Visit& visit) {
  const PoolWindow& w = u.w;
  const bool coded = u.p.format != IndexFormat::kFlat;
  std::vector<int64_t> tap(coded ? w.taps() : 0);
  for (size_t k = 0; k < tap.size(); ++k) {
    tap[k] = static_cast<int64_t>(k) / w.kernel_w * w.dilation_h * w.in_w +
             static_cast<int64_t>(k) % w.kernel_w * w.dilation_w;
  }
  const uint32_t mask = u.p.format == IndexFormat::kOffset ? 0xffu : (1u << w.bits()) - 1;
  for (int64_t oh = 0; oh < w.out_h; ++oh) {
    const int64_t h = w.row(oh, 0);
    const bool whole_row = h >= 0 && h + (w.kernel_h - 1) * w.dilation_h < w.in_h;
    const int64_t row =
        (u.plane * w.out_h + oh) * w.index_row(u.p.format) * u.stride + u.channel;
    for (int64_t ow = 0; ow < w.out_w; ++ow) {
      const int64_t window = oh * w.out_w + ow;
      const int64_t x = w.col(ow, 0);
      if (coded && whole_row && x >= 0 && x + (w.kernel_w - 1) * w.dilation_w < w.in_w) {
        const bool packed = u.p.format == IndexFormat::kPacked;
        const int64_t at = row + (packed ? ow / w.per_word() : ow) * u.stride;
        const int shift = packed ? w.bits() * static_cast<int>(ow % w.per_word()) : 0;
        for (int64_t lane = 0; lane < u.lanes; ++lane) {
          const uint32_t stored = packed
                                      ? static_cast<const uint32_t*>(u.p.indices)[at + lane]
                                      : static_cast<const uint8_t*>(u.p.indices)[at + lane];
          const uint32_t code = stored >> shift & mask;
          if (code >= tap.size()) {
            return false;
          }
          visit(window, lane, h * w.in_w + x + tap[code]);
        }
        continue;
      }
      for (int64_t lane = 0; lane < u.lanes; ++lane) {
        const int64_t position = u.position(oh, ow, lane);
        if (position >= 0) {
          visit(window, lane, position);
        } else if (!w.empty(oh, ow)) {
          return false;
        }
      }
    }
  }
  return true;
}

template <typename Body>
bool each_unit(const PoolParams& p, const Body& body) {
  const int64_t blocks = p.channels_last ? (p.channels + kLaneBlock - 1) / kLaneBlock : 1;
  const int64_t units = p.channels_last ? p.batch * blocks : p.batch * p.channels;
  const int64_t work = std::max<int64_t>(1, p.window.in_h * p.window.in_w);
  std::atomic<bool> ok{true};
  torch::stable::parallel_for(
      0, units, std::max<int64_t>(1, 32768 / work), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end && ok; ++i) {
          Unit unit{p};
          unit.plane = i / blocks;
          unit.channel = i % blocks * kLaneBlock;
          unit.lanes = p.channels_last ? std::min(kLaneBlock, p.channels - unit.channel) : 1;
          unit.stride = p.channels_last ? p.channels : 1;
          if (!body(unit)) {
            ok = false;
          }
        }
      });
  return ok;
}

template <typename U>
void zero_plane(const Unit& u) {
  U* in = static_cast<U*>(u.p.in);
  const int64_t positions = u.w.in_h * u.w.in_w;
  if (u.stride == 1) {
    std::memset(in + u.at(0, positions), 0, positions * sizeof(U));
    return;
  }
  for (int64_t i = 0; i < positions; ++i) {
    std::memset(in + u.at(i, positions), 0, u.lanes * sizeof(U));
  }
}

template <typename U>
bool scatter_last_units(const PoolParams& p) {
  return each_unit(p, [&](const Unit& u) {
    const int64_t in_positions = u.w.in_h * u.w.in_w;
    const int64_t out_positions = u.w.out_h * u.w.out_w;
    U* in = static_cast<U*>(p.in);
    const U* out = static_cast<const U*>(p.out);
    zero_plane<U>(u);
    return each_window(u, [&](int64_t window, int64_t lane, int64_t position) {
      in[u.at(position, in_positions) + lane] = out[u.at(window, out_positions) + lane];
    });
  });
}

template <typename U>
bool gather_units(const PoolParams& p, bool winners_only) {
  // Tiled windows cannot name one position twice unless flat indices point outside their window.
  const bool search = winners_only && !(p.window.tiled() && p.format != IndexFormat::kFlat);
  return each_unit(p, [&](const Unit& u) {
    const int64_t in_positions = u.w.in_h * u.w.in_w;
    const int64_t out_positions = u.w.out_h * u.w.out_w;
    const U* in = static_cast<const U*>(p.in);
    U* out = static_cast<U*>(p.out);
    std::vector<int64_t> winner;
    if (search) {
      winner.assign(in_positions * u.lanes, -1);
      if (!each_window(u, [&](int64_t window, int64_t lane, int64_t position) {
            winner[position * u.lanes + lane] = window;
          })) {
        return false;
      }
    }
    for (int64_t i = 0; i < out_positions; ++i) {
      std::memset(out + u.at(i, out_positions), 0, u.lanes * sizeof(U));
    }
    return each_window(u, [&](int64_t window, int64_t lane, int64_t position) {
      if (!search || winner[position * u.lanes + lane] == window) {
        out[u.at(window, out_positions) + lane] = in[u.at(position, in_positions) + lane];
      }
    });
  });
}

template <typename scalar_t>
bool scatter_add_units(const PoolParams& p) {
  using acc_t = std::conditional_t<sizeof(scalar_t) == 2, float, scalar_t>;
  return each_unit(p, [&](const Unit& u) {
    const int64_t in_positions = u.w.in_h * u.w.in_w;
    const int64_t out_positions = u.w.out_h * u.w.out_w;
    scalar_t* in = static_cast<scalar_t*>(p.in);
    const scalar_t* out = static_cast<const scalar_t*>(p.out);
    if constexpr (std::is_same_v<acc_t, scalar_t>) {
      zero_plane<scalar_t>(u);
      return each_window(u, [&](int64_t window, int64_t lane, int64_t position) {
        in[u.at(position, in_positions) + lane] += out[u.at(window, out_positions) + lane];
      });
    } else {  // half types are summed in float
      std::vector<acc_t> sums(in_positions * u.lanes, acc_t{0});
      const bool ok = each_window(u, [&](int64_t window, int64_t lane, int64_t position) {
        sums[position * u.lanes + lane] +=
            static_cast<acc_t>(out[u.at(window, out_positions) + lane]);
      });
      for (int64_t i = 0; i < in_positions; ++i) {
        for (int64_t lane = 0; lane < u.lanes; ++lane) {
          in[u.at(i, in_positions) + lane] = static_cast<scalar_t>(sums[i * u.lanes + lane]);
        }
      }
      return ok;
    }
  });
}

// Calls body with an unsigned integer of the element's size: for loops that only copy.
template <typename Body>
bool by_size(Element element, const Body& body) {
  switch (element_size(element)) {
    case 8:
      return body(uint64_t{});
    case 4:
      return body(uint32_t{});
    default:
      return body(uint16_t{});
  }
}

}  // namespace

bool scatter_last(const PoolParams& p) {
  return by_size(p.element, [&](auto u) { return scatter_last_units<decltype(u)>(p); });
}

bool scatter_add(const PoolParams& p) {
  bool ok = true;
  SEGKERN_DISPATCH_FLOATING(p.element, [&] { ok = scatter_add_units<scalar_t>(p); });
  return ok;
}

bool gather(const PoolParams& p, bool winners_only) {
  return by_size(p.element,
                 [&](auto u) { return gather_units<decltype(u)>(p, winners_only); });
}

}  // namespace segkern
