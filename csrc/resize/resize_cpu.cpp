// CPU bilinear resampling, separably: a row is resampled along its columns once, and an output row
// is a blend of the two latest of those (but where a pixel is whole vectors). The backward is the mirror image: an input row sums the
// output rows that read it, and then along its columns the output pixels that read each pixel.
//
// A row is the W elements of a plane's row or, channels-last, the W * C of an image's, worked on
// in strips that stay in the first-level cache. Every element is read and written once, but for
// the rows at the edges of strips and bands; results do not depend on how tasks are shared out.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../atrous_conv/depthwise_rows.h"
#include "../common/stream_store.h"
#include "../roi/roi_rows.h"
#include "axis_table.h"
#include "resize.h"
#include "resize_rows.h"

namespace segkern {
namespace {

// Elements of a strip's rows, and of results gathered before they go to memory.
constexpr int64_t kStrip = 16384;
constexpr int64_t kStaged = 4096;
// Rows of gradients whose columns are summed at once: lanes of a vector of float.
constexpr int64_t kGroup = 16;
// Bytes of rows that memory is asked for ahead of their use.
constexpr int64_t kAhead = int64_t{1} << 14;
// Elements of the larger map that are worth a task of their own.
constexpr int64_t kGrain = 32768;

template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) : data_(new T[size + kResizeBeyond]()) {}
  T* get() { return data_.get(); }

 private:
  std::unique_ptr<T[]> data_;
};

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements in memory as T and back.
template <typename T>
struct Elements {
  Element element;
  int64_t size = element_size(element);
  bool same = size == static_cast<int64_t>(sizeof(T));
  const DepthwiseRows<T>& rows = depthwise_rows<T>();

  void load(const void* base, int64_t at, int64_t n, T* to) const {
    rows.load(element, static_cast<const char*>(base) + at * size, to, n);
  }
  void store(const T* from, void* base, int64_t at, int64_t n, bool stream) const {
    char* to = static_cast<char*>(base) + at * size;
    if (same && stream) {
      rows.stream(to, from, n * size);
    } else {
      rows.store(element, from, to, n);
    }
  }
};

// Results on their way to memory: in place where they lie there as they are made, else gathered
// until there is enough for a conversion or a store past the caches.
template <typename T>
class Results {
 public:
  Results(const Elements<T>& elements, void* base, bool stream, int64_t most)
      : elements_(elements), base_(base), stream_(stream), direct_(elements.same && !stream),
        room_(std::max(kStaged, most)), staged_(direct_ ? 0 : room_) {}
  ~Results() {
    flush();
    if (stream_) {
      stream_fence();
    }
  }

  // Room for n results that lie from `at` on.
  T* take(int64_t at, int64_t n) {
    if (direct_) {
      return static_cast<T*>(base_) + at;
    }
    if (at != first_ + count_ || count_ + n > room_) {
      flush();
      first_ = at;
    }
    T* to = staged_.get() + count_;
    count_ += n;
    return to;
  }
  // How many rows of n fit at once.
  int64_t rows_at_once(int64_t n) const {
    return direct_ ? INT64_MAX : std::max<int64_t>(1, room_ / n);
  }

 private:
  void flush() {
    if (count_ > 0) {
      elements_.store(staged_.get(), base_, first_, count_, stream_);
      count_ = 0;
    }
  }

  const Elements<T>& elements_;
  void* base_;
  bool stream_, direct_;
  int64_t room_, first_ = 0, count_ = 0;
  Buffer<T> staged_;
};

// Outputs of a row in blocks that read from one vector each, or from two; none where the columns
// shrink to less than half.
template <typename T>
class Blocks {
 public:
  Blocks(const AxisTable<T>& table, int lanes) {
    if (lanes == 0) {
      return;
    }
    const int64_t blocks = divide_up(table.out, lanes);
    near_.resize(blocks * lanes);
    far_.resize(blocks * lanes);
    lane_.resize(blocks * lanes);
    for (int64_t o = 0; o < table.out; ++o) {
      if (o % lanes == 0) {
        base_.push_back(table.first[o]);
      }
      const int64_t lane = table.first[o] - base_.back();
      if (lane >= 2 * lanes) {
        return;
      }
      pairs_ = pairs_ || lane >= lanes;
      lane_[o] = static_cast<Integer>(lane);
      near_[o] = table.near[o];
      far_[o] = table.far[o];
    }
    blocks_ = blocks;
  }

