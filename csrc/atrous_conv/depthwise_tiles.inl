// Tiles of depthwise convolution; compiled once per instruction set (common/cpu_targets.h).

#include "vector.inl"

// How many of a tile's rows are summed at once: 4 x 4 sums and 9 weights fill 32 registers.
constexpr int kRowsAtOnce = kVectorBytes == 64 ? kTileOutputs : kTileOutputs / 2;

typedef uint16_t HalfLanes __attribute__((vector_size(kVectorBytes / 2)));
typedef uint32_t WordLanes __attribute__((vector_size(kVectorBytes)));

template <typename T>
SEGKERN_INLINE Vec<T> load_pixel(const char* from, const T*) {
  return Vec<T>::load(reinterpret_cast<const T*>(from));
}

SEGKERN_INLINE Vec<float> load_pixel(const char* from, const uint16_t*) {
  HalfLanes half;
  std::memcpy(&half, from, sizeof(half));
  const WordLanes bits = __builtin_convertvector(half, WordLanes) << 16;
  Vec<float> out;
  std::memcpy(&out.v, &bits, sizeof(bits));
  return out;
}

template <typename T>
SEGKERN_INLINE void store_pixel(char* to, const Vec<T>& value, const T*,
                                [[maybe_unused]] bool stream) {
#if SEGKERN_VECTOR_BYTES == 64
  if (stream) {
    __m512i bits;
    std::memcpy(&bits, &value.v, sizeof(bits));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), bits);
    return;
  }
#endif
  value.store(reinterpret_cast<T*>(to));
}

SEGKERN_INLINE void store_pixel(char* to, const Vec<float>& value, const uint16_t*, bool) {
  WordLanes bits;
  std::memcpy(&bits, &value.v, sizeof(bits));
  const WordLanes rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const WordLanes nan = WordLanes{} + 0x7fc0;
  const WordLanes result = (bits & 0x7fffffff) > 0x7f800000 ? nan : rounded;
  const HalfLanes half = __builtin_convertvector(result, HalfLanes);
  std::memcpy(to, &half, sizeof(half));
}

template <typename T>
SEGKERN_INLINE void activate(Vec<T>& y, int activation, const T* slope, int64_t slope_step) {
  if (activation == 1) {
    y.v = y.v < T{0} ? typename Vec<T>::Type{} : y.v;  // a NaN stays
  } else if (activation == 2) {
    const Vec<T> factor = slope_step ? Vec<T>::load(slope) : Vec<T>::of(*slope);
    y.v = y.v > T{0} ? y.v : factor.v * y.v;
  }
}

