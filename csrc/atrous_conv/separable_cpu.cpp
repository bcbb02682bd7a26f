// CPU separable convolution: a band of output rows is made in chunks of channels. The hidden values
// of a chunk are put into a stage of 32-pixel blocks, from which the pointwise product adds to sums
// of all outputs; stage, sums and a chunk of the weight stay in the second-level cache. Rows go in
// an order in which each input row is wanted by one band only, so the input is read once.
#include <cstring>

#include <torch/csrc/stable/ops.h>

#include "../common/stream_store.h"
#include "mix_rows.h"
#include "row_plan.h"
#include "separable.h"

namespace segkern {
namespace {

constexpr int64_t kPixels = 32;     // of a block of the stage
constexpr int64_t kChannels = 128;  // of a chunk
constexpr int64_t kBandPixels = 512;
constexpr int64_t kSums = int64_t{128} << 10;  // sums of a band, at most, where outputs are many
// Channels ahead for which memory is asked.
constexpr int64_t kAhead = 3;

// Output rows (or, of the pointwise convolution alone, a run of pixels) that are made together.
struct Band {
  std::vector<RowRun> rows;
  std::vector<int64_t> input_rows;  // all that they read, each once
  int64_t first_pixel;              // of a run
  int64_t pixels;
};

template <typename T>
struct Separable {
  const SeparableParams& p;
  const DepthwiseParams& d = p.first;
  const ConvWindow& w = d.window;
  const bool pointwise = d.weight == nullptr;
  const DepthwiseRows<T>& rows = depthwise_rows<T>();
  const MixRows<T>& mix = mix_rows<T>();
  const int64_t size = element_size(d.element);
  const bool own = size == static_cast<int64_t>(sizeof(T));
  const bool stream = d.batch * p.outputs * w.out_h * w.out_w * size >= kStreamBytes;
  RowForm form{p.first.window};
  const std::vector<PixelRun> pixel_list = pixel_runs(w);
  std::vector<Band> bands;
  int64_t most_pixels = 0;  // of a band
  std::vector<int64_t> blocks;  // of outputs
  std::vector<T> weights;       // per chunk of channels, block of outputs, channel: outputs

  explicit Separable(const SeparableParams& params) : p(params) {
    const int64_t target =
        std::max<int64_t>(2 * kPixels, std::min(kBandPixels, kSums / p.outputs));
    pointwise ? make_runs(target) : make_bands(target);
    for (const Band& band : bands) {
      most_pixels = std::max(most_pixels, band.pixels);
    }
    pack_weights();
  }

  void make_runs(int64_t target) {
    const int64_t all = w.out_h * w.out_w;
    const int64_t length =
        ceil_div(ceil_div(all, ceil_div(all, target)), kPixels) * kPixels;
    for (int64_t first = 0; first < all; first += length) {
      bands.push_back({{}, {}, first, std::min(length, all - first)});
    }
  }

  void make_bands(int64_t target) {
    const int64_t per_band = std::max<int64_t>(1, target / w.out_w);
    for (RowRun& row : row_runs(w, row_order(w), 1)) {
      if (bands.empty() || static_cast<int64_t>(bands.back().rows.size()) == per_band) {
        bands.push_back({{}, {}, 0, 0});
      }
      Band& band = bands.back();
      for (const auto& [k, h] : row.taps) {
        if (std::find(band.input_rows.begin(), band.input_rows.end(), h) ==
            band.input_rows.end()) {
          band.input_rows.push_back(h);
        }
      }
      band.pixels += w.out_w;
      band.rows.push_back(std::move(row));
    }
  }

  void pack_weights() {
    blocks = balanced_blocks(p.outputs, kMixOutputs);
    weights.resize(p.outputs * d.channels);
    const T* from = static_cast<const T*>(p.weight);
    const T* scale = static_cast<const T*>(p.scale);
    T* to = weights.data();
    for (int64_t c0 = 0; c0 < d.channels; c0 += kChannels) {
      const int64_t nc = std::min(kChannels, d.channels - c0);
      int64_t o0 = 0;
      for (const int64_t block : blocks) {
        for (int64_t o = 0; o < block; ++o) {
          const T* row = from + (o0 + o) * d.channels + c0;
          const T factor = scale ? scale[o0 + o] : T{1};
          for (int64_t c = 0; c < nc; ++c) {
            to[c * block + o] = row[c] * factor;
          }
        }
        to += block * nc;
        o0 += block;
      }
    }
  }

  struct Scratch {
    std::vector<T> stage, sums, row, spare, slots, weights, pixels;
    std::vector<int64_t> tags;
    std::vector<char> packed;
    std::vector<const T*> terms, in_row, weight_row, in, weight;
    std::vector<int64_t> row_tap;
  };

