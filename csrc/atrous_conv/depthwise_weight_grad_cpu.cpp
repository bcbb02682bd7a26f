// CPU gradient of a depthwise weight: one task is one channel (or a block of channels-last ones)
// with all its images, so that the order of summation never depends on the threads. Sums of a few
// rows in the features' accumulator, totals in double.
#include <torch/csrc/stable/ops.h>

#include "depthwise.h"
#include "row_plan.h"

namespace segkern {
namespace {

// Output rows between two transfers from the accumulators to the totals.
constexpr int64_t kRowsPerSum = 16;
// Channels of a channels-last task.
constexpr int64_t kChannelBlock = 64;

template <typename T>
struct WeightGrad {
  const DepthwiseWeightGradParams& p;
  const ConvWindow& w = p.window;
  const DepthwiseRows<T>& rows = depthwise_rows<T>();
  const int64_t size = element_size(p.element);
  const bool own = size == static_cast<int64_t>(sizeof(T));
  RowForm form{p.window};
  const std::vector<RowRun> runs = row_runs(p.window, row_order(p.window), 1);

  const char* grad_at(int64_t i) const { return static_cast<const char*>(p.grad) + i * size; }
  const char* in_at(int64_t i) const { return static_cast<const char*>(p.in) + i * size; }

  void contiguous(int64_t begin, int64_t end) const {
    const int64_t length = form.blocks() * kRowBlock;
    std::vector<T> ring(form.row_stride * w.kernel_h, T{0});
    std::vector<T> g(length, T{0});  // what is behind the row stays zero
    std::vector<T> spare(w.in_w);
    std::vector<T> sums(w.taps() * kRowBlock);
    std::vector<double> totals(w.taps());
    std::vector<int64_t> tags(w.kernel_h);
    for (int64_t c = begin; c < end; ++c) {
      std::fill(totals.begin(), totals.end(), 0.0);
      for (int64_t n = 0; n < p.batch; ++n) {
        const int64_t plane = n * p.channels + c;
        std::fill(tags.begin(), tags.end(), -1);
        for (int64_t i = 0; i < w.out_h; ++i) {
          const int64_t oh = runs[i].oh;
          if (i % kRowsPerSum == 0) {
            flush(sums, totals);
          }
          rows.load(p.element, grad_at((plane * w.out_h + oh) * w.out_w), g.data(), w.out_w);
          for (const auto& [k, h] : runs[i].taps) {
            const int64_t slot = ring_slot(w, oh, k);
            T* row = ring.data() + slot * form.row_stride;
            if (tags[slot] != h) {
              rows.load(p.element, in_at((plane * w.in_h + h) * w.in_w), spare.data(), w.in_w);
              form.place(w, spare.data(), row);
              tags[slot] = h;
            }
            for (const Segment& segment : form.segments) {
              rows.weight_grad(g.data(), row, form.offset.data(), segment.first, segment.last,
                               sums.data() + k * w.kernel_w * kRowBlock, segment.x0,
                               segment.blocks);
            }
          }
        }
        flush(sums, totals);
      }
      for (int64_t t = 0; t < w.taps(); ++t) {
        static_cast<T*>(p.weight_grad)[c * w.taps() + t] = static_cast<T>(totals[t]);
      }
    }
  }

  // Adds the lanes of each tap's sum to its total and clears them.
  void flush(std::vector<T>& sums, std::vector<double>& totals) const {
    for (size_t t = 0; t < totals.size(); ++t) {
      for (int64_t lane = 0; lane < kRowBlock; ++lane) {
        totals[t] += sums[t * kRowBlock + lane];
        sums[t * kRowBlock + lane] = T{0};
      }
    }
  }

  void channels_last(int64_t begin, int64_t end) const {
    std::vector<T> sums(w.taps() * kChannelBlock);
    std::vector<double> totals(w.taps() * kChannelBlock);
    std::vector<T> g(own ? 0 : w.out_w * kChannelBlock);
    std::vector<T> ring(own ? 0 : w.kernel_h * w.in_w * kChannelBlock);
    std::vector<int64_t> tags(w.kernel_h);
    for (int64_t block = begin; block < end; ++block) {
      const int64_t c0 = block * kChannelBlock;
      const int64_t nc = std::min(kChannelBlock, p.channels - c0);
      std::fill(totals.begin(), totals.end(), 0.0);
      for (int64_t n = 0; n < p.batch; ++n) {
        std::fill(tags.begin(), tags.end(), -1);
        for (int64_t i = 0; i < w.out_h; ++i) {
          std::fill(sums.begin(), sums.end(), T{0});
          const int64_t oh = runs[i].oh;
          const int64_t g_first = ((n * w.out_h + oh) * w.out_w) * p.channels + c0;
          const T* g_row = lanes_row(grad_at(g_first), w.out_w, nc, g.data());
          for (const auto& [k, h] : runs[i].taps) {
            const char* from = in_at(((n * w.in_h + h) * w.in_w) * p.channels + c0);
            const int64_t slot = ring_slot(w, oh, k);
            T* kept = own ? nullptr : ring.data() + slot * w.in_w * kChannelBlock;
            const T* row = kept;
            if (own || tags[slot] != h) {
              row = lanes_row(from, w.in_w, nc, kept);
              tags[slot] = h;
            }
            add_row(g_row, row, nc, sums.data() + k * w.kernel_w * kChannelBlock);
          }
          for (size_t t = 0; t < totals.size(); ++t) {
            totals[t] += sums[t];
          }
        }
      }
      for (int64_t c = 0; c < nc; ++c) {
        for (int64_t t = 0; t < w.taps(); ++t) {
          static_cast<T*>(p.weight_grad)[(c0 + c) * w.taps() + t] =
              static_cast<T>(totals[t * kChannelBlock + c]);
        }
      }
    }
  }

  // Pixels of a row with nc channels of type T each: the tensor's own, or converted ones.
  const T* lanes_row(const char* from, int64_t pixels, int64_t nc, T* to) const {
    if (own) {
      return reinterpret_cast<const T*>(from);
    }
    for (int64_t x = 0; x < pixels; ++x) {
      rows.load(p.element, from + x * p.channels * size, to + x * kChannelBlock, nc);
    }
    return to;
  }

  void add_row(const T* g, const T* row, int64_t nc, T* sums) const {
    const int64_t pitch = own ? p.channels : kChannelBlock;
    for (int64_t ow = 0; ow < w.out_w; ++ow) {
      for (int64_t k = 0; k < w.kernel_w; ++k) {
        const int64_t x = ow * w.stride_w - w.pad_w + k * w.dilation_w;
        if (x >= 0 && x < w.in_w) {
          rows.lanes_weight_grad(g + ow * pitch, row + x * pitch, sums + k * kChannelBlock, nc);
        }
      }
    }
  }
};

template <typename T>
void weight_grad_of(const DepthwiseWeightGradParams& p) {
  const WeightGrad<T> call{p};
  if (p.channels_last) {
    torch::stable::parallel_for(
        0, ceil_div(p.channels, kChannelBlock), 1,
        [&](int64_t begin, int64_t end) { call.channels_last(begin, end); });
  } else {
    torch::stable::parallel_for(
        0, p.channels, 1, [&](int64_t begin, int64_t end) { call.contiguous(begin, end); });
  }
}

}  // namespace

void depthwise_weight_grad_cpu(const DepthwiseWeightGradParams& p) {
  p.element == Element::kFloat64 ? weight_grad_of<double>(p) : weight_grad_of<float>(p);
}

}  // namespace segkern