  BlockTable<T> table() const {
    return {base_.data(), lane_.data(), near_.data(), far_.data(), blocks_, pairs_};
  }

 private:
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  int64_t blocks_ = 0;
  bool pairs_ = false;
  std::vector<int64_t> base_;
  std::vector<Integer> lane_;
  std::vector<T> near_, far_;
};

// A range of tasks: bands of rows, then strips of columns, of each plane or image.
struct Tasks {
  int64_t maps, strips, bands, rows, columns, strip, band;

  // `rows` x `columns` are the results, of a map of `elements` elements; a strip is whole columns.
  Tasks(int64_t maps_, int64_t rows_, int64_t columns_, int64_t strip_, int64_t elements)
      : maps(maps_), rows(rows_), columns(columns_), strip(std::min(strip_, columns_)) {
    strips = divide_up(columns, strip);
    const int64_t wanted = divide_up(4 * torch::stable::get_num_threads(), maps * strips);
    const int64_t worth = std::max<int64_t>(1, elements / strips / kGrain);
    band = divide_up(rows, std::min({rows, wanted, worth}));
    bands = divide_up(rows, band);
  }

  struct Part {
    int64_t map, row, row_end, column, column_end;
  };
  Part part(int64_t task) const {
    const int64_t map = task / (strips * bands), rest = task % (strips * bands);
    const int64_t row = rest % bands * band, column = rest / bands * strip;
    return {map, row, std::min(rows, row + band), column, std::min(columns, column + strip)};
  }

  // f(first, last) over the tasks, shared among threads where there is enough to do.
  template <typename F>
  void share(int64_t elements, const F& f) const {
    const int64_t tasks = maps * strips * bands;
    const int64_t each = std::max<int64_t>(1, elements / (strips * bands));
    torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, kGrain / each), f);
  }
};

template <typename T>
struct Forward {
  const ResizeParams& p;
  const Elements<T> elements{p.element};
  const AxisTable<T> down{p.in_h, p.out_h, p.align_corners};
  const AxisTable<T> across{p.in_w, p.out_w, p.align_corners};
  const ResizeRows<T>& rows = resize_rows<T>();
  const Blocks<T> blocks{across, p.channels_last ? 0 : rows.lanes};
  const int64_t width = p.channels_last ? p.channels : 1;  // elements of a pixel
  const bool stream = p.out_elements() * elements.size >= kStreamBytes;
  // Pixels of whole vectors are not worth a row of them resampled in between.
  const bool wide = p.channels_last && elements.same && width * sizeof(T) % 64 == 0;

  // The columns [x, x_end) of an input row, resampled; `copy` holds the input pixels they read.
  void expand(int64_t row, int64_t x, int64_t x_end, T* copy, T* to) const {
    if (!p.channels_last) {
      elements.load(p.from, row * p.in_w, p.in_w, copy);
      copy[p.in_w] = T(0);
      const BlockTable<T> table = blocks.table();
      if (table.blocks > 0) {
        rows.expand_blocks(copy, table, to);
      } else {
        rows.expand(copy, across.first.data(), across.near.data(), across.far.data(), p.out_w, to);
      }
      return;
    }
    const int64_t origin = across.first[x];
    const T* in = copy;
    if (elements.same && width * sizeof(T) % 64 == 0) {
      in = static_cast<const T*>(p.from) + (row * p.in_w + origin) * width;
    } else {
      elements.load(p.from, (row * p.in_w + origin) * width, (columns_end(x_end) - origin) * width,
                    copy);
    }
    rows.expand_pixels(in, origin, across.first.data() + x, across.near.data() + x,
                       across.far.data() + x, x_end - x, width, to);
  }

