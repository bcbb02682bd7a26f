// CPU depthwise convolution. The contiguous layout goes plane by plane: the rows of a plane are
// copied into rows with margins, where no tap needs a test, and output rows are sums of shifted
// rows. Channels-last goes by rows of pixels and blocks of channels. Every input element comes
// from memory once, at any rate. 3x3 taps at stride 1 go by tiles (depthwise_tiles.h).
#include <cstring>

#include <torch/csrc/stable/ops.h>

#include "../common/stream_store.h"
#include "depthwise.h"
#include "depthwise_tiles.h"
#include "tile_plan.h"
#include "row_plan.h"

namespace segkern {
namespace {

// A plane whose rows take less is kept whole, a larger one as kernel_h rows.
constexpr int64_t kPlaneBytes = int64_t{192} << 10;
// Rows of a channel block that the outputs of one row read.
constexpr int64_t kRowsBytes = int64_t{384} << 10;
// Output rows of one task where a plane is more than one task.
constexpr int64_t kTaskRows = 64;
// Output rows that are made before they are written, of a plane that is kept whole.
constexpr int64_t kBandBytes = int64_t{8} << 10;

// Elements of work below which a task is not worth a thread.
constexpr int64_t kGrain = 32768;

template <typename T>
struct Depthwise {
  const DepthwiseParams& p;
  const ConvWindow& w = p.window;
  const DepthwiseRows<T>& rows = depthwise_rows<T>();
  const int64_t size = element_size(p.element);
  const bool own = size == static_cast<int64_t>(sizeof(T));  // elements are T already
  const bool stream = p.batch * p.channels * w.out_h * w.out_w * size >= kStreamBytes;
  const T* scale = static_cast<const T*>(p.scale);
  const T* shift = static_cast<const T*>(p.shift);
  const T* slope = static_cast<const T*>(p.slope);

  const char* in_at(int64_t i) const { return static_cast<const char*>(p.in) + i * size; }
  char* out_at(int64_t i) const { return static_cast<char*>(p.out) + i * size; }

  T weight(int64_t c, int64_t tap) const {
    const int64_t k = p.flip ? w.taps() - 1 - tap : tap;
    const T value = static_cast<const T*>(p.weight)[c * w.taps() + k];
    return scale ? value * scale[c] : value;
  }

  // y, with n elements, to the output at element i: residual, activation, conversion, store.
  void write(T* y, int64_t i, const T* slopes, int64_t slope_step, T* spare, char* packed,
             int64_t n) const {
    const T* residual = nullptr;
    if (p.residual) {
      rows.load(p.element, static_cast<const char*>(p.residual) + i * size, spare, n);
      residual = spare;
    }
    if (residual || p.activation != Activation::kNone) {
      rows.finish(y, residual, static_cast<int>(p.activation), slopes, slope_step, n);
    }
    const void* from = y;
    if (!own) {
      rows.store(p.element, y, packed, n);
      from = packed;
    }
    if (stream) {
      rows.stream(out_at(i), from, n * size);
    } else {
      std::memcpy(out_at(i), from, n * size);
    }
  }
};

template <typename T>
struct Contiguous : Depthwise<T> {
  using Depthwise<T>::p;
  using Depthwise<T>::w;
  using Depthwise<T>::rows;
  using Depthwise<T>::size;

  RowForm form{Depthwise<T>::p.window};
  const bool whole = form.row_stride * w.in_h * static_cast<int64_t>(sizeof(T)) <= kPlaneBytes;
  const bool tiled = whole && takes_row_tiles(w);
  const std::vector<TileSegment> tile_segments =
      tiled ? make_tile_segments(w) : std::vector<TileSegment>{};
  const std::vector<RowTile> row_tiles =
      tiled ? make_row_tiles(w, form.row_stride) : std::vector<RowTile>{};
  const DepthwiseTiles<T>& tiles = depthwise_tiles<T>();
  // Rows made before they are written.
  const int64_t band =
      tiled ? w.out_h
      : whole ? std::max<int64_t>(1, kBandBytes / (w.out_w * static_cast<int64_t>(sizeof(T)))) : 1;
  const std::vector<RowRun> runs = row_runs(w, whole ? rows_in_turn(w) : row_order(w), band);
  const int64_t runs_per_task = whole ? static_cast<int64_t>(runs.size()) : kTaskRows;
  const int64_t tasks_per_plane = ceil_div(static_cast<int64_t>(runs.size()), runs_per_task);

