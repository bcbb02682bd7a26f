// CPU spatial pyramid. Output rows are made in turn, in tiles of columns; the reduced rows that the
// branches read are kept in a ring that covers the largest rate above and below, so the input is
// read once (and the halo columns of a tile again) and nothing but the output is written.
#include <algorithm>
#include <cstring>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../common/stream_store.h"
#include "depthwise_rows.h"
#include "esp.h"
#include "mix_rows.h"

namespace segkern {
namespace {

constexpr int64_t kTile = 256;  // columns of one tile: its ring fits the second-level cache
// Columns computed between load and store, of the contiguous layout and of channels-last: longer
// runs of a plane are cheaper to reach, shorter ones leave room for what channels-last transposes.
constexpr int64_t kPlaneChunk = 128;
constexpr int64_t kPixelChunk = 64;
constexpr int64_t kUnitRows = 4;  // rows of one unit of work
// Channels ahead for which memory is asked. Planes of a power of two of bytes meet in one set of the
// caches, so asking for a row of all channels at once would be in vain.
constexpr int64_t kAhead = 4;

// Kernel columns (or rows) whose shift stays inside a map of this length for some pixel.
std::vector<int64_t> useful_taps(int64_t kernel, int64_t rate, int64_t length) {
  std::vector<int64_t> taps;
  for (int64_t k = 0; k < kernel; ++k) {
    const int64_t shift = (k - kernel / 2) * rate;
    if (shift > -length && shift < length) {
      taps.push_back(k);
    }
  }
  return taps;
}

template <typename T>
struct Esp {
  // One branch with its weights as the mixing kernel reads them: per block of outputs, the taps in
  // rows, columns, input channels.
  struct Branch {
    std::vector<int64_t> rows, columns;  // useful kernel rows and columns
    int64_t rate_h, rate_w;
    int64_t first;  // channel of the output
    std::vector<int64_t> blocks;
    std::vector<T> weights;
  };

  const EspParams& p;
  const DepthwiseRows<T>& rows = depthwise_rows<T>();
  const MixRows<T>& mix = mix_rows<T>();
  const int64_t size = element_size(p.element);
  const bool own = size == static_cast<int64_t>(sizeof(T));
  const int64_t chunk = p.channels_last ? kPixelChunk : kPlaneChunk;
  const bool stream = p.batch * p.out_channels * p.height * p.width * size >= kStreamBytes;
  std::vector<Branch> branches;
  std::vector<int64_t> reduce_blocks;
  std::vector<T> reduce_weights;
  int64_t halo_h = 0, halo_w = 0;  // of useful taps
  int64_t ring_rows, row_length;

  explicit Esp(const EspParams& params) : p(params) {
    int64_t first = 0;
    for (int b = 0; b < p.branches; ++b) {
      branches.push_back(make_branch(b, first));
      first += p.outputs[b];
      for (const int64_t k : branches.back().rows) {
        halo_h = std::max(halo_h, std::abs(k - p.kernel_h / 2) * p.rate_h[b]);
      }
      for (const int64_t k : branches.back().columns) {
        halo_w = std::max(halo_w, std::abs(k - p.kernel_w / 2) * p.rate_w[b]);
      }
    }
    if (p.reduce) {
      reduce_blocks = balanced_blocks(p.reduced, kMixOutputs);
      const T* weight = static_cast<const T*>(p.reduce);
      int64_t o = 0;
      for (const int64_t block : reduce_blocks) {
        for (int64_t i = 0; i < p.in_channels; ++i) {
          for (int64_t j = 0; j < block; ++j) {
            reduce_weights.push_back(weight[(o + j) * p.in_channels + i]);
          }
        }
        o += block;
      }
    }
    ring_rows = std::min(p.height, 2 * halo_h + 1);
    row_length = kTile + 2 * halo_w + 2 * chunk;
  }

  Branch make_branch(int b, int64_t first) const {
    Branch branch;
    branch.rate_h = p.rate_h[b];
    branch.rate_w = p.rate_w[b];
    branch.rows = useful_taps(p.kernel_h, p.rate_h[b], p.height);
    branch.columns = useful_taps(p.kernel_w, p.rate_w[b], p.width);
    branch.first = first;
    branch.blocks = balanced_blocks(p.outputs[b], kMixOutputs);
    const T* weight = static_cast<const T*>(p.weight[b]);
    int64_t o = 0;
    for (const int64_t block : branch.blocks) {
      for (const int64_t kh : branch.rows) {
        for (const int64_t kw : branch.columns) {
          for (int64_t i = 0; i < p.reduced; ++i) {
            for (int64_t j = 0; j < block; ++j) {
              branch.weights.push_back(
                  weight[(((o + j) * p.reduced + i) * p.kernel_h + kh) * p.kernel_w + kw]);
            }
          }
        }
      }
      o += block;
    }
    return branch;
  }

  struct Scratch {
    std::vector<T> ring, stage, pixels, y, z, spare;
    std::vector<int64_t> tags;
    std::vector<char> packed;
    std::vector<const T*> stage_rows;
    std::vector<std::vector<const T*>> terms;  // of each branch
    std::vector<int64_t> skipped;              // kernel rows of each branch above the map
  };