  // The input column after the last that is read by an output column before x.
  int64_t columns_end(int64_t x) const { return std::min(p.in_w, across.first[x - 1] + 2); }

  void run() const {
    if (wide) {
      pixels();
    } else {
      strips();
    }
  }

  // Pixels of whole vectors straight from the input.
  void pixels() const {
    const int64_t map_elements = p.out_elements() / p.items;
    const bool past = stream && reinterpret_cast<uintptr_t>(p.to) % 64 == 0;
    const int64_t together = std::max<int64_t>(1, kStaged / width);
    const Tasks tasks(p.items, p.out_h, p.out_w, p.out_w, map_elements);
    tasks.share(map_elements, [&](int64_t begin, int64_t end) {
      Results<T> results(elements, p.to, stream && !past, together * width);
      for (int64_t task = begin; task < end; ++task) {
        const typename Tasks::Part at = tasks.part(task);
        const T* in = static_cast<const T*>(p.from) + at.map * p.in_h * p.in_w * width;
        for (int64_t y = at.row; y < at.row_end; ++y) {
          const T* one = in + down.first[y] * p.in_w * width;
          const T* two = down.far[y] == T(0) ? one : one + p.in_w * width;
          for (int64_t x = 0; x < p.out_w; x += together) {
            const int64_t n = std::min(together, p.out_w - x);
            const int64_t to = ((at.map * p.out_h + y) * p.out_w + x) * width;
            rows.blend_pixels(one, two, across.first.data() + x, across.near.data() + x,
                              across.far.data() + x, down.near[y], down.far[y], n, width, past,
                              results.take(to, n * width));
          }
        }
      }
      if (past) {
        stream_fence();
      }
    });
  }

  // Rows in strips, each input row resampled along its columns once.
  void strips() const {
    const int64_t maps = p.channels_last ? p.items : p.planes();
    const int64_t strip = p.channels_last ? std::max<int64_t>(1, kStrip / width) : p.out_w;
    const int64_t map_elements = p.out_elements() / maps;
    const Tasks tasks(maps, p.out_h, p.out_w, strip, map_elements);
    tasks.share(map_elements, [&](int64_t begin, int64_t end) {
      const int64_t most = tasks.strip * width;
      int64_t read = p.channels_last ? 0 : p.in_w;
      for (int64_t x = 0; p.channels_last && x < p.out_w; x += tasks.strip) {
        read = std::max(read, columns_end(std::min(p.out_w, x + tasks.strip)) - across.first[x]);
      }
      Buffer<T> even(most), odd(most), copy(read * width);
      T* const buffer[2] = {even.get(), odd.get()};
      Results<T> results(elements, p.to, stream, most);
      for (int64_t task = begin; task < end; ++task) {
        const typename Tasks::Part at = tasks.part(task);
        int64_t held[2] = {-1, -1};
        const auto expanded = [&](int64_t y) {
          if (held[y % 2] != y) {
            expand(at.map * p.in_h + y, at.column, at.column_end, copy.get(), buffer[y % 2]);
            held[y % 2] = y;
          }
          return buffer[y % 2];
        };
        const int64_t n = (at.column_end - at.column) * width;
        const int64_t step = tasks.strips == 1 ? results.rows_at_once(n) : 1;
        for (int64_t y = at.row; y < at.row_end;) {
          const int64_t run = down.run_end(y, std::min(at.row_end, y + std::min(step, p.out_h)));
          const int64_t near = down.first[y];
          const T* one = expanded(near);
          const T* two = down.far[run - 1] == T(0) ? one : expanded(near + 1);
          const int64_t to = ((at.map * p.out_h + y) * p.out_w + at.column) * width;
          rows.blend(one, two, down.near.data() + y, down.far.data() + y, run - y, n,
                     results.take(to, (run - y) * n));
          y = run;
        }
      }
    });
  }
};

