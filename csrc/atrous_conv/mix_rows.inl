// Kernels that mix rows; compiled once per instruction set (common/cpu_targets.h).

#include "vector.inl"

// NO output rows of NV vectors, summed in registers.
template <typename T, int NO, int NV>
SEGKERN_INLINE void mix_at(const T* const* in, int64_t x, int64_t nt, const T* w, const T* init,
                           int64_t init_step, T* y, int64_t y_step, int64_t i) {
  using V = Vec<T>;
  V sum[NO][NV];
#pragma GCC unroll 14
  for (int o = 0; o < NO; ++o) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      sum[o][v] = init ? V::load(init + o * init_step + i + v * V::kLanes) : V::of(T{0});
    }
  }
  for (int64_t t = 0; t < nt; ++t) {
    const T* from = in[t] + x + i;
    V value[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      value[v] = V::load(from + v * V::kLanes);
    }
#pragma GCC unroll 14
    for (int o = 0; o < NO; ++o) {
      const V weight = V::of(w[t * NO + o]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        sum[o][v].add_product(weight, value[v]);
      }
    }
  }
#pragma GCC unroll 14
  for (int o = 0; o < NO; ++o) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      sum[o][v].store(y + o * y_step + i + v * V::kLanes);
    }
  }
}

template <typename T, int NO>
void mix_of(const T* const* in, int64_t x, int64_t nt, const T* w, const T* init,
            int64_t init_step, T* y, int64_t y_step, int64_t n) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  constexpr int kWide = kVectorBytes == 64 ? 2 : 1;  // 2 * 14 sums fit 32 registers, 14 fit 16
  int64_t i = 0;
  for (; i + kWide * kLanes <= n; i += kWide * kLanes) {
    mix_at<T, NO, kWide>(in, x, nt, w, init, init_step, y, y_step, i);
  }
  for (; i < n; i += kLanes) {
    mix_at<T, NO, 1>(in, x, nt, w, init, init_step, y, y_step, i);
  }
}

template <typename T>
void mix(const T* const* in, int64_t x, int64_t nt, const T* w, int no, const T* init,
         int64_t init_step, T* y, int64_t y_step, int64_t n) {
  switch (no) {
    case 1:
      return mix_of<T, 1>(in, x, nt, w, init, init_step, y, y_step, n);
    case 2:
      return mix_of<T, 2>(in, x, nt, w, init, init_step, y, y_step, n);
    case 3:
      return mix_of<T, 3>(in, x, nt, w, init, init_step, y, y_step, n);
    case 4:
      return mix_of<T, 4>(in, x, nt, w, init, init_step, y, y_step, n);
    case 5:
      return mix_of<T, 5>(in, x, nt, w, init, init_step, y, y_step, n);
    case 6:
      return mix_of<T, 6>(in, x, nt, w, init, init_step, y, y_step, n);
    case 7:
      return mix_of<T, 7>(in, x, nt, w, init, init_step, y, y_step, n);
    case 8:
      return mix_of<T, 8>(in, x, nt, w, init, init_step, y, y_step, n);
    case 9:
      return mix_of<T, 9>(in, x, nt, w, init, init_step, y, y_step, n);
    case 10:
      return mix_of<T, 10>(in, x, nt, w, init, init_step, y, y_step, n);
    case 11:
      return mix_of<T, 11>(in, x, nt, w, init, init_step, y, y_step, n);
    case 12:
      return mix_of<T, 12>(in, x, nt, w, init, init_step, y, y_step, n);
    case 13:
      return mix_of<T, 13>(in, x, nt, w, init, init_step, y, y_step, n);
    case 14:
      return mix_of<T, 14>(in, x, nt, w, init, init_step, y, y_step, n);
    default:
      return;
  }
}

typedef float Eight __attribute__((vector_size(32)));

