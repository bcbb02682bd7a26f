// Expansion and selection where windows tile the plane: SegNet's case. One task is one row of
// windows with the rows of the plane under it.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>

#include <torch/csrc/stable/ops.h>

#include "../common/stream_store.h"
#include "../max_pool/code_rows.h"
#include "scatter_gather.h"

namespace segkern {
namespace {

// Windows of channels-last that memory is asked for ahead of its use.
constexpr int64_t kAhead = 4;

struct TileTask {
  const PoolParams& p;
  const PoolWindow& w = p.window;
  const PoolRows& rows = pool_rows();
  const MoveRows& move = rows.move[static_cast<int>(p.element)];
  const int64_t size = element_size(p.element);
  const int64_t lane = p.channels * size;  // bytes of one channels-last position
  const bool stream = p.batch * p.channels * w.in_h * w.in_w * size >= kStreamBytes;
  // Rows and columns that whole windows cover; a ceil-mode pooling clips the last window.
  const int64_t full_w = std::min(w.out_w, w.in_w / w.kernel_w);

  char* plane_row(int64_t plane_or_batch, int64_t h) const {
    return static_cast<char*>(p.in) +
           (plane_or_batch * w.in_h + h) * w.in_w * (p.channels_last ? lane : size);
  }
  char* window_row(int64_t task) const {
    return static_cast<char*>(p.out) + task * w.out_w * (p.channels_last ? lane : size);
  }
  void put(char* to, const char* from, int64_t bytes) const {
    stream ? stream_store(to, from, bytes) : static_cast<void>(std::memcpy(to, from, bytes));
  }
  // Zeros from column `w0` of row h to the end of the row, and all rows below the last window row.
  void zero_rest(int64_t plane_or_batch, int64_t oh, int64_t w0) const {
    const int64_t position = p.channels_last ? lane : size;
    const int64_t last = oh + 1 == w.out_h ? w.in_h : std::min(w.in_h, (oh + 1) * w.kernel_h);
    for (int64_t h = oh * w.kernel_h; h < last; ++h) {
      const int64_t from = h < (oh + 1) * w.kernel_h ? std::min(w0, w.in_w) : 0;
      std::memset(plane_row(plane_or_batch, h) + from * position, 0, (w.in_w - from) * position);
    }
  }

  bool expand_rows(int64_t begin, int64_t end) const {
    const int64_t row_bytes = w.in_w * size;
    std::unique_ptr<char[]> buffer(new char[2 * row_bytes]());
    std::unique_ptr<uint8_t[]> code_buffer(new uint8_t[code_buffer_size(p)]);
    int seen = 0;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / w.out_h;
      const int64_t oh = task % w.out_h;
      const uint8_t* code = load_code_row(p, plane, oh, code_buffer.get());
      const bool two_rows = 2 * oh + 1 < w.in_h;
      const char* y = window_row(task);
      char* to0 = plane_row(plane, 2 * oh);
      char* to1 = two_rows ? to0 + row_bytes : nullptr;
      const bool direct = !stream && two_rows;
      char* r0 = direct ? to0 : buffer.get();
      char* r1 = direct ? to1 : buffer.get() + row_bytes;
      seen |= move.expand_2x2(y, code, r0, r1, full_w);
      if (full_w < w.out_w) {  // the window in the last column has one column only
        const uint8_t k = code[full_w];
        seen |= k == 1 || k == 3 ? 4 : k;
        move.expand_tap(y + full_w * size, &k, 0, r0 + 2 * full_w * size, 1);
        move.expand_tap(y + full_w * size, &k, 2, r1 + 2 * full_w * size, 1);
      } else {
        std::memset(r0 + 2 * full_w * size, 0, row_bytes - 2 * full_w * size);
        std::memset(r1 + 2 * full_w * size, 0, row_bytes - 2 * full_w * size);
      }
      if (!two_rows && rows.largest_code(code, w.out_w) > 1) {
        return false;
      }
      if (!direct) {
        put(to0, r0, row_bytes);
        if (two_rows) {
          put(to1, r1, row_bytes);
        }
      }
      if (oh + 1 == w.out_h) {
        for (int64_t h = 2 * w.out_h; h < w.in_h; ++h) {
          std::memset(plane_row(plane, h), 0, row_bytes);
        }
      }
    }
    stream_fence();
    return seen < 4;
  }