  Scratch scratch() const {
    Scratch s;
    const int64_t wide = std::max(p.in_channels, p.out_channels);
    s.ring.resize(ring_rows * p.reduced * row_length);
    s.tags.resize(ring_rows);
    s.stage.resize(p.in_channels * chunk);
    s.pixels.resize(wide * chunk);
    s.y.resize(p.out_channels * chunk);
    s.z.resize(p.channels_last ? p.out_channels * chunk : 0);
    s.spare.resize(wide * chunk);
    s.packed.resize(p.out_channels * chunk * size);
    for (int64_t c = 0; c < p.in_channels; ++c) {
      s.stage_rows.push_back(s.stage.data() + c * chunk);
    }
    s.terms.resize(branches.size());
    s.skipped.resize(branches.size());
    return s;
  }

  int64_t tiles() const { return (p.width + kTile - 1) / kTile; }
  int64_t row_units() const { return (p.height + kUnitRows - 1) / kUnitRows; }

  // Units are rows of a tile from top to bottom; a thread that makes consecutive ones keeps its
  // ring.
  void units(int64_t begin, int64_t end) const {
    Scratch s = scratch();
    int64_t of_tile = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t tile = unit / row_units();
      if (tile != of_tile) {
        std::fill(s.ring.begin(), s.ring.end(), T{0});
        std::fill(s.tags.begin(), s.tags.end(), -1);
        of_tile = tile;
      }
      const int64_t top = unit % row_units() * kUnitRows;
      for (int64_t oh = top; oh < std::min(p.height, top + kUnitRows); ++oh) {
        make_row(s, tile / tiles(), oh, tile % tiles() * kTile);
      }
    }
    stream_fence();
  }

  // Element (n, channel, h, x) of a map with this many channels.
  int64_t index(int64_t n, int64_t channels, int64_t c, int64_t h, int64_t x) const {
    return p.channels_last ? ((n * p.height + h) * p.width + x) * channels + c
                           : ((n * channels + c) * p.height + h) * p.width + x;
  }

  const char* in_at(int64_t i) const { return static_cast<const char*>(p.in) + i * size; }

  static int64_t in_blocks(int64_t count) {
    return (count + kMixBlock - 1) / kMixBlock * kMixBlock;
  }

  // `count` pixels of all input channels as rows, zeros behind up to a whole block.
  void load_stage(Scratch& s, int64_t n, int64_t h, int64_t x, int64_t count) const {
    if (p.channels_last) {
      const char* from = in_at(index(n, p.in_channels, 0, h, x));
      const T* pixels = reinterpret_cast<const T*>(from);
      if (!own) {
        rows.load(p.element, from, s.pixels.data(), count * p.in_channels);
        pixels = s.pixels.data();
      }
      mix.transpose(pixels, p.in_channels, s.stage.data(), chunk, count, p.in_channels);
    } else {
      for (int64_t c = 0; c < p.in_channels; ++c) {
        if (c + kAhead < p.in_channels) {
          prefetch(in_at(index(n, p.in_channels, c + kAhead, h, x)), count * size);
        }
        rows.load(p.element, in_at(index(n, p.in_channels, c, h, x)), s.stage.data() + c * chunk,
                  count);
      }
    }
    const int64_t rest = in_blocks(count) - count;
    for (int64_t c = 0; rest > 0 && c < p.in_channels; ++c) {
      std::fill_n(s.stage.data() + c * chunk + count, rest, T{0});
    }
  }

  // The reduced row h of a tile with its halo. Column x lies at halo_w + x - c0.
  T* reduced_row(Scratch& s, int64_t n, int64_t h, int64_t c0) const {
    T* row = s.ring.data() + h % ring_rows * p.reduced * row_length;
    if (s.tags[h % ring_rows] == h) {
      return row;
    }
    s.tags[h % ring_rows] = h;
    const int64_t last = std::min(p.width, c0 + kTile + halo_w);
    for (int64_t x = std::max<int64_t>(0, c0 - halo_w); x < last; x += chunk) {
      const int64_t count = std::min(chunk, last - x);
      load_stage(s, n, h, x, count);
      T* to = row + halo_w + x - c0;
      if (!p.reduce) {
        for (int64_t c = 0; c < p.reduced; ++c) {
          std::copy_n(s.stage.data() + c * chunk, in_blocks(count), to + c * row_length);
        }
        continue;
      }
      const T* weights = reduce_weights.data();
      for (const int64_t block : reduce_blocks) {
        mix.mix(s.stage_rows.data(), 0, p.in_channels, weights, static_cast<int>(block), nullptr,
                0, to, row_length, in_blocks(count));
        weights += block * p.in_channels;
        to += block * row_length;
      }
    }
    return row;
  }

