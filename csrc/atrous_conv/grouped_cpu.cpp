// CPU convolution with few channels a group: output rows of a group are mixed from rows of its
// inputs with margins, so that no tap needs a test. Planes that fit the second-level cache are kept
// whole; of larger ones a ring of kernel_h rows is, and rows go in an order in which each input row
// is fetched once, at any rate.
#include <cstring>

#include <torch/csrc/stable/ops.h>

#include "../common/stream_store.h"
#include "depthwise_tiles.h"
#include "grouped.h"
#include "mix_rows.h"
#include "row_plan.h"

namespace segkern {
namespace {

// Output rows of one task.
constexpr int64_t kTaskRows = 64;
// A group's inputs that take less are kept whole.
constexpr int64_t kGroupBytes = int64_t{512} << 10;
// Outputs that are made before they are written, where the inputs are kept whole.
constexpr int64_t kBandBytes = int64_t{64} << 10;

template <typename T>
struct Grouped {
  const GroupedParams& p;
  const ConvWindow& w = p.window;
  const DepthwiseRows<T>& rows = depthwise_rows<T>();
  const MixRows<T>& mix = mix_rows<T>();
  const int64_t size = element_size(p.element);
  const bool own = size == static_cast<int64_t>(sizeof(T));
  const bool stream =
      p.batch * p.groups * p.outputs * w.out_h * w.out_w * size >= kStreamBytes;
  RowForm form{p.window};
  const bool whole = p.inputs * form.row_stride * w.in_h * static_cast<int64_t>(sizeof(T)) <=
                     kGroupBytes;
  const std::vector<RowRun> runs = row_runs(w, whole ? rows_in_turn(w) : row_order(w), 1);
  // Rows made before they are written, behind each other.
  const int64_t band =
      whole ? std::clamp<int64_t>(
                  kBandBytes / (p.outputs * w.out_w * static_cast<int64_t>(sizeof(T))), 1, w.out_h)
            : 1;
  const int64_t length = band * w.out_w + kRowBlock;
  const int64_t row_tasks = whole ? 1 : ceil_div(w.out_h, kTaskRows);
  const int64_t task_rows = whole ? w.out_h : kTaskRows;
  const bool plain_rows = w.stride_w == 1 && w.up_w == 1 && w.in_w >= kRowBlock &&
                          p.element != Element::kFloat16;
  const DepthwiseTiles<T>& tiles = depthwise_tiles<T>();
  const std::vector<int64_t> blocks = balanced_blocks(p.outputs, kMixOutputs);

  struct Scratch {
    std::vector<T> ring, y, start, spare, weights;
    std::vector<int64_t> tags;
    std::vector<char> packed;
    std::vector<const T*> terms;
    int64_t of_group = -1;
  };

  Scratch scratch() const {
    Scratch s;
    s.ring.assign((whole ? w.in_h : w.kernel_h) * p.inputs * form.row_stride, T{0});
    s.tags.resize(whole ? w.in_h : w.kernel_h);
    s.y.resize(p.outputs * length);
    s.start.resize(p.shift ? p.outputs * length : 0);
    s.spare.resize(std::max(w.in_w, length));
    s.packed.resize(length * size);
    s.weights.resize(w.taps() * p.inputs * p.outputs);
    s.terms.resize(w.taps() * p.inputs);
    return s;
  }

  T weight(int64_t g, int64_t o, int64_t i, int64_t tap) const {
    const T* from = static_cast<const T*>(p.weight) + g * p.inputs * p.outputs * w.taps();
    const T value =
        from[o * p.weight_out + i * p.weight_in + (p.flip ? w.taps() - 1 - tap : tap)];
    return p.scale ? value * static_cast<const T*>(p.scale)[g * p.outputs + o] : value;
  }

  // Per block of outputs: taps, inputs, outputs.
  void prepare(Scratch& s, int64_t g) const {
    T* to = s.weights.data();
    int64_t first = 0;
    for (const int64_t block : blocks) {
      for (int64_t tap = 0; tap < w.taps(); ++tap) {
        for (int64_t i = 0; i < p.inputs; ++i) {
          for (int64_t o = 0; o < block; ++o) {
            *to++ = weight(g, first + o, i, tap);
          }
        }
      }
      first += block;
    }
    for (int64_t o = 0; p.shift && o < p.outputs; ++o) {
      std::fill_n(s.start.data() + o * length, length,
                  static_cast<const T*>(p.shift)[g * p.outputs + o]);
    }
  }

  // The rows h of a group's inputs, input_step() apart.
  const T* input_rows(Scratch& s, int64_t n, int64_t g, int64_t oh, int64_t k, int64_t h) const {
    if (whole) {
      return s.ring.data() + h * form.row_stride;
    }
    const int64_t slot = ring_slot(w, oh, k);
    T* to = s.ring.data() + slot * p.inputs * form.row_stride;
    if (s.tags[slot] != h) {
      s.tags[slot] = h;
      for (int64_t i = 0; i < p.inputs; ++i) {
        fetch(s, (n * p.groups + g) * p.inputs + i, h, 1, to + i * form.row_stride);
      }
    }
    return to;
  }

  int64_t input_step() const { return whole ? w.in_h * form.row_stride : form.row_stride; }