  struct Scratch {
    std::vector<T> slots, y, spare, weights;
    std::vector<int64_t> tags;
    std::vector<char> packed;
    std::vector<const T*> row, weight;
  };

  Scratch scratch() const {
    Scratch s;
    s.slots.assign(form.row_stride * (whole ? w.in_h : w.kernel_h), T{0});
    s.tags.assign(whole ? 0 : w.kernel_h, -1);
    const int64_t length = band * w.out_w + kRowBlock;
    s.y.resize(length);
    s.spare.resize(std::max(length, w.in_w));
    s.packed.resize(length * size);
    s.weights.resize(w.taps());
    s.row.resize(w.kernel_h);
    s.weight.resize(w.kernel_h);
    return s;
  }

  void fetch(int64_t plane, int64_t h, T* slot, T* spare) const {
    const char* from = this->in_at((plane * w.in_h + h) * w.in_w);
    if (w.stride_w == 1 && w.up_w == 1) {
      rows.load(p.element, from, slot + kRowBlock, w.in_w);
    } else {
      rows.load(p.element, from, spare, w.in_w);
      form.place(w, spare, slot);
    }
  }

  const T* slot_of(Scratch& s, int64_t plane, int64_t oh, int64_t k, int64_t h) const {
    if (whole) {
      return s.slots.data() + h * form.row_stride;
    }
    const int64_t slot = ring_slot(w, oh, k);
    T* row = s.slots.data() + slot * form.row_stride;
    if (s.tags[slot] != h) {
      fetch(plane, h, row, s.spare.data());
      s.tags[slot] = h;
    }
    return row;
  }

  void tasks(int64_t begin, int64_t end) const {
    Scratch s = scratch();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / tasks_per_plane;
      const int64_t part = task % tasks_per_plane;
      const int64_t c = plane % p.channels;
      for (int64_t t = 0; t < w.taps(); ++t) {
        s.weights[t] = this->weight(c, t);
      }
      if (tiled) {
        make_plane(s, plane, task + 1 < end);
        continue;
      }
      if (whole) {
        for (int64_t h = 0; h < w.in_h; ++h) {
          if (task + 1 < end) {  // the next plane, a row at a time
            prefetch(this->in_at(((plane + 1) * w.in_h + h) * w.in_w), w.in_w * size);
          }
          fetch(plane, h, s.slots.data() + h * form.row_stride, s.spare.data());
        }
      } else {
        std::fill(s.tags.begin(), s.tags.end(), -1);
      }
      const int64_t first = part * runs_per_task;
      const int64_t last = std::min<int64_t>(runs.size(), first + runs_per_task);
      for (int64_t i = first; i < last; ++i) {
        const RowRun& run = runs[i];
        make_rows(s, plane, run);
      }
    }
    stream_fence();
  }

  // All rows of a plane by tiles. Meanwhile the next plane is asked for, a share with each run of
  // columns, where there is one.
  void make_plane(Scratch& s, int64_t plane, bool more) const {
    const int64_t c = plane % p.channels;
    const int64_t elements = w.in_h * w.in_w;
    if (p.element == Element::kFloat16) {
      for (int64_t h = 0; h < w.in_h; ++h) {
        fetch(plane, h, s.slots.data() + h * form.row_stride, s.spare.data());
      }
    } else {
      tiles.load(this->in_at(plane * elements), p.element, s.slots.data() + kRowBlock, w.in_w,
                 form.row_stride, w.in_h);
    }
    const T init = this->shift ? this->shift[c] : T{0};
    const auto shares = static_cast<int64_t>(tile_segments.size());
    for (int64_t i = 0; i < shares; ++i) {
      if (more) {
        const int64_t begin = elements * i / shares;
        prefetch(this->in_at((plane + 1) * elements + begin),
                 (elements * (i + 1) / shares - begin) * size);
      }
      const TileSegment& segment = tile_segments[i];
      tiles.rows(s.slots.data(), row_tiles.data(), static_cast<int64_t>(row_tiles.size()),
                 s.weights.data(), form.offset.data(), segment.first, segment.last, init,
                 s.y.data(), segment.x0, segment.x1);
    }
    const T* slope = this->slope ? this->slope + c * p.slope_step : nullptr;
    this->write(s.y.data(), plane * w.out_h * w.out_w, slope, 0, s.spare.data(), s.packed.data(),
                w.out_h * w.out_w);
  }

