// Row kernels of depthwise convolution; compiled once per instruction set (common/cpu_targets.h).

#include "vector.inl"

// The taps of NR rows and NK columns with their weights in registers.
template <typename T, int NR, int NK>
void segment_of(const T* const* rows, const T* const* w, const int64_t* offset, int tap, T init,
                T* y, int64_t x0, int64_t blocks, int64_t count, int64_t row_step,
                int64_t y_step) {
  using V = Vec<T>;
  V weight[NR][NK];
  const T* from[NR][NK];
  for (int r = 0; r < NR; ++r) {
    for (int k = 0; k < NK; ++k) {
      weight[r][k] = V::of(w[r][tap + k]);
      from[r][k] = rows[r] + offset[tap + k] + x0;
    }
  }
  const V first = V::of(init);
  const int64_t length = blocks * kRowBlock;
  T* to = y + x0;
  for (int64_t i = 0; i < count; ++i, to += y_step) {
    for (int64_t x = 0; x < length; x += V::kLanes) {
      V sum = first;
#pragma GCC unroll 3
      for (int r = 0; r < NR; ++r) {
#pragma GCC unroll 3
        for (int k = 0; k < NK; ++k) {
          sum.add_product(weight[r][k], V::load(from[r][k] + i * row_step + x));
        }
      }
      sum.store(to + x);
    }
  }
}

// Any number of taps.
template <typename T>
void segment_any(const T* const* rows, const T* const* w, const int64_t* offset, int nr,
                 int first, int last, T init, T* y, int64_t x0, int64_t blocks, int64_t count,
                 int64_t row_step, int64_t y_step) {
  using V = Vec<T>;
  const int64_t end = x0 + blocks * kRowBlock;
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t x = x0; x < end; x += V::kLanes) {
      V sum = V::of(init);
      for (int r = 0; r < nr; ++r) {
        for (int k = first; k < last; ++k) {
          sum.add_product(V::of(w[r][k]), V::load(rows[r] + i * row_step + offset[k] + x));
        }
      }
      sum.store(y + i * y_step + x);
    }
  }
}

template <typename T>
void segment(const T* const* rows, const T* const* w, const int64_t* offset, int nr, int first,
             int last, T init, T* y, int64_t x0, int64_t blocks, int64_t count, int64_t row_step,
             int64_t y_step) {
  const int nk = last - first;
  switch (nr <= 3 && nk <= 3 ? nr * 4 + nk : 0) {
    case 5:
      return segment_of<T, 1, 1>(rows, w, offset, first, init, y, x0, blocks, count, row_step,
                                 y_step);
    case 6:
      return segment_of<T, 1, 2>(rows, w, offset, first, init, y, x0, blocks, count, row_step,
                                 y_step);
    case 7:
      return segment_of<T, 1, 3>(rows, w, offset, first, init, y, x0, blocks, count, row_step,
                                 y_step);
    case 9:
      return segment_of<T, 2, 1>(rows, w, offset, first, init, y, x0, blocks, count, row_step,
                                 y_step);
    case 10:
      return segment_of<T, 2, 2>(rows, w, offset, first, init, y, x0, blocks, count, row_step,
                                 y_step);
    case 11:
      return segment_of<T, 2, 3>(rows, w, offset, first, init, y, x0, blocks, count, row_step,
                                 y_step);
    case 13:
      return segment_of<T, 3, 1>(rows, w, offset, first, init, y, x0, blocks, count, row_step,
                                 y_step);
    case 14:
      return segment_of<T, 3, 2>(rows, w, offset, first, init, y, x0, blocks, count, row_step,
                                 y_step);
    case 15:
      return segment_of<T, 3, 3>(rows, w, offset, first, init, y, x0, blocks, count, row_step,
                                 y_step);
    default:
      return segment_any<T>(rows, w, offset, nr, first, last, init, y, x0, blocks, count, row_step,
                            y_step);
  }
}

template <typename T>
void weight_grad(const T* g, const T* row, const int64_t* offset, int first, int last, T* acc,
                 int64_t x0, int64_t blocks) {
  using V = Vec<T>;
  constexpr int kParts = static_cast<int>(kRowBlock) / V::kLanes;
  for (int k = first; k < last; ++k) {
    const T* from = row + offset[k];
    V sum[kParts];
    for (int part = 0; part < kParts; ++part) {
      sum[part] = V::load(acc + k * kRowBlock + part * V::kLanes);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t x = x0 + b * kRowBlock;
#pragma GCC unroll 8
      for (int part = 0; part < kParts; ++part) {
        sum[part].add_product(V::load(g + x + part * V::kLanes),
                              V::load(from + x + part * V::kLanes));
      }
    }
    for (int part = 0; part < kParts; ++part) {
      sum[part].store(acc + k * kRowBlock + part * V::kLanes);
    }
  }
}