  // Rows h to h + count - 1 of a plane.
  void fetch(Scratch& s, int64_t plane, int64_t h, int64_t count, T* to) const {
    const char* from = static_cast<const char*>(p.in) + (plane * w.in_h + h) * w.in_w * size;
    if (plain_rows) {
      tiles.load(from, p.element, to + kRowBlock, w.in_w, form.row_stride, count);
      return;
    }
    for (int64_t i = 0; i < count; ++i, from += w.in_w * size, to += form.row_stride) {
      rows.load(p.element, from, s.spare.data(), w.in_w);
      form.place(w, s.spare.data(), to);
    }
  }

  void tasks(int64_t begin, int64_t end) const {
    Scratch s = scratch();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % row_tasks;
      const int64_t n = task / row_tasks % p.batch;
      const int64_t g = task / row_tasks / p.batch;
      if (s.of_group != g) {
        s.of_group = g;
        prepare(s, g);
      }
      std::fill(s.tags.begin(), s.tags.end(), -1);
      for (int64_t i = 0; whole && i < p.inputs; ++i) {
        fetch(s, (n * p.groups + g) * p.inputs + i, 0, w.in_h, s.ring.data() + i * input_step());
      }
      const int64_t last = std::min(w.out_h, (part + 1) * task_rows);
      for (int64_t i = part * task_rows; i < last; i += band) {
        const int64_t count = std::min(band, last - i);
        for (int64_t j = 0; j < count; ++j) {
          make_row(s, n, g, runs[i + j], j * w.out_w);
        }
        for (int64_t o = 0; o < p.outputs; ++o) {
          write(s, s.y.data() + o * length, n, g * p.outputs + o, runs[i].oh, count * w.out_w);
        }
      }
    }
    stream_fence();
  }

  // What a last block makes too much is the start of the next row, which is made later.
  void make_row(Scratch& s, int64_t n, int64_t g, const RowRun& run, int64_t at) const {
    int64_t nt = 0;
    for (const auto& [k, h] : run.taps) {
      const T* from = input_rows(s, n, g, run.oh, k, h);
      for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
        for (int64_t i = 0; i < p.inputs; ++i) {
          s.terms[nt++] = from + i * input_step() + form.offset[kw];
        }
      }
    }
    for (const Segment& segment : form.segments) {
      make_segment(s, run, segment, at);
    }
  }

  // Kernel rows one after the other, or at once where all columns meet the segment.
  void make_segment(Scratch& s, const RowRun& run, const Segment& segment, int64_t at) const {
    const auto tap_rows = static_cast<int64_t>(run.taps.size());
    const int64_t per_row = w.kernel_w * p.inputs;
    const int64_t columns = segment.last - segment.first;
    const bool at_once = tap_rows > 0 && columns == w.kernel_w &&
                         run.taps.back().first - run.taps.front().first == tap_rows - 1;
    const int64_t calls = at_once ? 1 : std::max<int64_t>(tap_rows, 1);
    const T* weights = s.weights.data();
    int64_t first = 0;
    for (const int64_t block : blocks) {
      T* y = s.y.data() + first * length + at + segment.x0;
      const T* init = p.shift ? s.start.data() + first * length : nullptr;
      for (int64_t r = 0; r < calls; ++r) {
        const int64_t skipped = segment.first * p.inputs;
        const int64_t k = tap_rows > 0 ? run.taps[r].first : 0;
        const int64_t terms = at_once        ? tap_rows * per_row
                              : tap_rows > 0 ? columns * p.inputs
                                             : 0;
        mix.mix(s.terms.data() + r * per_row + skipped, segment.x0, terms,
                weights + (k * per_row + skipped) * block, static_cast<int>(block), init, length,
                y, length, segment.blocks * kRowBlock);
        init = y;
      }
      weights += w.taps() * p.inputs * block;
      first += block;
    }
  }

  void write(Scratch& s, T* y, int64_t n, int64_t channel, int64_t oh, int64_t count) const {
    const int64_t plane = n * p.groups * p.outputs + channel;
    const int64_t at = (plane * w.out_h + oh) * w.out_w * size;
    const T* residual = nullptr;
    if (p.residual) {
      rows.load(p.element, static_cast<const char*>(p.residual) + at, s.spare.data(), count);
      residual = s.spare.data();
    }
    if (residual || p.activation != Activation::kNone) {
      const T* slope = static_cast<const T*>(p.slope);
      rows.finish(y, residual, static_cast<int>(p.activation),
                  slope ? slope + channel * p.slope_step : nullptr, 0, count);
    }
    const void* from = y;
    if (!own) {
      rows.store(p.element, y, s.packed.data(), count);
      from = s.packed.data();
    }
    char* to = static_cast<char*>(p.out) + at;
    stream ? rows.stream(to, from, count * size)
           : static_cast<void>(std::memcpy(to, from, count * size));
  }
};

template <typename T>
void grouped_of(const GroupedParams& p) {
  const Grouped<T> call{p};
  torch::stable::parallel_for(0, p.groups * p.batch * call.row_tasks, 1,
                              [&](int64_t begin, int64_t end) { call.tasks(begin, end); });
}

}  // namespace

void grouped_conv_cpu(const GroupedParams& p) {
  p.element == Element::kFloat64 ? grouped_of<double>(p) : grouped_of<float>(p);
}

}  // namespace segkern
