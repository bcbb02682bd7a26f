// A task is a box. For a block of channels it walks over the bins' rows: a row of pixels becomes a
// row of bins once (across), and the rows of bins become the result (down).
#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>

#include <torch/csrc/stable/ops.h>

#include "../common/dispatch.h"
#include "../common/stream_store.h"
#include "roi.h"
#include "roi_planes.h"
#include "roi_table.h"

namespace segkern {
namespace {

// A level's map as the boxes read it: elements where they lie, or a channels-last copy.
template <typename S>
struct ReadMap {
  const S* elements = nullptr;
  const RoiWide<S>* copy = nullptr;
};

template <typename S>
class BoxReader {
 public:
  using T = RoiWide<S>;

  BoxReader(const RoiParams& p, const std::vector<ReadMap<S>>& maps)
      : p_(p),
        maps_(maps),
        rows_(roi_rows(T{})),
        across_(kSlots * p.bins_w * kRoiChannels),
        bins_(p.bin_count() * kRoiChannels) {}

  void run(int64_t roi) {
    const RoiBox<T> box(p_, roi);
    const RoiTable<T> down(box.rows(p_)), across(box.columns(p_));
    roi_ = roi;
    down_high_ = down.high;
    const bool empty = box.image < 0 || down.pixels.empty() || across.pixels.empty();
    for (int64_t first = 0; first < p_.channels; first += kRoiChannels) {
      const int64_t channels = std::min(kRoiChannels, p_.channels - first);
      if (empty) {
        std::fill_n(bins_.begin(), p_.bin_count() * channels, T(0));
      } else {
        std::fill_n(slot_row_, kSlots, int64_t{-1});
        // Rows that bins share are found again only if rows ascend.
        const bool backwards = box.y2 < box.y1;
        for (int64_t k = 0; k < p_.bins_h; ++k) {
          read_row(box, down, across, backwards ? p_.bins_h - 1 - k : k, first, channels);
        }
      }
      const bool last = p_.channels_last;
      const int64_t at =
          roi * p_.channels * p_.bin_count() + first * (last ? 1 : p_.bin_count());
      scatter_pixels(bins_.data(), last ? p_.channels : p_.bin_count(), last, p_.bin_count(),
                     channels, static_cast<S*>(p_.bins) + at, scratch_);
    }
  }

 private:
  static constexpr int kSlots = 8, kTogether = 4;

  void read_row(const RoiBox<T>& box, const RoiTable<T>& down, const RoiTable<T>& across,
                int64_t p, int64_t first, int64_t channels) {
    T* out = bins_.data() + p * p_.bins_w * channels;
    const int64_t n = p_.bins_w * channels, end = down.begin[p + 1];
    int64_t k = down.begin[p];
    if (k == end) {
      std::fill_n(out, n, T(0));
    }
    for (bool more = false; k < end; more = true) {
      const T* found[kTogether];
      const int count = static_cast<int>(std::min<int64_t>(kTogether, end - k));
      unsigned used = 0;
      for (int i = 0; i < count; ++i) {
        const int slot = slot_of(box, across, down.pixels[k + i], first, channels, used);
        used |= 1u << slot;
        found[i] = across_.data() + slot * p_.bins_w * kRoiChannels;
      }
      if (more) {
        for (int i = 0; i < count; ++i) {
          rows_.accumulate(found[i], down.weights[k + i], n, out);
        }
      } else {
        rows_.combine(found, down.weights.data() + k, count, n, out);
      }
      k += count;
    }
  }