// NV vectors of channels from c of P pixels; all taps.
template <typename T, int P, int NV>
SEGKERN_INLINE void lanes_at(const T* const* in, const T* const* w, int nt, const T* init, T* y,
                             int64_t c, int64_t in_step, int64_t y_step) {
  using V = Vec<T>;
  V sum[P][NV];
#pragma GCC unroll 4
  for (int i = 0; i < NV; ++i) {
    const V first = init ? V::load(init + c + i * V::kLanes) : V::of(T{0});
#pragma GCC unroll 4
    for (int j = 0; j < P; ++j) {
      sum[j][i] = first;
    }
  }
  for (int t = 0; t < nt; ++t) {
    const T* from = in[t] + c;
    const T* weight = w[t] + c;
#pragma GCC unroll 4
    for (int i = 0; i < NV; ++i) {
      const V tap = V::load(weight + i * V::kLanes);
#pragma GCC unroll 4
      for (int j = 0; j < P; ++j) {
        sum[j][i].add_product(tap, V::load(from + j * in_step + i * V::kLanes));
      }
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < P; ++j) {
#pragma GCC unroll 4
    for (int i = 0; i < NV; ++i) {
      sum[j][i].store(y + j * y_step + c + i * V::kLanes);
    }
  }
}

template <typename T, int P>
void lanes_of(const T* const* in, const T* const* w, int nt, const T* init, T* y, int64_t n,
              int64_t in_step, int64_t y_step) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  constexpr int kWide = kVectorBytes == 64 ? 4 : 2;  // P * kWide sums in registers
  int64_t c = 0;
  for (; c + kWide * kLanes <= n; c += kWide * kLanes) {
    lanes_at<T, P, kWide>(in, w, nt, init, y, c, in_step, y_step);
  }
  for (; c + kLanes <= n; c += kLanes) {
    lanes_at<T, P, 1>(in, w, nt, init, y, c, in_step, y_step);
  }
  if (c < n && n >= kLanes) {  // some channels twice, to the same result
    lanes_at<T, P, 1>(in, w, nt, init, y, n - kLanes, in_step, y_step);
    return;
  }
  for (; c < n; ++c) {
    for (int j = 0; j < P; ++j) {
      T sum = init ? init[c] : T{0};
      for (int t = 0; t < nt; ++t) {
        sum += w[t][c] * in[t][j * in_step + c];
      }
      y[j * y_step + c] = sum;
    }
  }
}

template <typename T>
void lanes(const T* const* in, const T* const* w, int nt, const T* init, T* y, int64_t n,
           int64_t count, int64_t in_step, int64_t y_step) {
  switch (count) {
    case 4:
      return lanes_of<T, 4>(in, w, nt, init, y, n, in_step, y_step);
    case 3:
      return lanes_of<T, 3>(in, w, nt, init, y, n, in_step, y_step);
    case 2:
      return lanes_of<T, 2>(in, w, nt, init, y, n, in_step, y_step);
    default:
      return lanes_of<T, 1>(in, w, nt, init, y, n, in_step, y_step);
  }
}

template <typename T>
void lanes_weight_grad(const T* __restrict__ g, const T* __restrict__ in, T* __restrict__ acc,
                       int64_t n) {
  for (int64_t c = 0; c < n; ++c) {
    acc[c] += g[c] * in[c];
  }
}

template <typename T>
void finish(T* __restrict__ y, const T* __restrict__ residual, int activation, const T* slope,
            int64_t slope_step, int64_t n) {
  if (residual) {
    for (int64_t i = 0; i < n; ++i) {
      y[i] += residual[i];
    }
  }
  if (activation == 1) {
    for (int64_t i = 0; i < n; ++i) {
      y[i] = y[i] < T{0} ? T{0} : y[i];  // a NaN stays
    }
  } else if (activation == 2 && slope_step == 0) {
    const T one = *slope;
    for (int64_t i = 0; i < n; ++i) {
      y[i] = y[i] > T{0} ? y[i] : one * y[i];
    }
  } else if (activation == 2) {
    for (int64_t i = 0; i < n; ++i) {
      y[i] = y[i] > T{0} ? y[i] : slope[i] * y[i];
    }
  }
}

SEGKERN_INLINE float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

SEGKERN_INLINE uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

SEGKERN_INLINE float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t rest = half & 0x7fff;
  if (rest >= 0x7c00) {  // infinity or NaN
    return float_of_bits(sign | 0x7f800000 | ((rest & 0x3ff) << 13));
  }
  // The exponent is moved by a multiplication, which also normalises subnormals.
  const float magnitude = float_of_bits(rest << 13) * float_of_bits(0x77800000);  // 2^112
  return float_of_bits(bits_of_float(magnitude) | sign);
}

