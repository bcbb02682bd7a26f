// Conjugate gradients on the CPU. Sums are by rows, added in the order of the rows, so results do
// not depend on the threads: these share systems where an item has many, and rows where it has one.
#include <algorithm>
#include <cmath>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "../common/cpu_targets.h"
#include "gaussian_crf.h"

namespace segkern {
namespace {

template <typename T>
struct CrfRows {
  double (*apply)(const CrfGraph&, const int32_t* const*, const T*, int, int32_t, double, double,
                  const T*, T*);
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

struct Row {
  int level;
  int32_t row;
  int64_t first, count;  // nodes
};

// What all items share: the rows of all levels, columns of covering cells, a row of zeros.
template <typename T>
struct Geometry {
  std::vector<Row> rows;
  std::vector<std::vector<int32_t>> columns;
  std::vector<const int32_t*> parents;
  std::vector<T> zeros;

  explicit Geometry(const CrfGraph& g) {
    int32_t widest = 0;
    for (int i = 0; i < g.levels; ++i) {
      const CrfLevel& level = g.level[i];
      widest = std::max(widest, level.width);
      for (int32_t y = 0; y < level.height && level.width > 0; ++y) {
        rows.push_back({i, y, level.first + static_cast<int64_t>(y) * level.width, level.width});
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
  bool share_rows;  // between threads
  CrfRows<T> kernels = best_rows<T>();

  // Adds body(row) over all rows, in their order.
  template <typename Body>
  double sum(std::vector<double>& partial, const Body& body) const {
    const auto count = static_cast<int64_t>(geometry.rows.size());
    if (share_rows) {
      const int64_t work = std::max<int64_t>(1, g.unknowns() * g.width / std::max<int64_t>(1, count));
      torch::stable::parallel_for(0, count, std::max<int64_t>(1, 16384 / work),
                                  [&](int64_t begin, int64_t end) {
                                    for (int64_t i = begin; i < end; ++i) {
                                      partial[i] = body(geometry.rows[i]);
                                    }
                                  });
    } else {
      for (int64_t i = 0; i < count; ++i) {
        partial[i] = body(geometry.rows[i]);
      }
    }
    double total = 0;
    for (const double part : partial) {
      total += part;
    }
    return total;
  }

  // Adds body(first unknown, count) over the variables of a row.
  template <typename Body>
  double each_variable(const Row& row, const Body& body) const {
    double total = 0;
    for (int64_t k = 0; k < g.width; ++k) {
      total += body(k * g.nodes + row.first, row.count);
    }
    return total;
  }

  SolveState operator()(const T* rhs, T* x, int32_t* iterations) const {
    const int64_t size = g.unknowns();
    std::vector<T> r(rhs, rhs + size), p(rhs, rhs + size), q(size);
    std::vector<double> partial(geometry.rows.size());
    std::fill_n(x, size, T(0));
    *iterations = 0;
    double rr = sum(partial, [&](const Row& row) {
      return each_variable(row, [&](int64_t at, int64_t n) {
        return kernels.dot(r.data() + at, r.data() + at, n);
      });
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
      const double pq = sum(partial, [&](const Row& row) {
        return kernels.apply(g, geometry.parents.data(), geometry.zeros.data(), row.level, row.row,
                             diagonal, scale, p.data(), q.data());
      });
      if (!(pq > 0)) {
        return std::isfinite(pq) ? SolveState::kIndefinite : SolveState::kNotFinite;
      }
      const double alpha = rr / pq;
      const double next = sum(partial, [&](const Row& row) {
        return each_variable(row, [&](int64_t at, int64_t n) {
          return kernels.step(alpha, p.data() + at, q.data() + at, x + at, r.data() + at, n);
        });
      });
      const double beta = next / rr;
      rr = next;
      ++*iterations;
      sum(partial, [&](const Row& row) {
        return each_variable(row, [&](int64_t at, int64_t n) {
          kernels.turn(beta, r.data() + at, p.data() + at, n);
          return 0.0;
        });
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
  const bool share_rows = plan.systems == 1;
  const auto solve = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const CrfGraph g = items.item(i / plan.systems);
      const double scale = i % plan.systems == 0 ? plan.first_scale : plan.scale;
      const Solver<T> solver{g, geometry, plan.diagonal, scale, stop, share_rows};
      states[i] = static_cast<int32_t>(solver(rhs + i * size, x + i * size, iterations + i));
    }
  };
  if (share_rows) {
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
