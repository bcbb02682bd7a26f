// A task is a band of rows of one map and a block of channels: it adds what each box writes there,
// box after box, so that the result does not depend on how tasks are shared among threads.
#include <algorithm>

#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "roi.h"
#include "roi_planes.h"
#include "roi_table.h"

namespace segkern {
namespace {

constexpr int64_t kBandRows = 16;

template <typename T>
struct BoxWeights {
  int64_t roi, image, level;
  RoiTable<T> down, across;

  BoxWeights(const RoiParams& p, int64_t n, const RoiBox<T>& box)
      : roi(n), image(box.image), level(box.level), down(box.rows(p)), across(box.columns(p)) {}
};

// Which of the pixels table.low ... table.high have a weight.
template <typename T>
std::vector<char> covered_pixels(const RoiTable<T>& table) {
  std::vector<char> covered(table.high - table.low + 1, 0);
  for (const int32_t i : table.pixels) {
    covered[i - table.low] = 1;
  }
  return covered;
}

template <typename S>
class Band {
 public:
  using T = RoiWide<S>;

  Band(const RoiParams& p, int64_t level)
      : p_(p),
        level_(level),
        width_(p.level[level].width),
        rows_(roi_rows(T{})),
        sums_(kBandRows * width_ * kRoiChannels),
        largest_(p.chosen ? sums_.size() : 0),
        chosen_(largest_.size()),
        across_(width_ * kRoiChannels),
        bins_(p.bins_w * kRoiChannels) {}

  void run(const std::vector<const BoxWeights<T>*>& boxes, int64_t image, int64_t top,
           int64_t first) {
    const RoiLevel& map = p_.level[level_];
    const int64_t bottom = std::min(top + kBandRows, map.height) - 1;
    const int64_t channels = std::min(kRoiChannels, p_.channels - first);
    const int64_t pixels = (bottom - top + 1) * width_;
    std::fill_n(sums_.begin(), pixels * channels, T(0));
    if (p_.chosen) {
      std::fill_n(largest_.begin(), pixels * channels, T(0));
      std::fill_n(chosen_.begin(), pixels * channels, -1);
    }
    for (const BoxWeights<T>* box : boxes) {
      if (box->image == image && box->down.low <= bottom && box->down.high >= top) {
        add(*box, top, bottom, first, channels);
        if (p_.chosen) {
          keep_largest(*box, top, bottom, channels);
        }
      }
    }
    if (p_.chosen) {
      sums_.swap(largest_);
      store_chosen(image, top, pixels, first, channels);
    }
    const int64_t plane = map.height * width_;
    if (p_.coverage) {
      const int32_t* counts = p_.coverage + image * plane + top * width_;
      for (int64_t i = 0; i < pixels; ++i) {
        for (int64_t c = 0; counts[i] > 1 && c < channels; ++c) {
          sums_[i * channels + c] /= static_cast<T>(counts[i]);
        }
      }
    }
    S* out = static_cast<S*>(map.data);
    if (p_.channels_last) {
      out += (image * plane + top * width_) * p_.channels + first;
      scatter_pixels(sums_.data(), p_.channels, true, pixels, channels, out, scratch_);
    } else {
      out += (image * p_.channels + first) * plane + top * width_;
      scatter_pixels(sums_.data(), plane, false, pixels, channels, out, scratch_);
    }
  }

 private:
  void add(const BoxWeights<T>& box, int64_t top, int64_t bottom, int64_t first,
           int64_t channels) {
    const int64_t left = box.across.low, n = (box.across.high - left + 1) * channels;
    for (int64_t p = 0; p < p_.bins_h; ++p) {
      int64_t k = box.down.begin[p];
      const int64_t end = box.down.begin[p + 1];
      for (; k < end && box.down.pixels[k] < top; ++k) {
      }
      if (k == end || box.down.pixels[k] > bottom) {
        continue;
      }
      spread(box, p, first, channels, n);
      for (; k < end && box.down.pixels[k] <= bottom; ++k) {
        T* row = sums_.data() + ((box.down.pixels[k] - top) * width_ + left) * channels;
        rows_.accumulate(across_.data(), box.down.weights[k], n, row);
      }
    }
  }

  // Takes what `add` made of a box into the largest so far, and clears it.
  void keep_largest(const BoxWeights<T>& box, int64_t top, int64_t bottom, int64_t channels) {
    const std::vector<char> rows = covered_pixels(box.down), columns = covered_pixels(box.across);
    const auto roi = static_cast<int32_t>(box.roi);
    const int64_t from = std::max<int64_t>(top, box.down.low);
    const int64_t to = std::min<int64_t>(bottom, box.down.high);
    for (int64_t y = from; y <= to; ++y) {
      for (int64_t x = box.across.low; rows[y - box.down.low] && x <= box.across.high; ++x) {
        const int64_t at = ((y - top) * width_ + x) * channels;
        for (int64_t c = at; columns[x - box.across.low] && c < at + channels; ++c) {
          if (replaces_largest(sums_[c], largest_[c], chosen_[c])) {
            largest_[c] = sums_[c];
            chosen_[c] = roi;
          }
          sums_[c] = T(0);
        }
      }
    }
  }