  // Where row y of the map is as bins; makes it in a slot that is not `used`, the oldest one.
  int slot_of(const RoiBox<T>& box, const RoiTable<T>& across, int64_t y, int64_t first,
              int64_t channels, unsigned used) {
    for (int slot = 0; slot < kSlots; ++slot) {
      if (slot_row_[slot] == y) {
        return slot;
      }
    }
    while (used >> next_ & 1u) {
      next_ = (next_ + 1) % kSlots;
    }
    const int slot = next_;
    next_ = (next_ + 1) % kSlots;
    slot_row_[slot] = y;
    int64_t stride;
    const T* pixels = row_of(box, across, y, first, channels, &stride);
    if (pixels != staged_.data() && y < down_high_) {  // the next row of the map itself
      const T* below = pixels + p_.level[box.level].width * stride;
      for (int64_t x = across.low; x <= across.high; ++x) {
        prefetch(below + (x - across.low) * stride, channels * static_cast<int64_t>(sizeof(T)));
      }
    }
    T* out = across_.data() + slot * p_.bins_w * kRoiChannels;
    for (int64_t q = 0; q < p_.bins_w; ++q) {
      const int64_t begin = across.begin[q], count = across.begin[q + 1] - begin;
      taps_.resize(std::max<size_t>(taps_.size(), count));
      for (int64_t k = 0; k < count; ++k) {
        taps_[k] = pixels + (across.pixels[begin + k] - across.low) * stride;
      }
      rows_.combine(taps_.data(), across.weights.data() + begin, count, channels,
                    out + q * channels);
    }
    return slot;
  }

  // Pixels across.low ... across.high of row y; `stride` elements apart.
  const T* row_of(const RoiBox<T>& box, const RoiTable<T>& across, int64_t y, int64_t first,
                  int64_t channels, int64_t* stride) {
    const RoiLevel& level = p_.level[box.level];
    const ReadMap<S>& map = maps_[box.level];
    const int64_t pixel = (box.image * level.height + y) * level.width + across.low;
    *stride = p_.channels;
    if (map.copy) {
      return map.copy + pixel * p_.channels + first;
    }
    if constexpr (std::is_same_v<S, T>) {
      if (p_.channels_last && !p_.chosen) {
        return map.elements + pixel * p_.channels + first;
      }
    }
    const int64_t count = across.high - across.low + 1, plane = level.height * level.width;
    staged_.resize(std::max<size_t>(staged_.size(), count * channels));
    *stride = channels;
    if (p_.channels_last) {
      gather_pixels(map.elements + pixel * p_.channels + first, p_.channels, true, count, channels,
                    staged_.data(), scratch_);
    } else {
      const int64_t at = (box.image * p_.channels + first) * plane + y * level.width + across.low;
      gather_pixels(map.elements + at, plane, false, count, channels, staged_.data(), scratch_);
    }
    if (p_.chosen) {
      leave_out_others(box, y, across.low, count, first, channels);
    }
    return staged_.data();
  }

  // Clears the staged elements that are not this box's.
  void leave_out_others(const RoiBox<T>& box, int64_t y, int64_t x, int64_t count, int64_t first,
                        int64_t channels) {
    const RoiLevel& level = p_.level[box.level];
    const int64_t plane = level.height * level.width, pixel = y * level.width + x;
    const int64_t pixel_stride = p_.channels_last ? p_.channels : 1;
    const int64_t channel_stride = p_.channels_last ? 1 : plane;
    const int32_t* owners =
        p_.chosen + box.image * p_.channels * plane + pixel * pixel_stride + first * channel_stride;
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < channels; ++c) {
        T& element = staged_[i * channels + c];
        element = owners[i * pixel_stride + c * channel_stride] == roi_ ? element : T(0);
      }
    }
  }

  const RoiParams& p_;
  const std::vector<ReadMap<S>>& maps_;
  const RoiRows<T>& rows_;
  std::vector<T> across_, bins_, staged_, scratch_;
  std::vector<const T*> taps_;
  int64_t roi_ = 0, slot_row_[kSlots];
  int next_ = 0;
  int64_t down_high_ = -1;  // last row of the map that the box reads
};

