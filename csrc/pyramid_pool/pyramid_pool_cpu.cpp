// CPU pyramid pooling in one pass over the map: the forward sums every piece once and then the
// pieces of each cell, the backward is one number a piece. Orders are fixed.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../atrous_conv/depthwise_rows.h"
#include "../common/stream_store.h"
#include "pieces.h"
#include "pyramid_pool.h"
#include "pyramid_rows.h"

namespace segkern {
namespace {

// Elements that are worth a task of their own.
constexpr int64_t kGrain = 32768;
// Elements of half types that are widened at once.
constexpr int64_t kWidened = 16384;

template <typename T>
class Pyramid {
 public:
  explicit Pyramid(const PyramidParams& params)
      : p(params),
        size_(element_size(p.element)),
        same_(size_ == static_cast<int64_t>(sizeof(T))),
        maps_(p.channels_last ? p.items : p.planes()),
        width_(p.channels_last ? p.channels : 1),
        pieces_(down_.count * across_.count),
        stream_(p.planes() * p.height * p.width * size_ >= kStreamBytes) {
    for (int64_t k = 0; k < p.cells; ++k) {
      cells_.emplace_back(p, down_, across_, k);
    }
  }

  void forward() const {
    // Channels-last maps are few and large: their bands are tasks, and their cells come after.
    if (!p.channels_last) {
      share(maps_, p.height * p.width, [&](int64_t first, int64_t last) {
        std::vector<T> sums(pieces_), wide, row(p.width);
        for (int64_t map = first; map < last; ++map) {
          for (int64_t band = 0; band < down_.count; ++band) {
            sum_band(map, band, wide, row.data(), sums.data());
          }
          average(map, sums.data());
        }
      });
      return;
    }
    std::unique_ptr<T[]> sums(new T[maps_ * pieces_ * width_]);
    const int64_t bands = down_.count;
    share(maps_ * bands, p.height * p.width * width_ / bands, [&](int64_t first, int64_t last) {
      std::vector<T> wide;
      for (int64_t task = first; task < last; ++task) {
        sum_band(task / bands, task % bands, wide, nullptr,
                 sums.get() + task / bands * pieces_ * width_);
      }
    });
    share(maps_, pieces_ * width_, [&](int64_t first, int64_t last) {
      for (int64_t map = first; map < last; ++map) {
        average(map, sums.get() + map * pieces_ * width_);
      }
    });
  }

  void backward() const {
    const int64_t bands = p.channels_last ? down_.count : 1;
    const Holders holders = find_holders();
    share(maps_ * bands, p.height * p.width * width_ / bands, [&](int64_t first, int64_t last) {
      std::vector<T> grads(p.cells * width_), piece(width_), row(p.width * width_);
      std::vector<char> made(stored_row());
      int64_t held = -1;
      for (int64_t task = first; task < last; ++task) {
        const int64_t map = task / bands;
        if (map != held) {
          scaled_grads(map, grads.data());
          held = map;
        }
        const int64_t band = p.channels_last ? task % bands : 0;
        const int64_t end = p.channels_last ? band + 1 : down_.count;
        for (int64_t b = band; b < end; ++b) {
          spread(map, b, holders, grads, piece, row, made);
        }
      }
      if (stream_) {
        stream_fence();
      }
    });
  }

 private:
  using Holders = std::vector<std::vector<int64_t>>;  // of each piece, the cells it lies in

  Holders find_holders() const {
    Holders holders(pieces_);
    for (int64_t k = 0; k < p.cells; ++k) {
      for (int64_t band = cells_[k].top; band < cells_[k].bottom; ++band) {
        for (int64_t s = cells_[k].left; s < cells_[k].right; ++s) {
          holders[band * across_.count + s].push_back(k);
        }
      }
    }
    return holders;
  }