  void store_chosen(int64_t image, int64_t top, int64_t pixels, int64_t first,
                    int64_t channels) const {
    const int64_t plane = p_.level[level_].height * width_;
    const int64_t pixel_stride = p_.channels_last ? p_.channels : 1;
    const int64_t channel_stride = p_.channels_last ? 1 : plane;
    int32_t* out = p_.chosen + image * p_.channels * plane + top * width_ * pixel_stride +
                   first * channel_stride;
    for (int64_t i = 0; i < pixels; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        out[i * pixel_stride + c * channel_stride] = chosen_[i * channels + c];
      }
    }
  }

  // Row p of the box's bins as the row of pixels that it writes.
  void spread(const BoxWeights<T>& box, int64_t p, int64_t first, int64_t channels, int64_t n) {
    std::fill_n(across_.begin(), n, T(0));
    const S* from = static_cast<const S*>(p_.bins) + box.roi * p_.channels * p_.bin_count();
    if (p_.channels_last) {
      gather_pixels(from + p * p_.bins_w * p_.channels + first, p_.channels, true, p_.bins_w,
                    channels, bins_.data(), scratch_);
    } else {
      gather_pixels(from + first * p_.bin_count() + p * p_.bins_w, p_.bin_count(), false,
                    p_.bins_w, channels, bins_.data(), scratch_);
    }
    for (int64_t q = 0; q < p_.bins_w; ++q) {
      for (int64_t k = box.across.begin[q]; k < box.across.begin[q + 1]; ++k) {
        rows_.accumulate(bins_.data() + q * channels, box.across.weights[k], channels,
                         across_.data() + (box.across.pixels[k] - box.across.low) * channels);
      }
    }
  }

  const RoiParams& p_;
  int64_t level_, width_;
  const RoiRows<T>& rows_;
  std::vector<T> sums_, largest_;
  std::vector<int32_t> chosen_;  // the boxes of largest_, -1 for none
  std::vector<T> across_, bins_, scratch_;
};

template <typename T>
void count_coverage(const RoiParams& p, const std::vector<const BoxWeights<T>*>& boxes) {
  const RoiLevel& map = p.level[0];
  std::fill_n(p.coverage, p.images * map.height * map.width, 0);
  for (const BoxWeights<T>* box : boxes) {
    const std::vector<char> rows = covered_pixels(box->down), columns = covered_pixels(box->across);
    const int64_t top = box->down.low, left = box->across.low;
    for (int64_t y = top; y <= box->down.high; ++y) {
      int32_t* counts = p.coverage + (box->image * map.height + y) * map.width;
      for (int64_t x = left; rows[y - top] && x <= box->across.high; ++x) {
        counts[x] += columns[x - left];
      }
    }
  }
}

template <typename S>
void write_all(const RoiParams& p) {
  using T = RoiWide<S>;
  std::vector<BoxWeights<T>> boxes;
  boxes.reserve(p.rois);
  std::vector<std::vector<const BoxWeights<T>*>> of_level(p.levels);
  for (int64_t roi = 0; roi < p.rois; ++roi) {
    const RoiBox<T> box(p, roi);
    if (box.image >= 0) {
      boxes.emplace_back(p, roi, box);
      if (!boxes.back().down.pixels.empty() && !boxes.back().across.pixels.empty()) {
        of_level[box.level].push_back(&boxes.back());
      }
    }
  }
  if (p.coverage) {
    count_coverage<T>(p, of_level[0]);
  }
  const int64_t blocks = (p.channels + kRoiChannels - 1) / kRoiChannels;
  for (int64_t k = 0; k < p.levels; ++k) {
    const int64_t bands = (p.level[k].height + kBandRows - 1) / kBandRows;
    if (p.level[k].width == 0) {
      continue;
    }
    torch::stable::parallel_for(
        0, p.images * blocks * bands, 1, [&](int64_t begin, int64_t end) {
          Band<S> band(p, k);
          for (int64_t task = begin; task < end; ++task) {
            const int64_t block = task / bands;
            band.run(of_level[k], block / blocks, task % bands * kBandRows,
                     block % blocks * kRoiChannels);
          }
        });
  }
}

}  // namespace

void roi_write_cpu(const RoiParams& p) {
  SEGKERN_DISPATCH_FLOATING(p.element, [&] { write_all<scalar_t>(p); });
}

}  // namespace segkern