// Eight by eight: pairs, quadruples, halves.
SEGKERN_INLINE void transpose_eight(const float* from, int64_t from_step, float* to,
                                    int64_t to_step) {
  Eight a[8];
  Eight b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    std::memcpy(&a[i], from + i * from_step, sizeof(Eight));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    a[i] = __builtin_shufflevector(b[i], b[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    a[i + 1] = __builtin_shufflevector(b[i], b[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    a[i + 2] = __builtin_shufflevector(b[i + 1], b[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    a[i + 3] = __builtin_shufflevector(b[i + 1], b[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    b[i] = __builtin_shufflevector(a[i], a[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    b[i + 4] = __builtin_shufflevector(a[i], a[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    std::memcpy(to + i * to_step, &b[i], sizeof(Eight));
  }
}

SEGKERN_INLINE void transpose_eight(const double* from, int64_t from_step, double* to,
                                    int64_t to_step) {
  for (int i = 0; i < 8; ++i) {
    for (int j = 0; j < 8; ++j) {
      to[j * to_step + i] = from[i * from_step + j];
    }
  }
}

typedef uint16_t EightHalves __attribute__((vector_size(16)));

// Rows i and i + 4 are interleaved, three times.
SEGKERN_INLINE void transpose_eight(const uint16_t* from, int64_t from_step, uint16_t* to,
                                    int64_t to_step) {
  EightHalves a[8];
  EightHalves b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    std::memcpy(&a[i], from + i * from_step, sizeof(EightHalves));
  }
#pragma GCC unroll 3
  for (int round = 0; round < 3; ++round) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      a[i] = b[i];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    std::memcpy(to + i * to_step, &a[i], sizeof(EightHalves));
  }
}

template <typename T>
void transpose(const T* from, int64_t from_step, T* to, int64_t to_step, int64_t rows,
               int64_t columns) {
  int64_t i = 0;
  for (; i + 8 <= rows; i += 8) {
    int64_t j = 0;
    for (; j + 8 <= columns; j += 8) {
      transpose_eight(from + i * from_step + j, from_step, to + j * to_step + i, to_step);
    }
    for (; j < columns; ++j) {
      for (int64_t k = i; k < i + 8; ++k) {
        to[j * to_step + k] = from[k * from_step + j];
      }
    }
  }
  for (; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      to[j * to_step + i] = from[i * from_step + j];
    }
  }
}

// Scale, Shift and Slope give the value for an element, Sum that before the affine map.
template <typename T, typename Sum, typename Scale, typename Shift, typename Slope>
SEGKERN_INLINE void finish_sums(T* __restrict__ y, const Sum& sum, int activation,
                                const Scale& scale, const Shift& shift, const Slope& slope,
                                int64_t n) {
  if (activation == 0) {
    for (int64_t i = 0; i < n; ++i) {
      y[i] = sum(i) * scale(i) + shift(i);
    }
  } else if (activation == 1) {
    for (int64_t i = 0; i < n; ++i) {
      const T v = sum(i) * scale(i) + shift(i);
      y[i] = v < T{0} ? T{0} : v;  // a NaN stays
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const T v = sum(i) * scale(i) + shift(i);
      const T below = v * slope(i);
      y[i] = v > T{0} ? v : below;
    }
  }
}

template <typename T, typename Scale, typename Shift, typename Slope>
SEGKERN_INLINE void finish_with(T* __restrict__ y, const T* __restrict__ residual, int activation,
                                const Scale& scale, const Shift& shift, const Slope& slope,
                                int64_t n) {
  if (residual) {
    finish_sums(y, [=](int64_t i) { return y[i] + residual[i]; }, activation, scale, shift, slope,
                n);
  } else {
    finish_sums(y, [=](int64_t i) { return y[i]; }, activation, scale, shift, slope, n);
  }
}

template <typename T>
void finish(T* y, const T* residual, const T* scale, const T* shift, int activation,
            const T* slope, int64_t step, int64_t n, int64_t count) {
  if (step == 0) {
    const T one_scale = *scale;
    const T one_shift = *shift;
    const T one_slope = *slope;
    finish_with(
        y, residual, activation, [=](int64_t) { return one_scale; },
        [=](int64_t) { return one_shift; }, [=](int64_t) { return one_slope; }, n * count);
    return;
  }
  for (int64_t row = 0; row < count; ++row) {
    finish_with(
        y + row * n, residual ? residual + row * n : nullptr, activation,
        [=](int64_t i) { return scale[i]; }, [=](int64_t i) { return shift[i]; },
        [=](int64_t i) { return slope[i]; }, n);
  }
}

// NO rows of g with NI rows of in.
template <typename T, int NO, int NI>
void products_of(const T* g, int64_t g_step, const T* in, int64_t in_step, T* acc,
                 int64_t acc_step, int64_t n) {
  using V = Vec<T>;
  V sum[NO][NI];
#pragma GCC unroll 4
  for (int o = 0; o < NO; ++o) {
#pragma GCC unroll 4
    for (int i = 0; i < NI; ++i) {
      sum[o][i] = V::load(acc + o * acc_step + i * kMixBlock);
    }
  }
  for (int64_t x = 0; x < n; x += V::kLanes) {
    V value[NI];
#pragma GCC unroll 4
    for (int i = 0; i < NI; ++i) {
      value[i] = V::load(in + i * in_step + x);
    }
#pragma GCC unroll 4
    for (int o = 0; o < NO; ++o) {
      const V factor = V::load(g + o * g_step + x);
#pragma GCC unroll 4
      for (int i = 0; i < NI; ++i) {
        sum[o][i].add_product(factor, value[i]);
      }
    }
  }
#pragma GCC unroll 4
  for (int o = 0; o < NO; ++o) {
#pragma GCC unroll 4
    for (int i = 0; i < NI; ++i) {
      sum[o][i].store(acc + o * acc_step + i * kMixBlock);
    }
  }
}

template <typename T, int NO>
void products_with(const T* g, int64_t g_step, const T* in, int64_t in_step, int64_t ni, T* acc,
                   int64_t n) {
  constexpr int kTogether = kVectorBytes == 64 ? 4 : 2;  // NO * kTogether sums in registers
  const int64_t acc_step = ni * kMixBlock;
  int64_t i = 0;
  for (; i + kTogether <= ni; i += kTogether) {
    products_of<T, NO, kTogether>(g, g_step, in + i * in_step, in_step, acc + i * kMixBlock,
                                  acc_step, n);
  }
  for (; i < ni; ++i) {
    products_of<T, NO, 1>(g, g_step, in + i * in_step, in_step, acc + i * kMixBlock, acc_step, n);
  }
}

template <typename T>
void products(const T* g, int64_t g_step, int64_t no, const T* in, int64_t in_step, int64_t ni,
              T* acc, int64_t n) {
  int64_t o = 0;
  for (; o + 4 <= no; o += 4) {
    products_with<T, 4>(g + o * g_step, g_step, in, in_step, ni, acc + o * ni * kMixBlock, n);
  }
  for (; o < no; ++o) {
    products_with<T, 1>(g + o * g_step, g_step, in, in_step, ni, acc + o * ni * kMixBlock, n);
  }
}

template <typename T>
constexpr MixRows<T> kMixRows = {&mix<T>, &transpose<T>, &transpose<uint16_t>, &finish<T>,
                                 &products<T>};

constexpr FloatTables<MixRows> kRows = {kMixRows<float>, kMixRows<double>};
