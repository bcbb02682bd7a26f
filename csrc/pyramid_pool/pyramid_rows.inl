// Row kernel of pyramid pooling; compiled once per instruction set (common/cpu_targets.h).

// K vectors of sums in registers.
template <typename T, int K>
inline __attribute__((always_inline)) void sum_block(const T* in, int64_t row_step, int64_t rows,
                                                     int64_t step, int64_t pixels, T* out) {
  typedef T V __attribute__((vector_size(64)));
  constexpr int L = 64 / static_cast<int>(sizeof(T));
  V sum[K];
  for (int j = 0; j < K; ++j) {
    sum[j] = V{};
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < pixels; ++k) {
      const T* at = in + r * row_step + k * step;
      for (int j = 0; j < K; ++j) {
        V v;
        std::memcpy(&v, at + j * L, sizeof(v));
        sum[j] += v;
      }
    }
  }
  for (int j = 0; j < K; ++j) {
    std::memcpy(out + j * L, &sum[j], sizeof(V));
  }
}

template <typename T>
void sum(const T* in, int64_t row_step, int64_t rows, int64_t step, int64_t pixels, int64_t n,
         T* out) {
  constexpr int L = 64 / static_cast<int>(sizeof(T));
  constexpr int kMany = 8;
  int64_t x = 0;
  for (; x + kMany * L <= n; x += kMany * L) {
    sum_block<T, kMany>(in + x, row_step, rows, step, pixels, out + x);
  }
  for (; x + L <= n; x += L) {
    sum_block<T, 1>(in + x, row_step, rows, step, pixels, out + x);
  }
  if (x < n && n >= L) {  // some sums twice, to the same numbers
    sum_block<T, 1>(in + n - L, row_step, rows, step, pixels, out + n - L);
    return;
  }
  for (; x < n; ++x) {
    T total = 0;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < pixels; ++k) {
        total += in[r * row_step + k * step + x];
      }
    }
    out[x] = total;
  }
}

inline const PyramidRowTable kRows = {{sum<float>}, {sum<double>}};