  // The input rows of every branch's terms for output row oh.
  void gather_terms(Scratch& s, int64_t n, int64_t oh, int64_t c0) const {
    for (size_t b = 0; b < branches.size(); ++b) {
      const Branch& branch = branches[b];
      s.terms[b].clear();
      s.skipped[b] = 0;
      for (const int64_t kh : branch.rows) {
        const int64_t h = oh + (kh - p.kernel_h / 2) * branch.rate_h;
        if (h < 0) {
          ++s.skipped[b];
        } else if (h < p.height) {
          const T* row = reduced_row(s, n, h, c0) + halo_w;
          for (const int64_t kw : branch.columns) {
            for (int64_t i = 0; i < p.reduced; ++i) {
              s.terms[b].push_back(row + i * row_length +
                                   (kw - p.kernel_w / 2) * branch.rate_w);
            }
          }
        }
      }
    }
  }

  void make_row(Scratch& s, int64_t n, int64_t oh, int64_t c0) const {
    gather_terms(s, n, oh, c0);
    const int64_t c1 = std::min(p.width, c0 + kTile);
    for (int64_t x = c0; x < c1; x += chunk) {
      const int64_t count = std::min(chunk, c1 - x);
      const int64_t blocked = in_blocks(count);
      for (size_t b = 0; b < branches.size(); ++b) {
        mix_branch(s, b, x - c0, blocked);
      }
      p.channels_last ? write_pixels(s, n, oh, x, count) : write_planes(s, n, oh, x, count);
    }
  }

  void mix_branch(Scratch& s, size_t b, int64_t x, int64_t count) const {
    const Branch& branch = branches[b];
    const auto terms = static_cast<int64_t>(s.terms[b].size());
    const int64_t per_row = static_cast<int64_t>(branch.columns.size()) * p.reduced;
    const int64_t all = static_cast<int64_t>(branch.rows.size()) * per_row;
    const T* weights = branch.weights.data();
    T* y = s.y.data() + branch.first * chunk;
    const T* before = nullptr;
    if (p.hierarchical && b >= 2) {
      before = s.y.data() + branches[b - 1].first * chunk;
    }
    for (const int64_t block : branch.blocks) {
      mix.mix(s.terms[b].data(), x, terms, weights + s.skipped[b] * per_row * block,
              static_cast<int>(block), before, chunk, y, chunk, count);
      weights += all * block;
      y += block * chunk;
      before = before ? before + block * chunk : nullptr;
    }
  }

  void store(const T* from, int64_t at, char* packed, int64_t n) const {
    char* to = static_cast<char*>(p.out) + at * size;
    const void* elements = from;
    if (!own) {
      rows.store(p.element, from, packed, n);
      elements = packed;
    }
    if (stream) {
      rows.stream(to, elements, n * size);
    } else {
      std::memcpy(to, elements, n * size);
    }
  }

  const T* load_residual(Scratch& s, int64_t at, int64_t n) const {
    if (!p.residual) {
      return nullptr;
    }
    const char* from = static_cast<const char*>(p.residual) + at * size;
    if (own) {
      return reinterpret_cast<const T*>(from);
    }
    rows.load(p.element, from, s.spare.data(), n);
    return s.spare.data();
  }

  void write_planes(Scratch& s, int64_t n, int64_t oh, int64_t x, int64_t count) const {
    const T* scale = static_cast<const T*>(p.scale);
    const T* shift = static_cast<const T*>(p.shift);
    const T* slope = static_cast<const T*>(p.slope);
    for (int64_t c = 0; c < p.out_channels; ++c) {
      const int64_t at = index(n, p.out_channels, c, oh, x);
      if (p.residual && c + kAhead < p.out_channels) {
        prefetch(static_cast<const char*>(p.residual) +
                     index(n, p.out_channels, c + kAhead, oh, x) * size,
                 count * size);
      }
      T* y = s.y.data() + c * chunk;
      mix.finish(y, load_residual(s, at, count), scale + c, shift + c,
                 static_cast<int>(p.activation), slope + c, 0, count, 1);
      store(y, at, s.packed.data(), count);
    }
  }

  void write_pixels(Scratch& s, int64_t n, int64_t oh, int64_t x, int64_t count) const {
    const int64_t all = count * p.out_channels;
    const int64_t at = index(n, p.out_channels, 0, oh, x);
    mix.transpose(s.y.data(), chunk, s.z.data(), p.out_channels, p.out_channels, count);
    const T* residual = load_residual(s, at, all);
    mix.finish(s.z.data(), residual, static_cast<const T*>(p.scale),
               static_cast<const T*>(p.shift), static_cast<int>(p.activation),
               static_cast<const T*>(p.slope), 1, p.out_channels, count);
    store(s.z.data(), at, s.packed.data(), all);
  }
};

template <typename T>
void esp_of(const EspParams& p) {
  const Esp<T> call(p);
  torch::stable::parallel_for(0, p.batch * call.tiles() * call.row_units(), 1,
                              [&](int64_t begin, int64_t end) { call.units(begin, end); });
}

}  // namespace

void esp_cpu(const EspParams& p) {
  p.element == Element::kFloat64 ? esp_of<double>(p) : esp_of<float>(p);
}

}  // namespace segkern
