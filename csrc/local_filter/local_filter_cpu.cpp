// A task is a band of rows of one plane: it walks down with the sums of each column's window, and
// slides along each row. Bands do not depend on the number of threads, so neither do the results.
#include <algorithm>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../common/cpu_targets.h"
#include "../common/dispatch.h"
#include "local_filter.h"

namespace segkern {
namespace {

struct FilterRows {
  void (*add)(const double* values, double factor, const double* colours, double y, int64_t width,
              double* columns);
  void (*slide)(const double* columns, const double* colours, double y, int64_t width,
                int64_t first, int64_t kernel, double* colour_out, double* position_out);
};

namespace baseline {
#include "filter_rows.inl"
}

#if defined(SEGKERN_X86_TARGETS)
SEGKERN_TARGET_AVX2
namespace avx2 {
#include "filter_rows.inl"
}
SEGKERN_TARGET_END

SEGKERN_TARGET_AVX512
namespace avx512 {
#include "filter_rows.inl"
}
SEGKERN_TARGET_END
#endif

const FilterRows& filter_rows(int64_t colours) {
#if defined(SEGKERN_X86_TARGETS)
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::kRows[colours - 1];
    case CpuLevel::kAvx2:
      return avx2::kRows[colours - 1];
    default:
      break;
  }
#endif
  return baseline::kRows[colours - 1];
}

constexpr int64_t kBandRows = 128;

int64_t band_count(const LocalFilterParams& p) { return (p.height + kBandRows - 1) / kBandRows; }

// The type that sums of T are kept in between kernels.
template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

template <typename T>
class Band {
 public:
  using wide_t = typename Wide<T>::type;

  Band(const LocalFilterParams& p, int64_t plane, int64_t band)
      : p_(p),
        rows_(filter_rows(p.colours)),
        plane_(plane),
        begin_(band * kBandRows),
        end_(std::min(begin_ + kBandRows, p.height)),
        columns_(p.width * (5 + p.colours), 0.0),
        values_(p.width),
        colours_(p.colours * p.width),
        colour_sum_(p.width),
        position_sum_(p.width) {}

  // Writes the rows of the band; adds to sums where there are any.
  void run(double* sums) {
    const int64_t entered = std::min(begin_ + p_.first_y + p_.kernel_h - 1, p_.height);
    for (int64_t y = std::max<int64_t>(begin_ + p_.first_y, 0); y < entered; ++y) {
      add(y, 1);
    }
    for (int64_t y = begin_; y < end_; ++y) {
      add(y + p_.first_y + p_.kernel_h - 1, 1);
      read_colours(y);
      rows_.slide(columns_.data(), colours_.data(), static_cast<double>(y - begin_), p_.width,
                  p_.first_x, p_.kernel_w, colour_sum_.data(), position_sum_.data());
      finish(y, sums);
      add(y + p_.first_y, -1);
    }
  }

 private:
  const T* row(const void* planes, int64_t y) const {
    return static_cast<const T*>(planes) + (plane_ * p_.height + y) * p_.width;
  }

  void read_colours(int64_t y) {
    const wide_t* image = static_cast<const wide_t*>(p_.image) +
                          plane_ / p_.labels * p_.colours * p_.plane() + y * p_.width;
    for (int64_t c = 0; c < p_.colours; ++c) {
      for (int64_t x = 0; x < p_.width; ++x) {
        colours_[c * p_.width + x] = image[c * p_.plane() + x];
      }
    }
  }

  void add(int64_t y, double factor) {
    if (y < 0 || y >= p_.height) {
      return;
    }
    const T* values = row(p_.values, y);
    for (int64_t x = 0; x < p_.width; ++x) {
      values_[x] = static_cast<double>(values[x]);
    }
    if (p_.factor) {
      const T* factors = row(p_.factor, y);
      for (int64_t x = 0; x < p_.width; ++x) {
        values_[x] *= static_cast<double>(factors[x]);
      }
    }
    read_colours(y);
    rows_.add(values_.data(), factor, colours_.data(), static_cast<double>(y - begin_), p_.width,
              columns_.data());
  }

  void finish(int64_t y, double* sums) {
    if (sums) {
      const T* paired = row(p_.paired, y);
      for (int64_t x = 0; x < p_.width; ++x) {
        sums[0] += static_cast<double>(paired[x]) * colour_sum_[x];
        sums[1] += static_cast<double>(paired[x]) * position_sum_[x];
      }
    }
    for (int64_t x = 0; x < p_.width; ++x) {
      values_[x] = p_.weights[0] * colour_sum_[x] + p_.weights[1] * position_sum_[x];
    }
    if (p_.outer) {
      const T* outer = row(p_.outer, y);
      for (int64_t x = 0; x < p_.width; ++x) {
        values_[x] *= static_cast<double>(outer[x]);
      }
    }
    const int64_t at = (plane_ * p_.height + y) * p_.width;
    if (p_.added) {
      const wide_t* added = static_cast<const wide_t*>(p_.added) + at;
      for (int64_t x = 0; x < p_.width; ++x) {
        values_[x] += added[x];
      }
    }
    if (p_.wide) {
      write(static_cast<wide_t*>(p_.out) + at);
    } else {
      write(static_cast<T*>(p_.out) + at);
    }
  }

  template <typename U>
  void write(U* to) const {
    for (int64_t x = 0; x < p_.width; ++x) {
      to[x] = static_cast<U>(static_cast<wide_t>(values_[x]));
    }
  }

  const LocalFilterParams& p_;
  const FilterRows& rows_;
  int64_t plane_, begin_, end_;
  std::vector<double> columns_, values_, colours_, colour_sum_, position_sum_;
};

}  // namespace

int64_t local_filter_parts_cpu(const LocalFilterParams& p) { return p.planes * band_count(p); }

void local_filter_cpu(const LocalFilterParams& p) {
  const int64_t bands = band_count(p);
  SEGKERN_DISPATCH_FLOATING(p.element, [&] {
    torch::stable::parallel_for(0, p.planes * bands, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        double* sums = p.partial ? p.partial + 2 * task : nullptr;
        if (sums) {
          sums[0] = sums[1] = 0;
        }
        Band<scalar_t>(p, task / bands, task % bands).run(sums);
      }
    });
  });
}

}  // namespace segkern