  Scratch scratch() const {
    Scratch s;
    const int64_t count = ceil_div(most_pixels, kPixels);
    const int64_t widest = std::max(
        {count * kPixels + kRowBlock, w.in_w + kRowBlock, kPixels * p.outputs});
    s.stage.assign(count * kChannels * kPixels, T{0});
    s.sums.resize(count * p.outputs * kPixels);
    s.row.resize(widest);
    s.spare.resize(std::max(widest, d.channels_last ? kPixels * kChannels : 0));
    s.packed.resize(widest * size);
    s.terms.resize(kChannels);
    s.tags.resize(w.kernel_h);
    if (!pointwise) {
      if (!d.channels_last) {
        s.slots.assign(form.row_stride * w.kernel_h, T{0});
      } else if (!own) {
        s.slots.assign(w.kernel_h * w.in_w * kChannels, T{0});
      }
      s.weights.resize(w.taps() * kChannels);
      s.in_row.resize(w.kernel_h);
      s.weight_row.resize(w.kernel_h);
      s.row_tap.resize(w.kernel_h);
      s.in.resize(w.taps());
      s.weight.resize(w.taps());
    }
    if (d.channels_last) {
      s.pixels.assign((count + 1) * kPixels * kChannels, T{0});
    }
    return s;
  }

  const char* in_at(int64_t i) const { return static_cast<const char*>(d.in) + i * size; }
  const T* per_channel(const void* t, int64_t c) const {
    return t ? static_cast<const T*>(t) + c : nullptr;
  }

  void tasks(int64_t begin, int64_t end) const {
    Scratch s = scratch();
    const auto count = static_cast<int64_t>(bands.size());
    for (int64_t task = begin; task < end; ++task) {
      make_band(s, task / count, bands[task % count]);
    }
    stream_fence();
  }

  void make_band(Scratch& s, int64_t n, const Band& band) const {
    const int64_t count = ceil_div(band.pixels, kPixels);
    const T* shift = static_cast<const T*>(p.shift);
    for (int64_t b = 0; b < count; ++b) {
      for (int64_t o = 0; o < p.outputs; ++o) {
        std::fill_n(s.sums.data() + (b * p.outputs + o) * kPixels, kPixels,
                    shift ? shift[o] : T{0});
      }
    }
    const T* packed = weights.data();
    for (int64_t c0 = 0; c0 < d.channels; c0 += kChannels) {
      const int64_t nc = std::min(kChannels, d.channels - c0);
      d.channels_last ? fill_from_pixels(s, n, band, c0, nc) : fill_from_planes(s, n, band, c0, nc);
      for (int64_t b = 0; b < count; ++b) {
        const int64_t left = band.pixels - b * kPixels;
        add_products(s, b, nc, packed, std::min(kPixels, ceil_div(left, kMixBlock) * kMixBlock));
      }
      packed += nc * p.outputs;
    }
    d.channels_last ? write_pixels(s, n, band) : write_planes(s, n, band);
  }

  void add_products(Scratch& s, int64_t b, int64_t nc, const T* packed, int64_t pixels) const {
    for (int64_t c = 0; c < nc; ++c) {
      s.terms[c] = s.stage.data() + (b * kChannels + c) * kPixels;
    }
    T* sums = s.sums.data() + b * p.outputs * kPixels;
    for (const int64_t block : blocks) {
      mix.mix(s.terms.data(), 0, nc, packed, static_cast<int>(block), sums, kPixels, sums, kPixels,
              pixels);
      packed += nc * block;
      sums += block * kPixels;
    }
  }

  // Channel c of the stage from consecutive pixels.
  void put_on_stage(Scratch& s, int64_t c, const T* from, int64_t pixels) const {
    for (int64_t b = 0; b * kPixels < pixels; ++b) {
      std::copy_n(from + b * kPixels, std::min(kPixels, pixels - b * kPixels),
                  s.stage.data() + (b * kChannels + c) * kPixels);
    }
  }

  void fill_from_planes(Scratch& s, int64_t n, const Band& band, int64_t c0, int64_t nc) const {
    for (int64_t c = 0; c < nc; ++c) {
      const int64_t plane = (n * d.channels + c0 + c) * w.in_h * w.in_w;
      const bool more = c0 + c + kAhead < d.channels;
      const int64_t ahead = plane + kAhead * w.in_h * w.in_w;
      if (pointwise) {
        if (more) {
          prefetch(in_at(ahead + band.first_pixel), band.pixels * size);
        }
        const char* from = in_at(plane + band.first_pixel);
        const T* values = reinterpret_cast<const T*>(from);
        if (!own) {
          rows.load(d.element, from, s.row.data(), band.pixels);
          values = s.row.data();
        }
        put_on_stage(s, c, values, band.pixels);
        continue;
      }
      for (size_t i = 0; more && i < band.input_rows.size(); ++i) {
        prefetch(in_at(ahead + band.input_rows[i] * w.in_w), w.in_w * size);
      }
      depthwise_rows_of_plane(s, plane, c0 + c, band);
      put_on_stage(s, c, s.row.data(), band.pixels);
    }
  }