// Pixels that boxes read of each level, once for each box.
template <typename T>
std::vector<int64_t> pixels_read(const RoiParams& p) {
  std::vector<int64_t> pixels(p.levels, 0);
  for (int64_t roi = 0; roi < p.rois; ++roi) {
    const RoiBox<T> box(p, roi);
    int32_t top, bottom, left, right;
    const RoiAxis<T> rows = box.rows(p), columns = box.columns(p);
    rows.window(0, rows.bins - 1, &top, &bottom);
    columns.window(0, columns.bins - 1, &left, &right);
    pixels[box.level] += std::max<int64_t>(bottom - top + 1, 0) *
                         std::max<int64_t>(right - left + 1, 0);
  }
  return pixels;
}

// The boxes in an order in which neighbours read the same part of a map.
template <typename T>
std::vector<int64_t> neighbours_first(const RoiParams& p) {
  constexpr double kStrip = 16;  // rows
  struct Place {
    int64_t map, strip;
    double x;
    int64_t roi;
    bool operator<(const Place& other) const {
      return std::tie(map, strip, x, roi) < std::tie(other.map, other.strip, other.x, other.roi);
    }
  };
  std::vector<Place> places;
  places.reserve(p.rois);
  const auto finite = [](double v) {
    return std::fabs(v) <= kRoiFarthest ? v : 0.0;
  };
  for (int64_t roi = 0; roi < p.rois; ++roi) {
    const RoiBox<T> box(p, roi);
    const double scale = p.level[box.level].scale;
    const auto strip = static_cast<int64_t>(finite(box.y1 * scale) / kStrip);
    places.push_back({box.level * p.images + box.image, strip, finite(box.x1 * scale), roi});
  }
  std::sort(places.begin(), places.end());
  std::vector<int64_t> order;
  order.reserve(p.rois);
  for (const Place& place : places) {
    order.push_back(place.roi);
  }
  return order;
}

template <typename S, typename T>
void copy_channels_last(const RoiParams& p, const RoiLevel& level, T* to) {
  const int64_t plane = level.height * level.width, rows = p.images * level.height;
  torch::stable::parallel_for(0, rows, 4, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / level.height, y = row % level.height;
      const S* from = static_cast<const S*>(level.data) + image * p.channels * plane +
                      y * level.width;
      T* out = to + row * level.width * p.channels;
      if constexpr (std::is_same_v<S, T>) {
        roi_rows(T{}).transpose(from, plane, p.channels, level.width, out, p.channels);
      } else {
        gather_pixels(from, plane, false, level.width, p.channels, out, scratch);
      }
    }
  });
}

template <typename S>
void read_all(const RoiParams& p) {
  using T = RoiWide<S>;
  std::vector<ReadMap<S>> maps(p.levels);
  std::vector<std::unique_ptr<T[]>> copies;
  const std::vector<int64_t> read =
      p.channels_last ? std::vector<int64_t>{} : pixels_read<T>(p);
  for (int64_t k = 0; k < p.levels; ++k) {
    const int64_t pixels = p.images * p.level[k].height * p.level[k].width;
    maps[k].elements = static_cast<const S*>(p.level[k].data);
    // A plane layout is turned as a whole where boxes read most of it, else row by row.
    if (!p.channels_last && !p.chosen && p.channels > 1 && 2 * read[k] >= pixels) {
      copies.emplace_back(new T[pixels * p.channels]);
      copy_channels_last<S>(p, p.level[k], copies.back().get());
      maps[k].copy = copies.back().get();
    }
  }
  const std::vector<int64_t> order = neighbours_first<T>(p);
  torch::stable::parallel_for(0, p.rois, 1, [&](int64_t begin, int64_t end) {
    BoxReader<S> reader(p, maps);
    for (int64_t k = begin; k < end; ++k) {
      reader.run(order[k]);
    }
  });
}

}  // namespace

void roi_read_cpu(const RoiParams& p) {
  SEGKERN_DISPATCH_FLOATING(p.element, [&] { read_all<scalar_t>(p); });
}

}  // namespace segkern
