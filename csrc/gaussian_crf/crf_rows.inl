// Row kernels of conjugate gradients over a CRF's graph; included once per instruction set by
// solve_cpu.cpp, see csrc/common/cpu_targets.h. Sums are in double, eight partial sums a row.

constexpr int64_t kLanes = 8;

// first . second of n elements.
template <typename T>
double dot(const T* __restrict__ first, const T* __restrict__ second, int64_t n) {
  double lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      lane[l] += static_cast<double>(first[i + l]) * static_cast<double>(second[i + l]);
    }
  }
  for (int64_t l = 0; i < n; ++i, ++l) {
    lane[l] += static_cast<double>(first[i]) * static_cast<double>(second[i]);
  }
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

// out[i] += the products over the edges to the four neighbours of a row of n cells. `left` are the
// edges to the left neighbours, shifted by one; rows that do not exist are zeros.
template <typename T>
void add_row(const T* __restrict__ here, const T* __restrict__ above, const T* __restrict__ below,
             const T* __restrict__ right, const T* __restrict__ left, const T* __restrict__ up,
             const T* __restrict__ down, T* __restrict__ out, int64_t n) {
  if (n > 1) {
    out[0] += right[0] * here[1];
  }
  for (int64_t i = 1; i < n - 1; ++i) {
    out[i] += right[i] * here[i + 1] + left[i - 1] * here[i - 1];
  }
  if (n > 1) {
    out[n - 1] += left[n - 2] * here[n - 2];
  }
  for (int64_t i = 0; i < n; ++i) {
    out[i] += up[i] * above[i] + down[i] * below[i];
  }
}

// out = (diagonal + scale * A) v in one row of one level; returns v . out there. `zeros` has the
// width of a row, `parents` the column of the covering cell for each column of each level.
template <typename T>
double apply_row(const CrfGraph& g, const int32_t* const* parents, const T* zeros, int level,
                 int32_t row, double diagonal, double scale, const T* v, T* out) {
  const CrfLevel& grid = g.level[level];
  const int64_t n = grid.width, width = g.width;
  const int64_t first = grid.first + row * n;
  const auto edges = [](const void* from) { return static_cast<const T*>(from); };
  double total = 0;
  for (int64_t k = 0; k < width; ++k) {
    const T* self = v + k * g.nodes + first;
    T* __restrict__ to = out + k * g.nodes + first;
    for (int64_t i = 0; i < n; ++i) {
      to[i] = 0;
    }
    for (int64_t m = 0; m < width; ++m) {
      const int64_t forth = k * width + m, back = m * width + k;
      const T* other = v + m * g.nodes + first;
      const bool top = row == 0, bottom = row + 1 == grid.height;
      add_row(other, top ? zeros : other - n, bottom ? zeros : other + n,
              edges(grid.right) + forth * grid.rights() + row * (n - 1),
              edges(grid.right) + back * grid.rights() + row * (n - 1),
              top ? zeros : edges(grid.down) + back * grid.downs() + (row - 1) * n,
              bottom ? zeros : edges(grid.down) + forth * grid.downs() + row * n, to, n);
      if (level + 1 < g.levels) {
        const CrfLevel& coarse = g.level[level + 1];
        const T* edge = edges(grid.across) + forth * grid.cells() + row * n;
        const T* parent = v + m * g.nodes + coarse.first +
                          static_cast<int64_t>(covering(row, grid.height, coarse.height)) *
                              coarse.width;
        for (int64_t i = 0; i < n; ++i) {
          to[i] += edge[i] * parent[parents[level][i]];
        }
      }
      if (level > 0) {
        const CrfLevel& fine = g.level[level - 1];
        const int32_t end = first_covered(row + 1, fine.height, grid.height);
        for (int32_t y = first_covered(row, fine.height, grid.height); y < end; ++y) {
          const int64_t line = static_cast<int64_t>(y) * fine.width;
          const T* edge = edges(fine.across) + back * fine.cells() + line;
          const T* child = v + m * g.nodes + fine.first + line;
          for (int32_t x = 0; x < fine.width; ++x) {
            to[parents[level - 1][x]] += edge[x] * child[x];
          }
        }
      }
    }
    const T d = static_cast<T>(diagonal), s = static_cast<T>(scale);
    for (int64_t i = 0; i < n; ++i) {
      to[i] = d * self[i] + s * to[i];
    }
    total += dot(self, to, n);
  }
  return total;
}

// x += alpha p and r -= alpha q over n elements; returns r . r.
template <typename T>
double step_row(double alpha, const T* __restrict__ p, const T* __restrict__ q, T* __restrict__ x,
                T* __restrict__ r, int64_t n) {
  const T a = static_cast<T>(alpha);
  for (int64_t i = 0; i < n; ++i) {
    x[i] += a * p[i];
    r[i] -= a * q[i];
  }
  return dot(r, r, n);
}

// p = r + beta p over n elements.
template <typename T>
void turn_row(double beta, const T* __restrict__ r, T* __restrict__ p, int64_t n) {
  const T b = static_cast<T>(beta);
  for (int64_t i = 0; i < n; ++i) {
    p[i] = r[i] + b * p[i];
  }
}

template <typename T>
CrfRows<T> rows() {
  return {&apply_row<T>, &step_row<T>, &turn_row<T>, &dot<T>};
}
