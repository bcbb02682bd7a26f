// CPU gradient of the weight of a convolution with few channels a group: one task is one group with
// all its images, so that the order of summation never depends on the threads. Sums of a few rows
// in the features' accumulator, totals in double.
#include <torch/csrc/stable/ops.h>

#include "grouped.h"
#include "mix_rows.h"
#include "row_plan.h"

namespace segkern {
namespace {

// Output rows between two transfers from the accumulators to the totals.
constexpr int64_t kRowsPerSum = 16;

template <typename T>
struct GroupedWeightGrad {
  const GroupedWeightGradParams& p;
  const ConvWindow& w = p.window;
  const DepthwiseRows<T>& rows = depthwise_rows<T>();
  const MixRows<T>& mix = mix_rows<T>();
  const int64_t size = element_size(p.element);
  RowForm form{p.window};
  const std::vector<RowRun> runs = row_runs(p.window, row_order(p.window), 1);
  const int64_t length = form.blocks() * kRowBlock;
  const int64_t pairs = p.outputs * p.inputs;

  struct Scratch {
    std::vector<T> ring, g, spare, sums;
    std::vector<double> totals;
    std::vector<int64_t> tags;
  };

  Scratch scratch() const {
    Scratch s;
    s.ring.assign(w.kernel_h * p.inputs * form.row_stride, T{0});
    s.g.assign(p.outputs * length, T{0});  // what is behind the rows stays zero
    s.spare.resize(w.in_w);
    s.sums.assign(w.taps() * pairs * kRowBlock, T{0});
    s.totals.resize(w.taps() * pairs);
    s.tags.resize(w.kernel_h);
    return s;
  }

  void tasks(int64_t begin, int64_t end) const {
    Scratch s = scratch();
    for (int64_t group = begin; group < end; ++group) {
      std::fill(s.totals.begin(), s.totals.end(), 0.0);
      for (int64_t n = 0; n < p.batch; ++n) {
        add_image(s, n, group);
      }
      for (int64_t tap = 0; tap < w.taps(); ++tap) {
        for (int64_t pair = 0; pair < pairs; ++pair) {
          static_cast<T*>(p.weight_grad)[(group * pairs + pair) * w.taps() + tap] =
              static_cast<T>(s.totals[tap * pairs + pair]);
        }
      }
    }
  }

  const char* row_at(const void* map, int64_t plane, int64_t height, int64_t width,
                     int64_t h) const {
    return static_cast<const char*>(map) + (plane * height + h) * width * size;
  }

  void add_image(Scratch& s, int64_t n, int64_t group) const {
    std::fill(s.tags.begin(), s.tags.end(), -1);
    int64_t since = 0;
    for (const RowRun& run : runs) {
      for (int64_t o = 0; o < p.outputs; ++o) {
        const int64_t plane = (n * p.groups + group) * p.outputs + o;
        rows.load(p.element, row_at(p.grad, plane, w.out_h, w.out_w, run.oh),
                  s.g.data() + o * length, w.out_w);
      }
      for (const auto& [k, h] : run.taps) {
        const int64_t slot = ring_slot(w, run.oh, k);
        T* in = s.ring.data() + slot * p.inputs * form.row_stride;
        if (s.tags[slot] != h) {
          s.tags[slot] = h;
          for (int64_t i = 0; i < p.inputs; ++i) {
            const int64_t plane = (n * p.groups + group) * p.inputs + i;
            rows.load(p.element, row_at(p.in, plane, w.in_h, w.in_w, h), s.spare.data(), w.in_w);
            form.place(w, s.spare.data(), in + i * form.row_stride);
          }
        }
        for (const Segment& segment : form.segments) {
          for (int kw = segment.first; kw < segment.last; ++kw) {
            mix.products(s.g.data() + segment.x0, length, p.outputs,
                         in + form.offset[kw] + segment.x0, form.row_stride, p.inputs,
                         s.sums.data() + (k * w.kernel_w + kw) * pairs * kRowBlock,
                         segment.blocks * kRowBlock);
          }
        }
      }
      if (++since == kRowsPerSum) {
        flush(s);
        since = 0;
      }
    }
    flush(s);
  }

  // Adds the lanes of each sum to its total and clears them.
  void flush(Scratch& s) const {
    for (size_t t = 0; t < s.totals.size(); ++t) {
      for (int64_t lane = 0; lane < kRowBlock; ++lane) {
        s.totals[t] += s.sums[t * kRowBlock + lane];
        s.sums[t * kRowBlock + lane] = T{0};
      }
    }
  }
};

template <typename T>
void weight_grad_of(const GroupedWeightGradParams& p) {
  const GroupedWeightGrad<T> call{p};
  torch::stable::parallel_for(0, p.groups, 1,
                              [&](int64_t begin, int64_t end) { call.tasks(begin, end); });
}

}  // namespace

void grouped_weight_grad_cpu(const GroupedWeightGradParams& p) {
  p.element == Element::kFloat64 ? weight_grad_of<double>(p) : weight_grad_of<float>(p);
}

}  // namespace segkern
