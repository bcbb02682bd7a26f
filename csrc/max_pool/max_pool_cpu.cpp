// CPU max pooling. One task is one row of windows, so that a pooled row and its codes stay in the
// first-level cache between the comparison, the packing and the streaming store.
#include <algorithm>
#include <cstring>
#include <memory>

#include <torch/csrc/stable/ops.h>

#include "../common/stream_store.h"
#include "../max_unpool/scatter_gather.h"
#include "code_rows.h"
#include "max_pool.h"

namespace segkern {
namespace {

// Fills n elements with -infinity, from which every tap competes.
void fill_lowest(void* to, Element element, int64_t n) {
  switch (element) {
    case Element::kFloat64:
      std::fill_n(static_cast<uint64_t*>(to), n, uint64_t{0xfff0000000000000u});
      break;
    case Element::kFloat32:
      std::fill_n(static_cast<uint32_t*>(to), n, uint32_t{0xff800000u});
      break;
    case Element::kFloat16:
      std::fill_n(static_cast<uint16_t*>(to), n, uint16_t{0xfc00u});
      break;
    case Element::kBFloat16:
      std::fill_n(static_cast<uint16_t*>(to), n, uint16_t{0xff80u});
      break;
  }
}

// First tap of an axis that is not in the padding before it; the whole kernel if there is none.
int64_t first_tap(int64_t start, int64_t dilation, int64_t kernel) {
  return start >= 0 ? 0 : std::min(kernel, (-start + dilation - 1) / dilation);
}

// Windows of channels-last that memory is asked for ahead of its use.
constexpr int64_t kAhead = 4;

struct PoolTask {
  const PoolParams& p;
  const PoolWindow& w = p.window;
  const PoolRows& rows = pool_rows();
  const MaxRows& max = rows.max[static_cast<int>(p.element)];
  const int64_t size = element_size(p.element);
  const bool stream =
      p.batch * p.channels * w.out_h * w.out_w * size >= kStreamBytes;

  const char* element_at(int64_t index) const {
    return static_cast<const char*>(p.in) + index * size;
  }

  // Any window: initialise, then one pass a tap over the windows for which it is inside.
  void pool_row(int64_t plane, int64_t oh, char* y, uint8_t* code, int64_t from_ow) const {
    const int64_t h0 = w.row(oh, 0);
    const int64_t kh0 = first_tap(h0, w.dilation_h, w.kernel_h);
    fill_lowest(y + from_ow * size, p.element, w.out_w - from_ow);
    for (int64_t ow = from_ow; ow < w.out_w; ++ow) {
      const int64_t kw0 = first_tap(w.col(ow, 0), w.dilation_w, w.kernel_w);
      code[ow] = static_cast<uint8_t>(w.empty(oh, ow) ? 0 : kh0 * w.kernel_w + kw0);
    }
    for (int64_t kh = kh0; kh < w.kernel_h; ++kh) {
      const int64_t h = h0 + kh * w.dilation_h;
      if (h >= w.in_h) {
        break;
      }
      const int64_t row = (plane * w.in_h + h) * w.in_w;
      for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
        const int64_t x0 = kw * w.dilation_w - w.pad_w;  // column of this tap for window 0
        const int64_t lo =
            std::max(from_ow, x0 >= 0 ? 0 : (-x0 + w.stride_w - 1) / w.stride_w);
        const int64_t hi =
            x0 >= w.in_w ? 0 : std::min(w.out_w, (w.in_w - 1 - x0) / w.stride_w + 1);
        if (lo < hi) {
          max.max_tap(element_at(row + lo * w.stride_w + x0), w.stride_w, y + lo * size,
                      code + lo, static_cast<uint8_t>(kh * w.kernel_w + kw), hi - lo);
        }
      }
    }
  }

