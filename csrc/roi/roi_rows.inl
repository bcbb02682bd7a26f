// Row kernels of the box operators; see common/cpu_targets.h for how this file is included.

template <typename T, int K>
void combine_some(const T* const* rows, const T* weights, bool add, int64_t n,
                  T* __restrict out) {
  const T* __restrict a = rows[0];
  const T* __restrict b = rows[K > 1 ? 1 : 0];
  const T* __restrict c = rows[K > 2 ? 2 : 0];
  const T* __restrict d = rows[K > 3 ? 3 : 0];
  const T wa = weights[0], wb = weights[K > 1 ? 1 : 0];
  const T wc = weights[K > 2 ? 2 : 0], wd = weights[K > 3 ? 3 : 0];
  for (int64_t i = 0; i < n; ++i) {
    T sum = (add ? out[i] : T(0)) + wa * a[i];
    if (K > 1) {
      sum += wb * b[i];
    }
    if (K > 2) {
      sum += wc * c[i];
    }
    if (K > 3) {
      sum += wd * d[i];
    }
    out[i] = sum;
  }
}

template <typename T>
void combine(const T* const* rows, const T* weights, int64_t count, int64_t n, T* out) {
  if (count == 0) {
    for (int64_t i = 0; i < n; ++i) {
      out[i] = T(0);
    }
  }
  for (int64_t k = 0; k < count; k += 4) {
    const bool add = k > 0;
    switch (count - k) {
      case 1:
        combine_some<T, 1>(rows + k, weights + k, add, n, out);
        break;
      case 2:
        combine_some<T, 2>(rows + k, weights + k, add, n, out);
        break;
      case 3:
        combine_some<T, 3>(rows + k, weights + k, add, n, out);
        break;
      default:
        combine_some<T, 4>(rows + k, weights + k, add, n, out);
    }
  }
}

template <typename T>
void accumulate(const T* __restrict row, T weight, int64_t n, T* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] += weight * row[i];
  }
}

constexpr int kTileBytes = SEGKERN_VECTOR_BYTES < 32 ? 32 : SEGKERN_VECTOR_BYTES;

// Tiles of L x L through registers, L the lanes of a vector: every line of memory is touched once.
template <typename T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
               int64_t to_stride) {
  int64_t whole_rows = 0, whole_columns = 0;
#if defined(__GNUC__) && !defined(__clang__)
  constexpr int L = kTileBytes / static_cast<int>(sizeof(T));
  typedef T V __attribute__((vector_size(kTileBytes)));
  typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> I;
  typedef I M __attribute__((vector_size(kTileBytes)));
  whole_rows = rows / L * L;
  whole_columns = columns / L * L;
  for (int64_t i = 0; i < whole_rows; i += L) {
    for (int64_t j = 0; j < whole_columns; j += L) {
      V v[L];
      for (int k = 0; k < L; ++k) {
        std::memcpy(&v[k], from + (i + k) * from_stride + j, sizeof(V));
      }
      // Blocks of s x s off the diagonal change places, for s = 1, 2, 4, ...
      for (int s = 1; s < L; s *= 2) {
        M low, high;
        for (int lane = 0; lane < L; ++lane) {
          low[lane] = (lane & s) ? L + (lane ^ s) : lane;
          high[lane] = (lane & s) ? L + lane : lane ^ s;
        }
        for (int k = 0; k < L; ++k) {
          if (!(k & s)) {
            const V one = v[k], two = v[k | s];
            v[k] = __builtin_shuffle(one, two, low);
            v[k | s] = __builtin_shuffle(one, two, high);
          }
        }
      }
      for (int k = 0; k < L; ++k) {
        std::memcpy(to + (j + k) * to_stride + i, &v[k], sizeof(V));
      }
    }
  }
#endif
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) {
      to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
}

constexpr RoiRowTable kRows = {
    {combine<float>, accumulate<float>, transpose<float>},
    {combine<double>, accumulate<double>, transpose<double>},
};