  // Rows lie behind each other in y: what a last block writes too much is the start of the next
  // row, which is written later because segments are taken from the right.
  void make_rows(Scratch& s, int64_t plane, const RowRun& run) const {
    const int64_t c = plane % p.channels;
    int nr = 0;
    for (const auto& [k, h] : run.taps) {
      s.row[nr] = slot_of(s, plane, run.oh, k, h);
      s.weight[nr++] = s.weights.data() + k * w.kernel_w;
    }
    const T init = this->shift ? this->shift[c] : T{0};
    for (auto segment = form.segments.rbegin(); segment != form.segments.rend(); ++segment) {
      const int first = nr == 0 ? segment->last : segment->first;  // no row is no tap
      rows.segment(s.row.data(), s.weight.data(), form.offset.data(), nr, first, segment->last,
                   init, s.y.data(), segment->x0, segment->blocks, run.count,
                   form.row_stride * w.stride_h, w.out_w);
    }
    const T* slope = this->slope ? this->slope + c * p.slope_step : nullptr;
    this->write(s.y.data(), (plane * w.out_h + run.oh) * w.out_w, slope, 0, s.spare.data(),
                s.packed.data(), run.count * w.out_w);
  }
};

// Channels of one task: rows of a block of them fit the second-level cache.
int64_t channel_block(int64_t channels, int64_t row_bytes_per_channel) {
  constexpr int64_t kUnit = 64;
  const int64_t fitting = kRowsBytes / std::max<int64_t>(1, row_bytes_per_channel);
  return std::min(channels, std::max(kUnit, fitting / kUnit * kUnit));
}

template <typename T>
struct ChannelsLast : Depthwise<T> {
  using Depthwise<T>::p;
  using Depthwise<T>::w;
  using Depthwise<T>::rows;
  using Depthwise<T>::size;
  using Depthwise<T>::own;

  const std::vector<RowRun> row_list = row_runs(w, row_order(w), 1);
  const int64_t block = channel_block(
      p.channels, w.kernel_h * w.in_w * static_cast<int64_t>(sizeof(T)));
  const int64_t blocks = ceil_div(p.channels, block);
  const int64_t row_tasks = ceil_div(w.out_h, kTaskRows);
  const std::vector<PixelRun> runs = pixel_runs(w);

  struct Scratch {
    std::vector<T> ring, weights, y, spare;
    std::vector<int64_t> tags;
    std::vector<char> packed;
    std::vector<const T*> row, in, weight;
    std::vector<int64_t> row_tap;
  };

  Scratch scratch() const {
    Scratch s;
    if (!own) {
      s.ring.resize(w.kernel_h * w.in_w * block);
    }
    s.tags.resize(w.kernel_h);
    s.weights.resize(w.taps() * block);
    s.y.resize(kLanePixels * block);
    s.spare.resize(block);
    s.packed.resize(block * size);
    s.row.resize(w.kernel_h);
    s.row_tap.resize(w.kernel_h);
    s.in.resize(w.taps());
    s.weight.resize(w.taps());
    return s;
  }

  // Pixel 0 of input row h, channels from c0; elements `pitch` apart from pixel to pixel.
  const T* row_of(Scratch& s, int64_t n, int64_t oh, int64_t k, int64_t h, int64_t c0,
                  int64_t nc) const {
    const int64_t first = ((n * w.in_h + h) * w.in_w) * p.channels + c0;
    if (own) {
      return reinterpret_cast<const T*>(this->in_at(first));
    }
    const int64_t slot = ring_slot(w, oh, k);
    T* row = s.ring.data() + slot * w.in_w * block;
    if (s.tags[slot] != h) {
      for (int64_t x = 0; x < w.in_w; ++x) {
        rows.load(p.element, this->in_at(first + x * p.channels), row + x * block, nc);
      }
      s.tags[slot] = h;
    }
    return row;
  }