  bool select_rows(int64_t begin, int64_t end) const {
    std::unique_ptr<char[]> buffer(new char[w.out_w * size]);
    std::unique_ptr<uint8_t[]> code_buffer(new uint8_t[code_buffer_size(p)]);
    int seen = 0;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / w.out_h;
      const int64_t oh = task % w.out_h;
      const uint8_t* code = load_code_row(p, plane, oh, code_buffer.get());
      const bool two_rows = 2 * oh + 1 < w.in_h;
      const char* r0 = plane_row(plane, 2 * oh);
      const char* r1 = two_rows ? r0 + w.in_w * size : r0;  // r1 = r0: never chosen, checked below
      prefetch(r0 + 2 * w.in_w * size, 2 * w.in_w * size);  // the next pair of rows
      char* y = stream ? buffer.get() : window_row(task);
      seen |= move.select_2x2(r0, r1, code, y, full_w);
      if (full_w < w.out_w) {
        const uint8_t k = code[full_w];
        seen |= k == 1 || k == 3 ? 4 : k;
        const char* from = (k == 0 ? r0 : r1) + 2 * full_w * size;
        std::memcpy(y + full_w * size, from, size);
      }
      if (!two_rows && rows.largest_code(code, w.out_w) > 1) {
        return false;
      }
      if (stream) {
        stream_store(window_row(task), y, w.out_w * size);
      }
    }
    stream_fence();
    return seen < 4;
  }

  // Channels-last: window by window, all channels of a position at once. Whole windows of four
  // taps in one pass, others tap by tap; false on a code that names no element of its window.
  template <typename Four, typename Tap>
  bool each_lane(int64_t begin, int64_t end, const Four& four, const Tap& tap) const {
    std::unique_ptr<uint8_t[]> code_buffer(new uint8_t[code_buffer_size(p)]);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t batch = task / w.out_h;
      const int64_t oh = task % w.out_h;
      for (int64_t ow = 0; ow < w.out_w; ++ow) {
        const uint8_t* code = load_code_lane(p, batch, oh, ow, code_buffer.get());
        char* y = window_row(task) + ow * lane;
        const int64_t h = oh * w.kernel_h;
        const int64_t x = ow * w.kernel_w;
        const bool whole = h + w.kernel_h <= w.in_h && x + w.kernel_w <= w.in_w;
        if (whole && w.tiled_2x2()) {
          char* r0 = plane_row(batch, h) + x * lane;
          char* r1 = plane_row(batch, h + 1) + x * lane;
          if (four(y, code, r0, r0 + lane, r1, r1 + lane) >= 4) {
            return false;
          }
          continue;
        }
        for (int64_t c = 0; c < p.channels; ++c) {
          if (code[c] >= w.taps() || !w.inside(w.row(oh, code[c]), w.col(ow, code[c]))) {
            return false;
          }
        }
        for (int64_t k = 0; k < w.taps(); ++k) {
          if (w.inside(w.row(oh, k), w.col(ow, k))) {
            tap(y, code, static_cast<uint8_t>(k), plane_row(batch, w.row(oh, k)) +
                                                      w.col(ow, k) * lane);
          }
        }
      }
    }
    return true;
  }

  bool expand_lanes(int64_t begin, int64_t end) const {
    // Written in place: the pieces of a position are too short for streaming stores to gain.
    const bool ok = each_lane(
        begin, end,
        [&](const char* y, const uint8_t* code, char* a, char* b, char* c, char* d) {
          return move.expand_4(y, code, a, b, c, d, p.channels);
        },
        [&](const char* y, const uint8_t* code, uint8_t k, char* to) {
          move.expand_tap(y, code, k, to, p.channels);
        });
    for (int64_t task = begin; ok && task < end; ++task) {
      zero_rest(task / w.out_h, task % w.out_h, w.out_w * w.kernel_w);
    }
    return ok;
  }

  bool select_lanes(int64_t begin, int64_t end) const {
    return each_lane(
        begin, end,
        [&](char* y, const uint8_t* code, const char* a, const char* b, const char* c,
            const char* d) {
          prefetch(a + kAhead * 2 * lane, 2 * lane);
          prefetch(c + kAhead * 2 * lane, 2 * lane);
          return move.select_4(a, b, c, d, code, y, p.channels);
        },
        [&](char* y, const uint8_t* code, uint8_t k, const char* from) {
          move.select_tap(from, code, k, y, p.channels);
        });
  }
};

template <typename Rows>
bool each_window_row(const PoolParams& p, const Rows& body) {
  const PoolWindow& w = p.window;
  const int64_t rows = (p.channels_last ? p.batch : p.batch * p.channels) * w.out_h;
  const int64_t row_elements = w.out_w * w.taps() * (p.channels_last ? p.channels : 1);
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, row_elements));
  std::atomic<bool> ok{true};
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    if (!body(begin, end)) {
      ok = false;
    }
  });
  return ok;
}

}  // namespace

bool expand_tiles(const PoolParams& p) {
  const TileTask task{p};
  return each_window_row(p, [&](int64_t begin, int64_t end) {
    return p.channels_last ? task.expand_lanes(begin, end) : task.expand_rows(begin, end);
  });
}

bool select_tiles(const PoolParams& p) {
  const TileTask task{p};
  return each_window_row(p, [&](int64_t begin, int64_t end) {
    return p.channels_last ? task.select_lanes(begin, end) : task.select_rows(begin, end);
  });
}

}  // namespace segkern