SEGKERN_INLINE uint16_t float_to_half(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) {
    return static_cast<uint16_t>(sign | 0x7e00);
  }
  if (rest >= 0x477ff000) {  // 65520 and above round to infinity
    return static_cast<uint16_t>(sign | 0x7c00);
  }
  if (rest < 0x38800000) {  // below the least normal: in units of 2^-24, rounded by an addition
    const float shifted = float_of_bits(rest) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of_float(shifted) - 0x3f000000));
  }
  const uint32_t rounded = rest + 0xfff + ((rest >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

SEGKERN_INLINE uint16_t float_to_bfloat(float value) {
  const uint32_t bits = bits_of_float(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline void load_elements(Element element, const void* from, double* to, int64_t n) {
  std::memcpy(to, from, n * sizeof(double));
}

inline void store_elements(Element element, const double* from, void* to, int64_t n) {
  std::memcpy(to, from, n * sizeof(double));
}

inline void load_elements(Element element, const void* from, float* __restrict__ to, int64_t n) {
  const auto* half = static_cast<const uint16_t*>(from);
  if (element == Element::kFloat32) {
    std::memcpy(to, from, n * sizeof(float));
  } else if (element == Element::kBFloat16) {
    for (int64_t i = 0; i < n; ++i) {
      to[i] = float_of_bits(static_cast<uint32_t>(half[i]) << 16);
    }
  } else {
    int64_t i = 0;
#if SEGKERN_VECTOR_BYTES > 16
    for (; i + 8 <= n; i += 8) {
      __m128i packed;
      std::memcpy(&packed, half + i, sizeof(packed));
      const __m256 wide = _mm256_cvtph_ps(packed);
      std::memcpy(to + i, &wide, sizeof(wide));
    }
#endif
    for (; i < n; ++i) {
      to[i] = half_to_float(half[i]);
    }
  }
}

inline void store_elements(Element element, const float* __restrict__ from, void* to, int64_t n) {
  auto* half = static_cast<uint16_t*>(to);
  if (element == Element::kFloat32) {
    std::memcpy(to, from, n * sizeof(float));
  } else if (element == Element::kBFloat16) {
    for (int64_t i = 0; i < n; ++i) {
      half[i] = float_to_bfloat(from[i]);
    }
  } else {
    int64_t i = 0;
#if SEGKERN_VECTOR_BYTES > 16
    for (; i + 8 <= n; i += 8) {
      __m256 wide;
      std::memcpy(&wide, from + i, sizeof(wide));
      const __m128i packed = _mm256_cvtps_ph(wide, _MM_FROUND_TO_NEAREST_INT);
      std::memcpy(half + i, &packed, sizeof(packed));
    }
#endif
    for (; i < n; ++i) {
      half[i] = float_to_half(from[i]);
    }
  }
}

inline void stream_bytes(void* to, const void* from, int64_t bytes) {
  auto* target = static_cast<char*>(to);
  const auto* source = static_cast<const char*>(from);
#if defined(SEGKERN_X86_TARGETS)
  constexpr int64_t kLine = 64;
  const int64_t head = (kLine - reinterpret_cast<uintptr_t>(target) % kLine) % kLine;
  if (bytes >= head + kLine) {
    std::memcpy(target, source, head);
    target += head;
    source += head;
    bytes -= head;
    for (; bytes >= kLine; bytes -= kLine, target += kLine, source += kLine) {
#if SEGKERN_VECTOR_BYTES == 64
      _mm512_stream_si512(reinterpret_cast<__m512i*>(target), _mm512_loadu_si512(source));
#elif SEGKERN_VECTOR_BYTES == 32
      for (int i = 0; i < 64; i += 32) {
        _mm256_stream_si256(reinterpret_cast<__m256i*>(target + i),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source + i)));
      }
#else
      for (int i = 0; i < 64; i += 16) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(target + i),
                         _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i)));
      }
#endif
    }
  }
#endif
  std::memcpy(target, source, bytes);
}

template <typename T>
constexpr DepthwiseRows<T> kDepthwiseRows = {
    &segment<T>,           &weight_grad<T>, &lanes<T>, &lanes_weight_grad<T>, &finish<T>,
    [](Element e, const void* from, T* to, int64_t n) { load_elements(e, from, to, n); },
    [](Element e, const T* from, void* to, int64_t n) { store_elements(e, from, to, n); },
    &stream_bytes,
};

constexpr FloatTables<DepthwiseRows> kRows = {kDepthwiseRows<float>, kDepthwiseRows<double>};