// The sums of one input row after the other over the output rows that read it, each of which is
// read once: what it adds to the row behind is carried there.
template <typename T>
class RowSums {
 public:
  // n elements of rows that are `step` elements apart.
  RowSums(const ResizeParams& params, const Elements<T>& elements, const AxisTable<T>& down,
          int64_t step, int64_t most)
      : p(params), elements_(elements), down_(down), step_(step),
        carry_{Buffer<T>(most), Buffer<T>(most)}, spare_(most) {}

  // For row y of the map whose elements begin at `at`.
  void sum(int64_t at, int64_t y, int64_t n, T* to) {
    if (y == 0) {
      carried_ = nullptr;
    } else if (at != at_ || y != next_) {
      carried_ = nullptr;
      gather(at, y - 1, n, spare_.get());
    }
    gather(at, y, n, to);
    at_ = at;
    next_ = y + 1;
  }

 private:
  void gather(int64_t at, int64_t y, int64_t n, T* to) {
    const int64_t first = down_.run_begin[y], count = down_.run_begin[y + 1] - first;
    const T *near = down_.near.data() + first, *far = down_.far.data() + first;
    T* carry = carry_[carried_ == carry_[0].get() ? 1 : 0].get();
    if (elements_.same) {
      const T* in = static_cast<const T*>(p.from) + at + first * step_;
      const int64_t bytes = count * n * elements_.size;
      if (step_ == n && bytes <= kAhead) {  // short rows one behind the other
        prefetch(in + count * n, bytes);
      }
      rows_.gather(in, step_, near, far, count, n, carried_, false, to, carry);
    } else {
      // A few rows at a time as T, padded to whole vectors.
      const int64_t pitch = divide_up(n, kResizeLanes) * kResizeLanes;
      const int64_t some = std::max<int64_t>(1, kStaged / pitch);
      wide_.resize(std::max<size_t>(wide_.size(), some * pitch));
      for (int64_t k = 0; k == 0 || k < count; k += some) {
        const int64_t rows = std::min(some, count - k);
        for (int64_t r = 0; r < rows; ++r) {
          elements_.load(p.from, at + (first + k + r) * step_, n, wide_.data() + r * pitch);
        }
        rows_.gather(wide_.data(), pitch, near + k, far + k, rows, pitch, carried_, k > 0, to,
                     carry);
      }
    }
    carried_ = carry;
  }

  const ResizeParams& p;
  const Elements<T>& elements_;
  const AxisTable<T>& down_;
  const ResizeRows<T>& rows_ = resize_rows<T>();
  int64_t step_, at_ = -1, next_ = -1;
  Buffer<T> carry_[2], spare_;
  const T* carried_ = nullptr;
  std::vector<T> wide_;
};

template <typename T>
struct Backward {
  const ResizeParams& p;
  const Elements<T> elements{p.element};
  const AxisTable<T> down = inverted(p.in_h, p.out_h);
  const AxisTable<T> across = inverted(p.in_w, p.out_w);
  const ResizeRows<T>& rows = resize_rows<T>();
  const bool stream = p.in_elements() * elements.size >= kStreamBytes;

  void run() const { p.channels_last ? channels_last() : planes(); }

  AxisTable<T> inverted(int64_t in, int64_t out) const {
    AxisTable<T> table(in, out, p.align_corners);
    table.invert();
    return table;
  }