  T depthwise_weight(int64_t c, int64_t tap) const {
    const T value = static_cast<const T*>(d.weight)[c * w.taps() + tap];
    return d.scale ? value * *per_channel(d.scale, c) : value;
  }

  // The hidden rows of a band, behind each other, as in the depthwise convolution.
  void depthwise_rows_of_plane(Scratch& s, int64_t plane, int64_t c, const Band& band) const {
    for (int64_t t = 0; t < w.taps(); ++t) {
      s.weights[t] = depthwise_weight(c, t);
    }
    std::fill(s.tags.begin(), s.tags.end(), -1);
    const T init = d.shift ? *per_channel(d.shift, c) : T{0};
    T* y = s.row.data();
    for (const RowRun& run : band.rows) {
      int nr = 0;
      for (const auto& [k, h] : run.taps) {
        const int64_t slot = ring_slot(w, run.oh, k);
        T* row = s.slots.data() + slot * form.row_stride;
        if (s.tags[slot] != h) {
          s.tags[slot] = h;
          if (w.stride_w == 1) {
            rows.load(d.element, in_at(plane + h * w.in_w), row + kRowBlock, w.in_w);
          } else {
            rows.load(d.element, in_at(plane + h * w.in_w), s.spare.data(), w.in_w);
            form.place(w, s.spare.data(), row);
          }
        }
        s.in_row[nr] = row;
        s.weight_row[nr++] = s.weights.data() + k * w.kernel_w;
      }
      for (auto segment = form.segments.rbegin(); segment != form.segments.rend(); ++segment) {
        const int first = nr == 0 ? segment->last : segment->first;
        rows.segment(s.in_row.data(), s.weight_row.data(), form.offset.data(), nr, first,
                     segment->last, init, y, segment->x0, segment->blocks, 1, 0, 0);
      }
      y += w.out_w;
    }
    if (d.activation != Activation::kNone) {
      rows.finish(s.row.data(), nullptr, static_cast<int>(d.activation),
                  per_channel(d.slope, c * d.slope_step), 0, band.pixels);
    }
  }

  void fill_from_pixels(Scratch& s, int64_t n, const Band& band, int64_t c0, int64_t nc) const {
    if (pointwise) {
      for (int64_t b = 0; b * kPixels < band.pixels; ++b) {
        const int64_t count = std::min(kPixels, band.pixels - b * kPixels);
        const int64_t pixel = n * w.in_h * w.in_w + band.first_pixel + b * kPixels;
        const char* from = in_at(pixel * d.channels + c0);
        const T* values = reinterpret_cast<const T*>(from);
        int64_t pitch = d.channels;
        if (!own) {
          for (int64_t i = 0; i < count; ++i) {
            rows.load(d.element, from + i * d.channels * size, s.spare.data() + i * kChannels, nc);
          }
          values = s.spare.data();
          pitch = kChannels;
        }
        mix.transpose(values, pitch, s.stage.data() + b * kChannels * kPixels, kPixels, count, nc);
      }
      return;
    }
    depthwise_pixels(s, n, band, c0, nc);
    for (int64_t b = 0; b * kPixels < band.pixels; ++b) {
      mix.transpose(s.pixels.data() + b * kPixels * kChannels, kChannels,
                    s.stage.data() + b * kChannels * kPixels, kPixels,
                    std::min(kPixels, band.pixels - b * kPixels), nc);
    }
  }