// E is T, or uint16_t for bfloat16. Channels from c on, of rows [A, A + kRowsAtOnce) of the tile.
template <typename T, typename E, int A>
SEGKERN_INLINE void pixels_at(const PixelTile<T>& t, int64_t c, bool stream) {
  using V = Vec<T>;
  const int64_t at = c * static_cast<int64_t>(sizeof(E));
  V weight[9];
#pragma GCC unroll 9
  for (int k = 0; k < 9; ++k) {
    weight[k] = V::load(t.weight + k * t.weight_step + c);
  }
  const V first = t.shift ? V::load(t.shift + c) : V::of(T{0});
  V sum[kRowsAtOnce][kTileOutputs];
#pragma GCC unroll 4
  for (int a = 0; a < kRowsAtOnce; ++a) {
#pragma GCC unroll 4
    for (int b = 0; b < kTileOutputs; ++b) {
      sum[a][b] = first;
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRowsAtOnce + 2; ++i) {
#pragma GCC unroll 6
    for (int j = 0; j < kTileInputs; ++j) {
      const char* from = t.in[A + i][j];
      if (from) {
        const V value = load_pixel(from + at, static_cast<const E*>(nullptr));
#pragma GCC unroll 4
        for (int a = 0; a < kRowsAtOnce; ++a) {
#pragma GCC unroll 4
          for (int b = 0; b < kTileOutputs; ++b) {
            if (i >= a && i < a + 3 && j >= b && j < b + 3) {
              sum[a][b].add_product(weight[(i - a) * 3 + j - b], value);
            }
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int a = 0; a < kRowsAtOnce; ++a) {
#pragma GCC unroll 4
    for (int b = 0; b < kTileOutputs; ++b) {
      char* to = t.out[A + a][b];
      if (to) {
        V y = sum[a][b];
        if (t.residual[A + a][b]) {
          y.v += load_pixel(t.residual[A + a][b] + at, static_cast<const E*>(nullptr)).v;
        }
        activate(y, t.activation, t.slope + c * t.slope_step, t.slope_step);
        store_pixel(to + at, y, static_cast<const E*>(nullptr), stream);
      }
    }
  }
}

template <typename T, typename E, int A>
void pixels_of(const PixelTile<T>& t) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  uintptr_t joined = 0;
  for (int k = 0; k < kTileOutputs * kTileOutputs; ++k) {
    joined |= reinterpret_cast<uintptr_t>(t.out[k / kTileOutputs][k % kTileOutputs]);
  }
  const bool stream = t.stream && joined % kVectorBytes == 0;
  int64_t c = 0;
  for (; c + kLanes <= t.channels; c += kLanes) {
    pixels_at<T, E, A>(t, c, stream);
  }
  if (c < t.channels) {  // some channels twice, to the same result
    pixels_at<T, E, A>(t, t.channels - kLanes, false);
  }
}

template <typename T, typename E>
void all_pixels(const PixelTile<T>& t) {
  pixels_of<T, E, 0>(t);
  if (kRowsAtOnce < kTileOutputs) {
    pixels_of<T, E, kTileOutputs - kRowsAtOnce>(t);
  }
}

inline void pixels(const PixelTile<float>& t, Element element) {
  element == Element::kFloat32 ? all_pixels<float, float>(t) : all_pixels<float, uint16_t>(t);
}

inline void pixels(const PixelTile<double>& t, Element) { all_pixels<double, double>(t); }

// NV vectors of four rows from column x; NK taps.
template <typename T, int NK, int NV>
SEGKERN_INLINE void rows_at(const T* in, const RowTile& tile, const Vec<T> (&weight)[3][NK],
                            const int64_t (&offset)[NK], const Vec<T>& init, T* y, int64_t x) {
  using V = Vec<T>;
  V sum[kTileOutputs][NV];
#pragma GCC unroll 4
  for (int a = 0; a < kTileOutputs; ++a) {
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      sum[a][v] = init;
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kTileInputs; ++i) {
    if (tile.in[i] >= 0) {
      const T* row = in + tile.in[i] + x;
#pragma GCC unroll 3
      for (int k = 0; k < NK; ++k) {
        V value[NV];
#pragma GCC unroll 2
        for (int v = 0; v < NV; ++v) {
          value[v] = V::load(row + offset[k] + v * V::kLanes);
        }
#pragma GCC unroll 4
        for (int a = 0; a < kTileOutputs; ++a) {
          if (i >= a && i < a + 3) {
#pragma GCC unroll 2
            for (int v = 0; v < NV; ++v) {
              sum[a][v].add_product(weight[i - a][k], value[v]);
            }
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int a = 0; a < kTileOutputs; ++a) {
    if (tile.out[a] >= 0) {
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) {
        sum[a][v].store(y + tile.out[a] + x + v * V::kLanes);
      }
    }
  }
}

template <typename T, int NK>
void rows_of(const T* in, const RowTile* tiles, int64_t count, const T* w, const int64_t* offset,
             int first, T init, T* y, int64_t x0, int64_t x1) {
  using V = Vec<T>;
  constexpr int kWide = kVectorBytes == 64 ? 2 : 1;
  constexpr int64_t kLanes = V::kLanes;
  V weight[3][NK];
  int64_t shift[NK];
  for (int k = 0; k < NK; ++k) {
    shift[k] = offset[first + k];
    for (int i = 0; i < 3; ++i) {
      weight[i][k] = V::of(w[3 * i + first + k]);
    }
  }
  const V start = V::of(init);
  for (const RowTile* tile = tiles; tile != tiles + count; ++tile) {
    int64_t x = x0;
    for (; x + kWide * kLanes <= x1; x += kWide * kLanes) {
      rows_at<T, NK, kWide>(in, *tile, weight, shift, start, y, x);
    }
    for (; x + kLanes <= x1; x += kLanes) {
      rows_at<T, NK, 1>(in, *tile, weight, shift, start, y, x);
    }
  }
}

template <typename T>
void rows_of_tiles(const T* in, const RowTile* tiles, int64_t count, const T* w,
                   const int64_t* offset, int first, int last, T init, T* y, int64_t x0,
                   int64_t x1) {
  switch (last - first) {
    case 1:
      return rows_of<T, 1>(in, tiles, count, w, offset, first, init, y, x0, x1);
    case 2:
      return rows_of<T, 2>(in, tiles, count, w, offset, first, init, y, x0, x1);
    default:
      return rows_of<T, 3>(in, tiles, count, w, offset, first, init, y, x0, x1);
  }
}

template <typename T, typename E>
void load_rows(const char* from, T* to, int64_t width, int64_t step, int64_t rows) {
  constexpr int64_t kLanes = Vec<T>::kLanes;
  constexpr auto kSize = static_cast<int64_t>(sizeof(E));
  const E* type = nullptr;
  for (int64_t row = 0; row < rows; ++row, from += width * kSize, to += step) {
    for (int64_t x = 0; x + kLanes <= width; x += kLanes) {
      load_pixel(from + x * kSize, type).store(to + x);
    }
    load_pixel(from + (width - kLanes) * kSize, type).store(to + width - kLanes);
  }
}

inline void load(const char* from, Element element, float* to, int64_t width, int64_t step,
                 int64_t rows) {
  element == Element::kFloat32 ? load_rows<float, float>(from, to, width, step, rows)
                               : load_rows<float, uint16_t>(from, to, width, step, rows);
}

inline void load(const char* from, Element, double* to, int64_t width, int64_t step,
                 int64_t rows) {
  load_rows<double, double>(from, to, width, step, rows);
}

template <typename T>
constexpr DepthwiseTiles<T> kDepthwiseTiles = {
    [](const PixelTile<T>& t, Element element) { pixels(t, element); },
    &rows_of_tiles<T>,
    [](const char* from, Element element, T* to, int64_t width, int64_t step, int64_t rows) {
      load(from, element, to, width, step, rows);
    },
};

constexpr FloatTables<DepthwiseTiles> kRows = {kDepthwiseTiles<float>, kDepthwiseTiles<double>};
