// Gradients of the pairwise values on the CPU: an outer product on the sparsity pattern.
#include <algorithm>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "gaussian_crf.h"

namespace segkern {
namespace {

// A row of edges: from node p + i to node q + column[i], or to q + i where there are no columns.
struct EdgeRow {
  int64_t p, q, count;
  const int32_t* column;

  template <typename Body>
  void each(const Body& body) const {
    if (column) {
      for (int64_t i = 0; i < count; ++i) {
        body(i, p + i, q + column[i]);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        body(i, p + i, q + i);
      }
    }
  }
};

// The rows of edges of a set, and the columns of covering cells that they need.
struct EdgeRows {
  std::vector<EdgeRow> rows;
  std::vector<int32_t> columns;

  EdgeRows(const CrfGraph& g, int level, EdgeSet set) {
    const CrfLevel& grid = g.level[level];
    const int64_t n = grid.width;
    if (set == EdgeSet::kAcross) {
      for (int32_t x = 0; x < grid.width; ++x) {
        columns.push_back(covering(x, grid.width, g.level[level + 1].width));
      }
    }
    const int32_t height = set == EdgeSet::kDown ? grid.height - 1 : grid.height;
    for (int32_t y = 0; y < height; ++y) {
      const int64_t p = grid.first + y * n;
      switch (set) {
        case EdgeSet::kRight:
          rows.push_back({p, p + 1, n - 1, nullptr});
          break;
        case EdgeSet::kDown:
          rows.push_back({p, p + n, n, nullptr});
          break;
        case EdgeSet::kAcross: {
          const CrfLevel& coarse = g.level[level + 1];
          const int64_t row = covering(y, grid.height, coarse.height);
          rows.push_back({p, coarse.first + row * coarse.width, n, columns.data()});
          break;
        }
      }
    }
  }
};

template <typename T>
void label_pair_row(const EdgeRow& row, T factor, const T* xl, const T* yl, const T* xm,
                    const T* ym, T* out) {
  row.each([&](int64_t i, int64_t p, int64_t q) {
    out[i] = -factor * (yl[p] * xm[q] + ym[q] * xl[p]);
  });
}

template <typename T>
void shared_row(const EdgeRow& row, Pairwise pairwise, int64_t labels, int64_t nodes, T factor,
                const T* x, const T* y, const T* total, T* out) {
  std::fill_n(out, row.count, T(0));
  for (int64_t k = 0; k < labels; ++k) {
    const T* xk = x + k * nodes;
    const T* yk = y + k * nodes;
    if (pairwise == Pairwise::kPotts) {
      row.each([&](int64_t i, int64_t p, int64_t q) {
        out[i] -= factor * (yk[p] * (total[q] - xk[q]) + yk[q] * (total[p] - xk[p]));
      });
    } else {
      row.each([&](int64_t i, int64_t p, int64_t q) {
        out[i] -= factor * (yk[p] * xk[q] + yk[q] * xk[p]);
      });
    }
  }
}

}  // namespace

template <typename T>
void edge_gradient_cpu(const CrfGraph& graph, int level, EdgeSet set, Pairwise pairwise,
                       int64_t items, int64_t labels, double factor, const T* x, const T* y,
                       T* gradient) {
  const EdgeRows edges(graph, level, set);
  const int64_t nodes = graph.nodes, size = labels * nodes;
  const auto rows = static_cast<int64_t>(edges.rows.size());
  const int64_t count = rows ? edges.rows[0].count : 0;
  if (count == 0) {
    return;
  }
  const T f = static_cast<T>(factor);
  if (pairwise == Pairwise::kGeneral) {
    const int64_t planes = labels * labels;
    torch::stable::parallel_for(0, items * planes, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t item = i / planes, l = i % planes / labels, m = i % labels;
        const T* xs = x + item * size;
        const T* ys = y + item * size;
        for (int64_t row = 0; row < rows; ++row) {
          label_pair_row(edges.rows[row], f, xs + l * nodes, ys + l * nodes, xs + m * nodes,
                         ys + m * nodes, gradient + (i * rows + row) * count);
        }
      }
    });
    return;
  }
  std::vector<T> totals(items * nodes, T(0));
  for (int64_t item = 0; pairwise == Pairwise::kPotts && item < items; ++item) {
    for (int64_t k = 0; k < labels; ++k) {
      const T* xk = x + item * size + k * nodes;
      for (int64_t i = 0; i < nodes; ++i) {
        totals[item * nodes + i] += xk[i];
      }
    }
  }
  torch::stable::parallel_for(0, items * rows, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t item = i / rows;
      shared_row(edges.rows[i % rows], pairwise, labels, nodes, f, x + item * size,
                 y + item * size, totals.data() + item * nodes, gradient + i * count);
    }
  });
}

template void edge_gradient_cpu(const CrfGraph&, int, EdgeSet, Pairwise, int64_t, int64_t, double,
                                const float*, const float*, float*);
template void edge_gradient_cpu(const CrfGraph&, int, EdgeSet, Pairwise, int64_t, int64_t, double,
                                const double*, const double*, double*);

}  // namespace segkern