  template <typename F>
  static void share(int64_t tasks, int64_t each, const F& f) {
    torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, each)),
                                f);
  }

  int64_t stored_row() const { return p.width * width_ * size_; }

  // The sum over rows and pixels of n elements each; rows are `row_step` elements apart, pixels n.
  // Half types are widened a few pixels at a time in `wide`, behind n numbers of their sum.
  void sum_pixels(int64_t at, int64_t row_step, int64_t rows, int64_t pixels, int64_t n,
                  std::vector<T>& wide, T* to) const {
    if (same_) {
      sum_.sum(static_cast<const T*>(p.from) + at, row_step, rows, n, pixels, n, to);
      return;
    }
    const int64_t some = std::min(pixels, std::max<int64_t>(1, kWidened / n));
    wide.resize(std::max<size_t>(wide.size(), (1 + some) * n));
    std::fill_n(to, n, T(0));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < pixels; k += some) {
        const int64_t count = std::min(some, pixels - k);
        const int64_t from = (at + r * row_step + k * n) * size_;
        rows_.load(p.element, static_cast<const char*>(p.from) + from, wide.data() + n, count * n);
        sum_.sum(wide.data() + n, 0, 1, n, count, n, wide.data());
        for (int64_t c = 0; c < n; ++c) {
          to[c] += wide[c];
        }
      }
    }
  }

  // The sums of a band's pieces, of `sums` of the whole map.
  void sum_band(int64_t map, int64_t band, std::vector<T>& wide, T* row, T* sums) const {
    const int64_t elements = p.width * width_, height = down_.length(band);
    const int64_t at = (map * p.height + down_.edges[band]) * elements;
    T* to = sums + band * across_.count * width_;
    if (p.channels_last) {
      for (int64_t s = 0; s < across_.count; ++s) {
        sum_pixels(at + across_.edges[s] * width_, elements, height, across_.length(s), width_,
                   wide, to + s * width_);
      }
      return;
    }
    sum_pixels(at, elements, 1, height, elements, wide, row);  // rows as pixels of a row
    for (int64_t s = 0; s < across_.count; ++s) {
      T total = 0;
      for (int64_t x = across_.edges[s]; x < across_.edges[s + 1]; ++x) {
        total += row[x];
      }
      to[s] = total;
    }
  }

  void average(int64_t map, const T* sums) const {
    std::vector<T> made(p.cells * width_, T(0));
    for (int64_t k = 0; k < p.cells; ++k) {
      const PyramidCell& cell = cells_[k];
      T* to = made.data() + k * width_;
      for (int64_t b = cell.top; b < cell.bottom; ++b) {
        for (int64_t s = cell.left; s < cell.right; ++s) {
          const T* piece = sums + (b * across_.count + s) * width_;
          for (int64_t c = 0; c < width_; ++c) {
            to[c] += piece[c];
          }
        }
      }
      for (int64_t c = 0; c < width_; ++c) {
        to[c] /= static_cast<T>(cell.area);
      }
    }
    rows_.store(p.element, made.data(), static_cast<char*>(p.to) + map * p.cells * width_ * size_,
                p.cells * width_);
  }

  void scaled_grads(int64_t map, T* grads) const {
    const int64_t n = p.cells * width_;
    rows_.load(p.element, static_cast<const char*>(p.from) + map * n * size_, grads, n);
    for (int64_t k = 0; k < p.cells; ++k) {
      for (int64_t c = 0; c < width_; ++c) {
        grads[k * width_ + c] /= static_cast<T>(cells_[k].area);
      }
    }
  }

  // All rows of a band are the same.
  void spread(int64_t map, int64_t band, const Holders& holders, const std::vector<T>& grads,
              std::vector<T>& piece, std::vector<T>& row, std::vector<char>& made) const {
    for (int64_t s = 0; s < across_.count; ++s) {
      std::fill(piece.begin(), piece.end(), T(0));
      for (const int64_t k : holders[band * across_.count + s]) {
        const T* grad = grads.data() + k * width_;
        for (int64_t c = 0; c < width_; ++c) {
          piece[c] += grad[c];
        }
      }
      for (int64_t x = across_.edges[s]; x < across_.edges[s + 1]; ++x) {
        std::copy(piece.begin(), piece.end(), row.begin() + x * width_);
      }
    }
    rows_.store(p.element, row.data(), made.data(), p.width * width_);
    char* to = static_cast<char*>(p.to) + (map * p.height + down_.edges[band]) * stored_row();
    for (int64_t y = 0; y < down_.length(band); ++y, to += stored_row()) {
      if (stream_) {
        rows_.stream(to, made.data(), stored_row());
      } else {
        std::memcpy(to, made.data(), stored_row());
      }
    }
  }

  const PyramidParams& p;
  const Segments down_{p, p.height}, across_{p, p.width};
  const DepthwiseRows<T>& rows_ = depthwise_rows<T>();
  const PyramidRows<T>& sum_ = pyramid_rows<T>();
  int64_t size_;
  bool same_;
  int64_t maps_, width_, pieces_;
  bool stream_;
  std::vector<PyramidCell> cells_;
};

}  // namespace

void pyramid_pool_fwd_cpu(const PyramidParams& p) {
  if (p.element == Element::kFloat64) {
    Pyramid<double>(p).forward();
  } else {
    Pyramid<float>(p).forward();
  }
}

void pyramid_pool_bwd_cpu(const PyramidParams& p) {
  if (p.element == Element::kFloat64) {
    Pyramid<double>(p).backward();
  } else {
    Pyramid<float>(p).backward();
  }
}

}  // namespace segkern