  void tasks(int64_t begin, int64_t end) const {
    Scratch s = scratch();
    int64_t of_block = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % row_tasks;
      const int64_t n = task / row_tasks % p.batch;
      const int64_t c0 = task / row_tasks / p.batch * block;
      const int64_t nc = std::min(block, p.channels - c0);
      if (of_block != c0) {
        for (int64_t c = 0; c < nc; ++c) {
          for (int64_t t = 0; t < w.taps(); ++t) {
            s.weights[t * block + c] = this->weight(c0 + c, t);
          }
        }
        of_block = c0;
      }
      std::fill(s.tags.begin(), s.tags.end(), -1);
      const int64_t last = std::min(w.out_h, (part + 1) * kTaskRows);
      for (int64_t i = part * kTaskRows; i < last; ++i) {
        make_row(s, n, row_list[i], c0, nc);
      }
    }
    stream_fence();
  }

  void make_row(Scratch& s, int64_t n, const RowRun& rows_of_y, int64_t c0, int64_t nc) const {
    const int64_t oh = rows_of_y.oh;
    int nr = 0;
    for (const auto& [k, h] : rows_of_y.taps) {
      s.row_tap[nr] = k;
      s.row[nr++] = row_of(s, n, oh, k, h, c0, nc);
    }
    const int64_t pitch = own ? p.channels : block;
    const T* init = this->shift ? this->shift + c0 : nullptr;
    const T* slopes = this->slope ? this->slope + c0 * p.slope_step : nullptr;
    for (const PixelRun& run : runs) {
      int nt = 0;
      for (const auto& [k, x] : run.taps) {
        for (int r = 0; r < nr; ++r) {
          s.in[nt] = s.row[r] + x * pitch;
          s.weight[nt++] = s.weights.data() + (s.row_tap[r] * w.kernel_w + k) * block;
        }
      }
      for (int64_t done = 0; done < run.count; done += kLanePixels) {
        const int64_t count = std::min(kLanePixels, run.count - done);
        rows.lanes(s.in.data(), s.weight.data(), nt, init, s.y.data(), nc, count,
                   w.stride_w * pitch, block);
        const int64_t at = ((n * w.out_h + oh) * w.out_w + run.ow + done) * p.channels + c0;
        for (int64_t j = 0; j < count; ++j) {
          this->write(s.y.data() + j * block, at + j * p.channels, slopes, p.slope_step,
                      s.spare.data(), s.packed.data(), nc);
        }
        for (int t = 0; t < nt; ++t) {
          s.in[t] += count * w.stride_w * pitch;
        }
      }
    }
  }
};

template <typename T>
void depthwise_conv(const DepthwiseParams& p) {
  const ConvWindow& w = p.window;
  if (p.channels_last && takes_pixel_tiles(p)) {
    depthwise_pixel_tiles<T>(p);
    return;
  }
  if (p.channels_last) {
    const ChannelsLast<T> call{{p}};
    const int64_t cost =
        std::min<int64_t>(kTaskRows, w.out_h) * w.out_w * call.block * w.taps();
    torch::stable::parallel_for(0, call.blocks * p.batch * call.row_tasks,
                                std::max<int64_t>(1, kGrain / cost),
                                [&](int64_t begin, int64_t end) { call.tasks(begin, end); });
    return;
  }
  const Contiguous<T> call{{p}};
  const int64_t cost = w.out_h * w.out_w * w.taps() / call.tasks_per_plane;
  torch::stable::parallel_for(0, p.batch * p.channels * call.tasks_per_plane,
                              std::max<int64_t>(1, kGrain / std::max<int64_t>(1, cost)),
                              [&](int64_t begin, int64_t end) { call.tasks(begin, end); });
}

}  // namespace

void depthwise_conv_cpu(const DepthwiseParams& p) {
  p.element == Element::kFloat64 ? depthwise_conv<double>(p) : depthwise_conv<float>(p);
}

}  // namespace segkern
