// Conjugate gradients on the CPU. Sums are over one variable in a band of rows, added in the order
// of bands and variables, so results do not depend on the threads: these share systems where an
// item has many, and bands and variables where it has one.
#include <algorithm>
#include <cmath>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../common/aligned.h"
#include "../common/cpu_targets.h"
#include "gaussian_crf.h"

namespace segkern {
namespace {

// Rows of a level, whose cells follow one another in every vector.
struct Band {
  int level;
  int32_t begin, end;    // rows
  int64_t first, count;  // nodes
};

// Cells of a band: a few vectors of them stay in the first-level cache.
constexpr int64_t kBandCells = 4096;

template <typename T>
struct CrfRows {
  double (*apply)(const CrfGraph&, const int32_t* const*, const T*, const Band&, int64_t, double,
                  double, const T*, T*);
  double (*step)(double, const T*, const T*, T*, T*, int64_t);
  void (*turn)(double, const T*, T*, int64_t);
  double (*dot)(const T*, const T*, int64_t);
};

namespace baseline {
#include "crf_rows.inl"
}
#if defined(SEGKERN_X86_TARGETS)
SEGKERN_TARGET_AVX2
namespace avx2 {
#include "crf_rows.inl"
}
SEGKERN_TARGET_END
SEGKERN_TARGET_AVX512
namespace avx512 {
#include "crf_rows.inl"
}
SEGKERN_TARGET_END
#endif

template <typename T>
CrfRows<T> best_rows() {
#if defined(SEGKERN_X86_TARGETS)
  switch (cpu_level()) {
    case CpuLevel::kAvx512:
      return avx512::rows<T>();
    case CpuLevel::kAvx2:
      return avx2::rows<T>();
    case CpuLevel::kBaseline:
      break;
  }
#endif
  return baseline::rows<T>();
}

// What all items share: the bands of all levels, columns of covering cells, a row of zeros.
template <typename T>
struct Geometry {
  std::vector<Band> bands;
  std::vector<std::vector<int32_t>> columns;
  std::vector<const int32_t*> parents;
  std::vector<T> zeros;

  explicit Geometry(const CrfGraph& g) {
    int32_t widest = 0;
    for (int i = 0; i < g.levels; ++i) {
      const CrfLevel& level = g.level[i];
      widest = std::max(widest, level.width);
      const auto count =
          static_cast<int32_t>(std::clamp<int64_t>(level.cells() / kBandCells, 1, INT32_MAX));
      const int32_t rows = std::max((level.height - 1) / count + 1, 1);
      for (int32_t y = 0; y < level.height && level.width > 0; y += rows) {
        const int32_t end = std::min(level.height, y + rows);
        const int64_t width = level.width;
        bands.push_back({i, y, end, level.first + y * width, (end - y) * width});
      }
      std::vector<int32_t> column;
      for (int32_t x = 0; i + 1 < g.levels && x < level.width; ++x) {
        column.push_back(covering(x, level.width, g.level[i + 1].width));
      }
      columns.push_back(std::move(column));
    }
    for (const std::vector<int32_t>& column : columns) {
      parents.push_back(column.data());
    }
    zeros.assign(widest, T(0));
  }
};

template <typename T>
struct Solver {
  const CrfGraph& g;
  const Geometry<T>& geometry;
  double diagonal, scale;
  const CrfStop& stop;
  bool share;  // bands and variables between threads
  CrfRows<T> kernels = best_rows<T>();

  // Adds body(band, variable, first unknown) over all bands and variables, in their order.
  template <typename Body>
  double sum(std::vector<double>& partial, const Body& body) const {
    const auto run = [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Band& band = geometry.bands[i / g.width];
        const int64_t k = i % g.width;
        partial[i] = body(band, k, k * g.nodes + band.first);
      }
    };
    const auto parts = static_cast<int64_t>(partial.size());
    if (share) {
      torch::stable::parallel_for(0, parts, 1, run);
    } else {
      run(0, parts);
    }
    double total = 0;
    for (const double part : partial) {
      total += part;
    }
    return total;
  }

  // `scratch` has room for three vectors.
  SolveState operator()(const T* rhs, T* x, T* scratch, int32_t* iterations) const {
    const int64_t size = g.unknowns();
    T *r = scratch, *p = r + size, *q = p + size;
    std::vector<double> partial(geometry.bands.size() * g.width);
    *iterations = 0;
    double rr = sum(partial, [&](const Band& band, int64_t, int64_t at) {
      std::copy_n(rhs + at, band.count, r + at);
      std::copy_n(rhs + at, band.count, p + at);
      std::fill_n(x + at, band.count, T(0));
      return kernels.dot(r + at, r + at, band.count);
    });
    const double target = stop.tolerance * stop.tolerance * rr;
    while (true) {
      if (!std::isfinite(rr)) {
        return SolveState::kNotFinite;
      }
      if (rr <= target) {
        return SolveState::kConverged;
      }
      if (*iterations >= stop.iterations) {
        return SolveState::kUnconverged;
      }
      const double pq = sum(partial, [&](const Band& band, int64_t k, int64_t) {
        return kernels.apply(g, geometry.parents.data(), geometry.zeros.data(), band, k, diagonal,
                             scale, p, q);
      });
      if (!(pq > 0)) {
        return std::isfinite(pq) ? SolveState::kIndefinite : SolveState::kNotFinite;
      }
      const double alpha = rr / pq;
      const double next = sum(partial, [&](const Band& band, int64_t, int64_t at) {
        return kernels.step(alpha, p + at, q + at, x + at, r + at, band.count);
      });
      const double beta = next / rr;
      rr = next;
      ++*iterations;
      sum(partial, [&](const Band& band, int64_t, int64_t at) {
        kernels.turn(beta, r + at, p + at, band.count);
        return 0.0;
      });
    }
  }
};

}  // namespace

template <typename T>
void solve_crf_cpu(const CrfItems<T>& items, const CrfPlan& plan, const CrfStop& stop,
                   const T* rhs, T* x, int32_t* iterations, int32_t* states) {
  const Geometry<T> geometry(items.graph);
  const int64_t size = items.graph.unknowns(), all = items.count * plan.systems;
  const bool share = plan.systems == 1;
  const auto solve = [&](int64_t begin, int64_t end) {
    AlignedFloats scratch(3 * size * static_cast<int64_t>(sizeof(T) / sizeof(float)));
    for (int64_t i = begin; i < end; ++i) {
      const CrfGraph g = items.item(i / plan.systems);
      const double scale = i % plan.systems == 0 ? plan.first_scale : plan.scale;
      const Solver<T> solver{g, geometry, plan.diagonal, scale, stop, share};
      states[i] = static_cast<int32_t>(solver(
          rhs + i * size, x + i * size, reinterpret_cast<T*>(scratch.get()), iterations + i));
    }
  };
  if (share) {
    solve(0, all);
  } else {
    torch::stable::parallel_for(0, all, 1, solve);
  }
}

template void solve_crf_cpu(const CrfItems<float>&, const CrfPlan&, const CrfStop&, const float*,
                            float*, int32_t*, int32_t*);
template void solve_crf_cpu(const CrfItems<double>&, const CrfPlan&, const CrfStop&, const double*,
                            double*, int32_t*, int32_t*);

}  // namespace segkern