  // The hidden pixels of a band, kChannels elements each.
  void depthwise_pixels(Scratch& s, int64_t n, const Band& band, int64_t c0, int64_t nc) const {
    for (int64_t t = 0; t < w.taps(); ++t) {
      for (int64_t c = 0; c < nc; ++c) {
        s.weights[t * kChannels + c] = depthwise_weight(c0 + c, t);
      }
    }
    std::fill(s.tags.begin(), s.tags.end(), -1);
    const int64_t pitch = own ? d.channels : kChannels;
    T* y = s.pixels.data();
    for (const RowRun& run : band.rows) {
      int nr = 0;
      for (const auto& [k, h] : run.taps) {
        const char* from = in_at((n * w.in_h + h) * w.in_w * d.channels + c0);
        const int64_t slot = ring_slot(w, run.oh, k);
        T* kept = own ? nullptr : s.slots.data() + slot * w.in_w * kChannels;
        if (!own && s.tags[slot] != h) {
          s.tags[slot] = h;
          for (int64_t x = 0; x < w.in_w; ++x) {
            rows.load(d.element, from + x * d.channels * size, kept + x * kChannels, nc);
          }
        }
        s.row_tap[nr] = k;
        s.in_row[nr++] = own ? reinterpret_cast<const T*>(from) : kept;
      }
      for (const PixelRun& pixels : pixel_list) {
        int nt = 0;
        for (const auto& [k, x] : pixels.taps) {
          for (int r = 0; r < nr; ++r) {
            s.in[nt] = s.in_row[r] + x * pitch;
            s.weight[nt++] = s.weights.data() + (s.row_tap[r] * w.kernel_w + k) * kChannels;
          }
        }
        for (int64_t done = 0; done < pixels.count; done += kLanePixels) {
          const int64_t count = std::min(kLanePixels, pixels.count - done);
          rows.lanes(s.in.data(), s.weight.data(), nt, per_channel(d.shift, c0), y, nc, count,
                     w.stride_w * pitch, kChannels);
          for (int t = 0; t < nt; ++t) {
            s.in[t] += count * w.stride_w * pitch;
          }
          y += count * kChannels;
        }
      }
    }
    if (d.activation != Activation::kNone) {
      const T* slope = per_channel(d.slope, c0 * d.slope_step);
      for (int64_t i = 0; i < band.pixels; ++i) {
        rows.finish(s.pixels.data() + i * kChannels, nullptr, static_cast<int>(d.activation), slope,
                    d.slope_step, nc);
      }
    }
  }

  // Residual, activation, conversion and store of n elements.
  void write(Scratch& s, T* y, int64_t at, const T* slope, int64_t slope_step, int64_t n) const {
    const T* residual = nullptr;
    if (p.residual) {
      rows.load(d.element, static_cast<const char*>(p.residual) + at * size, s.spare.data(), n);
      residual = s.spare.data();
    }
    if (residual || p.activation != Activation::kNone) {
      rows.finish(y, residual, static_cast<int>(p.activation), slope, slope_step, n);
    }
    const void* from = y;
    if (!own) {
      rows.store(d.element, y, s.packed.data(), n);
      from = s.packed.data();
    }
    char* to = static_cast<char*>(p.out) + at * size;
    if (stream) {
      rows.stream(to, from, n * size);
    } else {
      std::memcpy(to, from, n * size);
    }
  }

  void write_planes(Scratch& s, int64_t n, const Band& band) const {
    for (int64_t o = 0; o < p.outputs; ++o) {
      for (int64_t b = 0; b * kPixels < band.pixels; ++b) {
        std::copy_n(s.sums.data() + (b * p.outputs + o) * kPixels, kPixels,
                    s.row.data() + b * kPixels);
      }
      const int64_t plane = (n * p.outputs + o) * w.out_h * w.out_w;
      const T* slope = per_channel(p.slope, o * p.slope_step);
      if (pointwise) {
        write(s, s.row.data(), plane + band.first_pixel, slope, 0, band.pixels);
        continue;
      }
      T* y = s.row.data();
      for (const RowRun& run : band.rows) {
        write(s, y, plane + run.oh * w.out_w, slope, 0, w.out_w);
        y += w.out_w;
      }
    }
  }

  // The pixel of the output that is pixel i of a band.
  int64_t pixel_of(const Band& band, int64_t i) const {
    return pointwise ? band.first_pixel + i : band.rows[i / w.out_w].oh * w.out_w + i % w.out_w;
  }

  void write_pixels(Scratch& s, int64_t n, const Band& band) const {
    const T* slope = per_channel(p.slope, 0);
    for (int64_t b = 0; b * kPixels < band.pixels; ++b) {
      const int64_t count = std::min(kPixels, band.pixels - b * kPixels);
      mix.transpose(s.sums.data() + b * p.outputs * kPixels, kPixels, s.row.data(), p.outputs,
                    p.outputs, count);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t pixel = n * w.out_h * w.out_w + pixel_of(band, b * kPixels + i);
        write(s, s.row.data() + i * p.outputs, pixel * p.outputs, slope, p.slope_step, p.outputs);
      }
    }
  }
};

template <typename T>
void separable_of(const SeparableParams& p) {
  const Separable<T> call(p);
  torch::stable::parallel_for(0, p.first.batch * static_cast<int64_t>(call.bands.size()), 1,
                              [&](int64_t begin, int64_t end) { call.tasks(begin, end); });
}

}  // namespace

void separable_conv_cpu(const SeparableParams& p) {
  p.first.element == Element::kFloat64 ? separable_of<double>(p) : separable_of<float>(p);
}

}  // namespace segkern