  void contiguous_rows(int64_t begin, int64_t end) const {
    std::unique_ptr<char[]> y_buffer(new char[w.out_w * size]);
    std::unique_ptr<uint8_t[]> code_buffer(new uint8_t[code_buffer_size(p)]());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / w.out_h;
      const int64_t oh = task % w.out_h;
      char* y_row = static_cast<char*>(p.out) + task * w.out_w * size;
      char* y = stream ? y_buffer.get() : y_row;
      uint8_t* code = p.format == IndexFormat::kOffset ? index_row<uint8_t>(p, plane, oh)
                                                       : code_buffer.get();
      int64_t done = 0;
      if (w.tiled_2x2() && 2 * oh + 1 < w.in_h) {
        const char* row = element_at((plane * w.in_h + 2 * oh) * w.in_w);
        done = std::min(w.out_w, w.in_w / 2);
        prefetch(row + 2 * w.in_w * size, 2 * w.in_w * size);  // the next pair of rows
        max.max_2x2(row, row + w.in_w * size, y, code, done);
      }
      if (done < w.out_w) {
        pool_row(plane, oh, y, code, done);
      }
      store_code_row(p, plane, oh, code);
      if (stream) {
        stream_store(y_row, y, w.out_w * size);
      }
    }
    stream_fence();
  }

  void channels_last_rows(int64_t begin, int64_t end) const {
    const int64_t lane = p.channels * size;
    std::unique_ptr<char[]> y_buffer(new char[lane]);
    std::unique_ptr<uint8_t[]> code_buffer(new uint8_t[code_buffer_size(p)]);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t batch = task / w.out_h;
      const int64_t oh = task % w.out_h;
      for (int64_t ow = 0; ow < w.out_w; ++ow) {
        char* y_lane = static_cast<char*>(p.out) + (task * w.out_w + ow) * lane;
        char* y = stream ? y_buffer.get() : y_lane;
        uint8_t* code = p.format == IndexFormat::kOffset
                            ? index_row<uint8_t>(p, batch, oh) + ow * p.channels
                            : code_buffer.get();
        if (w.tiled_2x2() && 2 * oh + 1 < w.in_h && 2 * ow + 1 < w.in_w) {
          const char* r0 = element_at(((batch * w.in_h + 2 * oh) * w.in_w + 2 * ow) * p.channels);
          const char* r1 = r0 + w.in_w * lane;
          prefetch(r0 + kAhead * 2 * lane, 2 * lane);
          prefetch(r1 + kAhead * 2 * lane, 2 * lane);
          max.max_4(r0, r0 + lane, r1, r1 + lane, y, code, p.channels);
        } else {
          fill_lowest(y, p.element, p.channels);
          bool first = true;
          std::memset(code, 0, p.channels);
          for (int64_t k = 0; k < w.taps(); ++k) {
            const int64_t h = w.row(oh, k);
            const int64_t x = w.col(ow, k);
            if (!w.inside(h, x)) {
              continue;
            }
            if (first) {
              std::memset(code, static_cast<int>(k), p.channels);
              first = false;
            }
            max.max_tap(element_at(((batch * w.in_h + h) * w.in_w + x) * p.channels), 1, y, code,
                        static_cast<uint8_t>(k), p.channels);
          }
        }
        store_code_lane(p, batch, oh, ow, code);
        if (stream) {
          stream_store(y_lane, y, lane);
        }
      }
    }
    stream_fence();
  }
};

}  // namespace

void max_pool_fwd_cpu(const PoolParams& p) {
  if (p.window.taps() > kMaxOffsetTaps) {
    max_pool_wide_cpu(p);
    return;
  }
  const PoolTask task{p};
  const PoolWindow& w = p.window;
  const int64_t rows = (p.channels_last ? p.batch : p.batch * p.channels) * w.out_h;
  const int64_t row_elements = w.out_w * w.taps() * (p.channels_last ? p.channels : 1);
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, row_elements));
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    p.channels_last ? task.channels_last_rows(begin, end) : task.contiguous_rows(begin, end);
  });
}

bool max_pool_bwd_cpu(const PoolParams& p) {
  if (can_tile(p)) {
    return expand_tiles(p);
  }
  return scatter_add(p);
}

}  // namespace segkern
