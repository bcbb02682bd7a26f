// Kernels of conjugate gradients over a CRF's graph; included once per instruction set by
// solve_cpu.cpp, see csrc/common/cpu_targets.h. Sums are in double, in eight lanes.

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

// out = (diagonal + scale * A) v for variable k in a band of one level; returns v . out there.
// Planes of edges are walked one after the other, so that each is read in one go. `zeros` has the
// width of a row, `parents` the column of the covering cell for each column of each level.
template <typename T>
double apply_band(const CrfGraph& g, const int32_t* const* parents, const T* zeros,
                  const Band& band, int64_t k, double diagonal, double scale, const T* v, T* out) {
  const CrfLevel& grid = g.level[band.level];
  const int64_t n = grid.width;
  const auto edges = [](const void* from) { return static_cast<const T*>(from); };
  T* __restrict__ to = out + k * g.nodes + band.first;
  for (int64_t i = 0; i < band.count; ++i) {
    to[i] = 0;
  }
  for (int64_t m = 0; m < g.width; ++m) {
    const int64_t forth = k * g.width + m, back = m * g.width + k;
    for (int64_t y = band.begin; y < band.end; ++y) {
      const T* other = v + m * g.nodes + grid.first + y * n;
      T* row = to + (y - band.begin) * n;
      const bool top = y == 0, bottom = y + 1 == grid.height;
      add_row(other, top ? zeros : other - n, bottom ? zeros : other + n,
              edges(grid.right) + forth * grid.rights() + y * (n - 1),
              edges(grid.right) + back * grid.rights() + y * (n - 1),
              top ? zeros : edges(grid.down) + back * grid.downs() + (y - 1) * n,
              bottom ? zeros : edges(grid.down) + forth * grid.downs() + y * n, row, n);
      if (band.level + 1 < g.levels) {
        const CrfLevel& coarse = g.level[band.level + 1];
        const int64_t line = covering(static_cast<int32_t>(y), grid.height, coarse.height);
        const T* edge = edges(grid.across) + forth * grid.cells() + y * n;
        const T* parent = v + m * g.nodes + coarse.first + line * coarse.width;
        for (int64_t i = 0; i < n; ++i) {
          row[i] += edge[i] * parent[parents[band.level][i]];
        }
      }
      if (band.level > 0) {
        const CrfLevel& fine = g.level[band.level - 1];
        const int32_t at = static_cast<int32_t>(y);
        const int32_t end = first_covered(at + 1, fine.height, grid.height);
        for (int32_t i = first_covered(at, fine.height, grid.height); i < end; ++i) {
          const int64_t line = static_cast<int64_t>(i) * fine.width;
          const T* edge = edges(fine.across) + back * fine.cells() + line;
          const T* child = v + m * g.nodes + fine.first + line;
          for (int32_t x = 0; x < fine.width; ++x) {
            row[parents[band.level - 1][x]] += edge[x] * child[x];
          }
        }
      }
    }
  }
  const T* __restrict__ self = v + k * g.nodes + band.first;
  const T d = static_cast<T>(diagonal), s = static_cast<T>(scale);
  for (int64_t i = 0; i < band.count; ++i) {
    to[i] = d * self[i] + s * to[i];
  }
  return dot(self, to, band.count);
}

// x += alpha p and r -= alpha q over n elements; returns r . r.
template <typename T>
double step(double alpha, const T* __restrict__ p, const T* __restrict__ q, T* __restrict__ x,
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
void turn(double beta, const T* __restrict__ r, T* __restrict__ p, int64_t n) {
  const T b = static_cast<T>(beta);
  for (int64_t i = 0; i < n; ++i) {
    p[i] = r[i] + b * p[i];
  }
}

template <typename T>
CrfRows<T> rows() {
  return {&apply_band<T>, &step<T>, &turn<T>, &dot<T>};
}
