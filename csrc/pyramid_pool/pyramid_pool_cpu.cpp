// CPU pyramid pooling in one pass over the map. The edges of all cells of all grids cut each axis
// into segments, and the map into pieces that lie in the same cells: the forward sums every piece
// once and then the pieces of each cell, the backward is one number a piece. Orders are fixed.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../atrous_conv/depthwise_rows.h"
#include "../common/stream_store.h"
#include "pyramid_pool.h"
#include "pyramid_rows.h"

namespace segkern {
namespace {

// Elements that are worth a task of their own.
constexpr int64_t kGrain = 32768;

// One axis cut at the edges of all cells.
struct Segments {
  std::vector<int64_t> edges;

  Segments(const PyramidParams& p, int64_t pixels) {
    for (int g = 0; g < p.grids; ++g) {
      for (int64_t i = 0; i < p.bins[g]; ++i) {
        const CellRange range(i, p.bins[g], pixels);
        edges.push_back(range.begin);
        edges.push_back(range.end);
      }
    }
    std::sort(edges.begin(), edges.end());
    edges.erase(std::unique(edges.begin(), edges.end()), edges.end());
  }

  int64_t count() const { return static_cast<int64_t>(edges.size()) - 1; }
  int64_t begin(int64_t i) const { return edges[i]; }
  int64_t length(int64_t i) const { return edges[i + 1] - edges[i]; }
  // The segment that begins at a pixel, which is an edge.
  int64_t at(int64_t pixel) const {
    return std::lower_bound(edges.begin(), edges.end(), pixel) - edges.begin();
  }
};

template <typename T>
class Pyramid {
 public:
  explicit Pyramid(const PyramidParams& params)
      : p(params),
        size_(element_size(p.element)),
        same_(size_ == static_cast<int64_t>(sizeof(T))),
        maps_(p.channels_last ? p.items : p.planes()),
        width_(p.channels_last ? p.channels : 1),
        pieces_(down_.count() * across_.count()),
        stream_(p.planes() * p.height * p.width * size_ >= kStreamBytes) {
    for (int g = 0; g < p.grids; ++g) {
      for (int64_t i = 0; i < p.bins[g]; ++i) {
        for (int64_t j = 0; j < p.bins[g]; ++j) {
          const CellRange y(i, p.bins[g], p.height), x(j, p.bins[g], p.width);
          cells_.push_back({down_.at(y.begin), down_.at(y.end), across_.at(x.begin),
                            across_.at(x.end),
                            static_cast<T>((y.end - y.begin) * (x.end - x.begin))});
        }
      }
    }
  }

  void forward() const {
    // Channels-last maps are few and large: their bands are tasks, and their cells come after.
    if (!p.channels_last) {
      share(maps_, p.height * p.width, [&](int64_t first, int64_t last) {
        std::vector<T> sums(pieces_), wide, row(p.width);
        for (int64_t map = first; map < last; ++map) {
          for (int64_t band = 0; band < down_.count(); ++band) {
            sum_band(map, band, wide, row.data(), sums.data());
          }
          average(map, sums.data());
        }
      });
      return;
    }
    std::unique_ptr<T[]> sums(new T[maps_ * pieces_ * width_]);
    const int64_t bands = down_.count();
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
    const int64_t bands = p.channels_last ? down_.count() : 1;
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
        const int64_t end = p.channels_last ? band + 1 : down_.count();
        for (int64_t b = band; b < end; ++b) {
          spread(map, b, grads, piece, row, made);
        }
      }
      if (stream_) {
        stream_fence();
      }
    });
  }

 private:
  struct Cell {
    int64_t top, bottom, left, right;  // segments [top, bottom) x [left, right)
    T area;
  };

  template <typename F>
  static void share(int64_t tasks, int64_t each, const F& f) {
    torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, each)),
                                f);
  }

  int64_t stored_row() const { return p.width * width_ * size_; }

  // The sums of a band's pieces, of `sums` of the whole map. `wide` holds rows of half types as T.
  void sum_band(int64_t map, int64_t band, std::vector<T>& wide, T* row, T* sums) const {
    const int64_t elements = p.width * width_, height = down_.length(band);
    const int64_t at = (map * p.height + down_.begin(band)) * elements;
    const T* in = static_cast<const T*>(p.from) + at;
    if (!same_) {
      wide.resize(std::max<size_t>(wide.size(), height * elements));
      rows_.load(p.element, static_cast<const char*>(p.from) + at * size_, wide.data(),
                 height * elements);
      in = wide.data();
    }
    T* to = sums + band * across_.count() * width_;
    if (p.channels_last) {
      for (int64_t s = 0; s < across_.count(); ++s) {
        sum_.sum(in + across_.begin(s) * width_, elements, height, width_, across_.length(s),
                 width_, to + s * width_);
      }
      return;
    }
    sum_.sum(in, elements, height, 0, 1, elements, row);
    for (int64_t s = 0; s < across_.count(); ++s) {
      T total = 0;
      for (int64_t x = across_.begin(s); x < across_.begin(s) + across_.length(s); ++x) {
        total += row[x];
      }
      to[s] = total;
    }
  }

  void average(int64_t map, const T* sums) const {
    std::vector<T> made(p.cells * width_, T(0));
    for (int64_t k = 0; k < p.cells; ++k) {
      const Cell& cell = cells_[k];
      T* to = made.data() + k * width_;
      for (int64_t b = cell.top; b < cell.bottom; ++b) {
        for (int64_t s = cell.left; s < cell.right; ++s) {
          const T* piece = sums + (b * across_.count() + s) * width_;
          for (int64_t c = 0; c < width_; ++c) {
            to[c] += piece[c];
          }
        }
      }
      for (int64_t c = 0; c < width_; ++c) {
        to[c] /= cell.area;
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
        grads[k * width_ + c] /= cells_[k].area;
      }
    }
  }

  // All rows of a band are the same.
  void spread(int64_t map, int64_t band, const std::vector<T>& grads, std::vector<T>& piece,
              std::vector<T>& row, std::vector<char>& made) const {
    for (int64_t s = 0; s < across_.count(); ++s) {
      std::fill(piece.begin(), piece.end(), T(0));
      for (int64_t k = 0; k < p.cells; ++k) {
        const Cell& cell = cells_[k];
        if (cell.top <= band && band < cell.bottom && cell.left <= s && s < cell.right) {
          const T* grad = grads.data() + k * width_;
          for (int64_t c = 0; c < width_; ++c) {
            piece[c] += grad[c];
          }
        }
      }
      for (int64_t x = across_.begin(s); x < across_.begin(s) + across_.length(s); ++x) {
        std::copy(piece.begin(), piece.end(), row.begin() + x * width_);
      }
    }
    rows_.store(p.element, row.data(), made.data(), p.width * width_);
    char* to = static_cast<char*>(p.to) + (map * p.height + down_.begin(band)) * stored_row();
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
  std::vector<Cell> cells_;
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