  // Planes: kGroup input rows at a time, of one plane or of several. Their sums are turned, so that
  // the columns of all of them are summed by vectors.
  void planes() const {
    const int64_t total = p.planes() * p.in_h, groups = divide_up(total, kGroup);
    const int64_t each = std::max<int64_t>(1, kGroup * p.out_w * p.out_h / p.in_h);
    const int64_t pitch = divide_up(p.out_w, kGroup) * kGroup;  // whole tiles to turn
    const int64_t made_pitch = divide_up(p.in_w, kGroup) * kGroup;
    torch::stable::parallel_for(
        0, groups, std::max<int64_t>(1, kGrain / each), [&](int64_t begin, int64_t end) {
          Buffer<T> sums(kGroup * pitch), turned(kGroup * pitch);
          Buffer<T> made(kGroup * made_pitch), back(kGroup * made_pitch);
          const auto transpose = roi_rows(T{}).transpose;
          RowSums<T> row_sums(p, elements, down, p.out_w, p.out_w);
          Results<T> results(elements, p.to, stream, kGroup * p.in_w);
          for (int64_t group = begin; group < end; ++group) {
            const int64_t row = group * kGroup, count = std::min(kGroup, total - row);
            for (int64_t r = 0; r < count; ++r) {
              const int64_t plane = (row + r) / p.in_h;
              row_sums.sum(plane * p.out_h * p.out_w, (row + r) % p.in_h, p.out_w,
                           sums.get() + r * pitch);
            }
            transpose(sums.get(), pitch, kGroup, pitch, turned.get(), kGroup);
            rows.mix_pixels(turned.get(), 0, across.begin.data(), across.start.data(),
                            across.weights.data(), p.in_w, kGroup, made.get());
            transpose(made.get(), kGroup, made_pitch, kGroup, back.get(), made_pitch);
            T* to = results.take(row * p.in_w, count * p.in_w);
            for (int64_t r = 0; r < count; ++r) {
              std::memcpy(to + r * p.in_w, back.get() + r * made_pitch, p.in_w * sizeof(T));
            }
          }
        });
  }

  void channels_last() const {
    const int64_t width = p.channels;
    const int64_t strip =
        std::max<int64_t>(1, kStrip * p.in_w / std::max<int64_t>(1, width * p.out_w));
    const int64_t map_elements = p.out_elements() / p.items;
    const Tasks tasks(p.items, p.in_h, p.in_w, strip, map_elements);
    tasks.share(map_elements, [&](int64_t begin, int64_t end) {
      int64_t most = 0;
      for (int64_t x = 0; x < p.in_w; x += tasks.strip) {
        most = std::max(most, columns_end(std::min(p.in_w, x + tasks.strip)) - across.begin[x]);
      }
      Buffer<T> sums(most * width);
      RowSums<T> row_sums(p, elements, down, p.out_w * width, most * width);
      const bool whole = elements.same && !stream && width * sizeof(T) % 64 == 0;
      Buffer<T> made(whole ? 0 : tasks.strip * width);
      for (int64_t task = begin; task < end; ++task) {
        const typename Tasks::Part at = tasks.part(task);
        const int64_t origin = across.begin[at.column];
        const int64_t n = (columns_end(at.column_end) - origin) * width;
        for (int64_t y = at.row; y < at.row_end; ++y) {
          row_sums.sum((at.map * p.out_h * p.out_w + origin) * width, y, n, sums.get());
          const int64_t to = ((at.map * p.in_h + y) * p.in_w + at.column) * width;
          T* result = whole ? static_cast<T*>(p.to) + to : made.get();
          rows.mix_pixels(sums.get(), origin, across.begin.data() + at.column,
                          across.start.data() + at.column, across.weights.data(),
                          at.column_end - at.column, width, result);
          if (!whole) {
            elements.store(result, p.to, to, (at.column_end - at.column) * width, stream);
          }
        }
      }
      if (stream) {
        stream_fence();
      }
    });
  }

  // The output column after the last that reads an input column before x.
  int64_t columns_end(int64_t x) const { return across.begin[x - 1] + across.count(x - 1); }
};

}  // namespace

void resize_fwd_cpu(const ResizeParams& p) {
  if (p.element == Element::kFloat64) {
    Forward<double>{p}.run();
  } else {
    Forward<float>{p}.run();
  }
}

void resize_bwd_cpu(const ResizeParams& p) {
  if (p.element == Element::kFloat64) {
    Backward<double>{p}.run();
  } else {
    Backward<float>{p}.run();
  }
}

}  // namespace segkern
