// Row kernels of the lattice; compiled once per instruction set (common/cpu_targets.h). Sums are
// rounded as that set's multiply-add rounds them, so levels differ in the last bits; the embedding
// decides which vertices exist and is the same to the bit at every level.

typedef float Row __attribute__((vector_size(64)));
typedef float HalfRow __attribute__((vector_size(32)));
typedef float QuarterRow __attribute__((vector_size(16)));
typedef int32_t IntRow __attribute__((vector_size(64)));
typedef int32_t IntHalfRow __attribute__((vector_size(32)));
// In memory, rows need not be aligned.
typedef float RowAt __attribute__((vector_size(64), aligned(4), may_alias));
typedef float HalfRowAt __attribute__((vector_size(32), aligned(4), may_alias));

#define SEGKERN_INLINE inline __attribute__((always_inline))

// A column of rows in registers: K vectors of 16 floats, and one of 8 where kHalf.
template <int K, bool kHalf>
struct Column {
  static constexpr int kFull = K;
  static constexpr bool kHasHalf = kHalf;
  Row full[K ? K : 1];
  HalfRow half;

  SEGKERN_INLINE void clear() {
    for (int k = 0; k < K; ++k) {
      full[k] = Row{};
    }
    half = HalfRow{};
  }
  SEGKERN_INLINE void load(const float* from) {
    for (int k = 0; k < K; ++k) {
      full[k] = reinterpret_cast<const RowAt*>(from)[k];
    }
    if (kHalf) {
      half = *reinterpret_cast<const HalfRowAt*>(from + 16 * K);
    }
  }
  SEGKERN_INLINE void store(float* to) const {
    for (int k = 0; k < K; ++k) {
      reinterpret_cast<RowAt*>(to)[k] = full[k];
    }
    if (kHalf) {
      *reinterpret_cast<HalfRowAt*>(to + 16 * K) = half;
    }
  }
  SEGKERN_INLINE void add(const Column& v) {
    for (int k = 0; k < K; ++k) {
      full[k] += v.full[k];
    }
    half += v.half;
  }
  SEGKERN_INLINE void add_scaled(float w, const Column& v) {
    for (int k = 0; k < K; ++k) {
      full[k] += w * v.full[k];
    }
    if (kHalf) {
      half += w * v.half;
    }
  }
  SEGKERN_INLINE void scale(float w) {
    for (int k = 0; k < K; ++k) {
      full[k] *= w;
    }
    if (kHalf) {
      half *= w;
    }
  }
  SEGKERN_INLINE void multiply(const Column& v) {
    for (int k = 0; k < K; ++k) {
      full[k] *= v.full[k];
    }
    if (kHalf) {
      half *= v.half;
    }
  }
};

// Calls body(an unset column of the right width, its first float) until the row is done.
template <typename Body>
SEGKERN_INLINE void by_columns(int64_t stride, const Body& body) {
  int64_t at = 0;
  for (; stride - at > 64; at += 64) {
    body(static_cast<Column<4, false>*>(nullptr), at);
  }
  switch ((stride - at) / 8) {
    case 1:
      return body(static_cast<Column<0, true>*>(nullptr), at);
    case 2:
      return body(static_cast<Column<1, false>*>(nullptr), at);
    case 3:
      return body(static_cast<Column<1, true>*>(nullptr), at);
    case 4:
      return body(static_cast<Column<2, false>*>(nullptr), at);
    case 5:
      return body(static_cast<Column<2, true>*>(nullptr), at);
    case 6:
      return body(static_cast<Column<3, false>*>(nullptr), at);
    case 7:
      return body(static_cast<Column<3, true>*>(nullptr), at);
    default:
      return body(static_cast<Column<4, false>*>(nullptr), at);
  }
}

SEGKERN_INLINE float point_factor(const CornerRows& at, int64_t i) {
  return at.scale ? at.gain * at.scale[i] : at.gain;
}

// Points work on rows all over a table, behind seven streams of indices, weights and values: more
// than the hardware prefetchers follow. Rows are fetched so many points ahead, streams further.
constexpr int64_t kRowsAhead = 32, kStreamAhead = 256;

template <typename C>
SEGKERN_INLINE void fetch_row(const float* row) {
  for (int k = 0; k < C::kFull + C::kHasHalf; ++k) {
    __builtin_prefetch(row + 16 * k);
  }
}

template <typename C>
SEGKERN_INLINE void fetch_ahead(const CornerRows& at, int corners, int64_t i, const float* sums,
                                int64_t stride) {
  __builtin_prefetch(at.row + (i + kStreamAhead) * corners);
  __builtin_prefetch(at.weight + (i + kStreamAhead) * corners);
  for (int c = 0; c < corners; ++c) {
    fetch_row<C>(sums + at.row[(i + kRowsAhead) * corners + c] * stride);
  }
}

// The points whose rows can be fetched ahead come first.
SEGKERN_INLINE int64_t points_with_ahead(const CornerRows& at, int64_t n) {
  const int64_t most = n + at.following - kRowsAhead;
  return most < 0 ? 0 : most < n ? most : n;
}

// Calls body(number of corners, a constant where it is a common one).
template <typename Body>
SEGKERN_INLINE void by_corners(int corners, const Body& body) {
  switch (corners) {
    case 3:
      return body(std::integral_constant<int, 3>());
    case 6:
      return body(std::integral_constant<int, 6>());
    default:
      return body(corners);
  }
}

template <typename C, typename Corners>
void splat_column(const CornerRows given, Corners corners, const float* values, float* sums,
                  int64_t stride, int64_t n) {
  const CornerRows at = given;
  const int64_t ahead = points_with_ahead(at, n);
  for (int64_t i = 0; i < n; ++i) {
    if (i < ahead) {
      fetch_ahead<C>(at, corners, i, sums, stride);
    }
    C v, total;
    v.load(values + i * stride);
    v.scale(point_factor(at, i));
    for (int c = 0; c < corners; ++c) {
      float* to = sums + at.row[i * corners + c] * stride;
      total.load(to);
      total.add_scaled(at.weight[i * corners + c], v);
      total.store(to);
    }
  }
}

void splat(const CornerRows& at, const float* values, float* sums, int64_t stride, int64_t n) {
  by_columns(stride, [&](auto* column, int64_t first) {
    by_corners(at.corners, [&](auto corners) {
      splat_column<std::remove_pointer_t<decltype(column)>>(at, corners, values + first,
                                                            sums + first, stride, n);
    });
  });
}

template <typename C, typename Corners>
SEGKERN_INLINE void slice_point(const CornerRows& at, Corners corners, int64_t i,
                                const float* sums, int64_t stride, C& total) {
  total.clear();
  for (int c = 0; c < corners; ++c) {
    C v;
    v.load(sums + at.row[i * corners + c] * stride);
    total.add_scaled(at.weight[i * corners + c], v);
  }
}

template <typename C, typename Corners>
void slice_column(const CornerRows given, Corners corners, const float* sums, float* out,
                  int64_t stride, int64_t n) {
  const CornerRows at = given;
  const int64_t ahead = points_with_ahead(at, n);
  for (int64_t i = 0; i < n; ++i) {
    if (i < ahead) {
      fetch_ahead<C>(at, corners, i, sums, stride);
    }
    C total;
    slice_point(at, corners, i, sums, stride, total);
    total.scale(point_factor(at, i));
    total.store(out + i * stride);
  }
}

template <typename C, typename Corners>
void slice_add_column(const CornerRows given, Corners corners, const float* sums,
                      const float* factor, const float* base, float* out, int64_t stride,
                      int64_t n) {
  const CornerRows at = given;
  const int64_t ahead = points_with_ahead(at, n);
  C factors;
  factors.load(factor);
  for (int64_t i = 0; i < n; ++i) {
    if (i < ahead) {
      fetch_ahead<C>(at, corners, i, sums, stride);
      fetch_row<C>(base + (i + kStreamAhead) * stride);
    }
    C total, result;
    slice_point(at, corners, i, sums, stride, total);
    total.multiply(factors);
    result.load(base + i * stride);
    result.add_scaled(point_factor(at, i), total);
    result.store(out + i * stride);
  }
}

void slice(const CornerRows& at, const float* sums, float* out, int64_t stride, int64_t n) {
  by_columns(stride, [&](auto* column, int64_t first) {
    slice_column<std::remove_pointer_t<decltype(column)>>(at, at.corners, sums + first,
                                                          out + first, stride, n);
  });
}

void slice_add(const CornerRows& at, const float* sums, const float* factor, const float* base,
               float* out, int64_t stride, int64_t n) {
  by_columns(stride, [&](auto* column, int64_t first) {
    by_corners(at.corners, [&](auto corners) {
      slice_add_column<std::remove_pointer_t<decltype(column)>>(
          at, corners, sums + first, factor + first, base + first, out + first, stride, n);
    });
  });
}

template <typename C>
void merge_column(float* slots, const int32_t* offsets, float* sums, int64_t stride, int64_t begin,
                  int64_t end) {
  C zero;
  zero.clear();
  for (int64_t v = begin; v < end; ++v) {
    C total, part;
    total.clear();
    for (int64_t s = offsets[v]; s < offsets[v + 1]; ++s) {
      part.load(slots + s * stride);
      total.add(part);
      zero.store(slots + s * stride);
    }
    total.store(sums + v * stride);
  }
}

void merge(float* slots, const int32_t* offsets, float* sums, int64_t stride, int64_t begin,
           int64_t end) {
  by_columns(stride, [&](auto* column, int64_t first) {
    merge_column<std::remove_pointer_t<decltype(column)>>(slots + first, offsets, sums + first,
                                                          stride, begin, end);
  });
}

template <typename C>
void blur_column(const float* in, const int32_t* neighbours, float* out, int64_t stride,
                 int64_t begin, int64_t end) {
  for (int64_t v = begin; v < end; ++v) {
    C centre, before, after;
    before.load(in + neighbours[2 * v] * stride);
    after.load(in + neighbours[2 * v + 1] * stride);
    centre.load(in + v * stride);
    before.add(after);
    centre.add_scaled(0.5f, before);
    centre.store(out + v * stride);
  }
}

void blur(const float* in, const int32_t* neighbours, float* out, int64_t stride, int64_t begin,
          int64_t end) {
  by_columns(stride, [&](auto* column, int64_t first) {
    blur_column<std::remove_pointer_t<decltype(column)>>(in + first, neighbours, out + first,
                                                         stride, begin, end);
  });
}

SEGKERN_INLINE float largest_of(const HalfRow& h) {
  const QuarterRow a = __builtin_shufflevector(h, h, 0, 1, 2, 3);
  const QuarterRow b = __builtin_shufflevector(h, h, 4, 5, 6, 7);
  const QuarterRow q = a > b ? a : b;
  const float even = q[0] > q[2] ? q[0] : q[2];
  const float odd = q[1] > q[3] ? q[1] : q[3];
  return even > odd ? even : odd;
}

SEGKERN_INLINE float sum_of(const HalfRow& h) {
  const QuarterRow q =
      __builtin_shufflevector(h, h, 0, 1, 2, 3) + __builtin_shufflevector(h, h, 4, 5, 6, 7);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

SEGKERN_INLINE HalfRow low_half(const Row& v) {
  return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
}
SEGKERN_INLINE HalfRow high_half(const Row& v) {
  return __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
}

// e^x for x <= 0 to 1 unit in the last place, by Cephes' polynomial; 0 below -87; NaN stays.
template <typename V, typename I>
SEGKERN_INLINE void exp_vector(const V& x, V& out) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const V t = x * 1.44269504088896341f + magic;
  const V whole = t - magic;
  const V r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const V scaled = (V)((I)p + ((I)t << 23));
  const V zero = {};
  out = x < -87.0f ? zero : (x != x ? x : scaled);
}

// Eight rows of eight become eight columns.
SEGKERN_INLINE void transpose_8x8(HalfRow* r) {
  HalfRow t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = __builtin_shufflevector(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = __builtin_shufflevector(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = __builtin_shufflevector(t[i], t[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    r[i + 1] = __builtin_shufflevector(t[i], t[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    r[i + 2] = __builtin_shufflevector(t[i + 1], t[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    r[i + 3] = __builtin_shufflevector(t[i + 1], t[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = __builtin_shufflevector(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[i + 4] = __builtin_shufflevector(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 8; ++i) {
    r[i] = t[i];
  }
}

// The largest of a row of up to 64 floats, and the sum of such a row, in eight lanes.
template <typename C>
SEGKERN_INLINE HalfRow largest_lanes(const C& z) {
  if (!C::kFull) {
    return z.half;
  }
  Row most = z.full[0];
  for (int k = 1; k < C::kFull; ++k) {
    most = z.full[k] > most ? z.full[k] : most;
  }
  const HalfRow low = low_half(most), high = high_half(most);
  const HalfRow best = low > high ? low : high;
  return C::kHasHalf ? (z.half > best ? z.half : best) : best;
}

template <typename C>
SEGKERN_INLINE HalfRow sum_lanes(const C& z) {
  HalfRow total = {};
  if (C::kFull) {
    Row sums = z.full[0];
    for (int k = 1; k < C::kFull; ++k) {
      sums += z.full[k];
    }
    total = low_half(sums) + high_half(sums);
  }
  return C::kHasHalf ? total + z.half : total;
}

template <typename C>
SEGKERN_INLINE void exp_below(C& z, float top) {
  for (int k = 0; k < C::kFull; ++k) {
    exp_vector<Row, IntRow>(z.full[k] - top, z.full[k]);
  }
  if (C::kHasHalf) {
    exp_vector<HalfRow, IntHalfRow>(z.half - top, z.half);
  }
}

// Two rows, whose halves share a vector.
template <typename C>
SEGKERN_INLINE void exp_below(C& a, float top_a, C& b, float top_b) {
  for (int k = 0; k < C::kFull; ++k) {
    exp_vector<Row, IntRow>(a.full[k] - top_a, a.full[k]);
    exp_vector<Row, IntRow>(b.full[k] - top_b, b.full[k]);
  }
  if (C::kHasHalf) {
    Row both = __builtin_shufflevector(a.half - top_a, b.half - top_b, 0, 1, 2, 3, 4, 5, 6, 7, 8,
                                       9, 10, 11, 12, 13, 14, 15);
    exp_vector<Row, IntRow>(both, both);
    a.half = low_half(both);
    b.half = high_half(both);
  }
}

// Eight rows at a time, whose lanes are transposed to be reduced: one row alone would wait for
// its reductions and its division.
template <typename C>
void softmax_narrow(const float* logits, float* out, int64_t stride, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    HalfRow lanes[8];
    C z;
    for (int r = 0; r < 8; ++r) {
      z.load(logits + (i + r) * stride);
      lanes[r] = largest_lanes(z);
    }
    transpose_8x8(lanes);
    HalfRow top = lanes[0];
    for (int r = 1; r < 8; ++r) {
      top = lanes[r] > top ? lanes[r] : top;
    }
    for (int r = 0; r < 8; r += 2) {
      C next;
      z.load(logits + (i + r) * stride);
      next.load(logits + (i + r + 1) * stride);
      exp_below(z, top[r], next, top[r + 1]);
      lanes[r] = sum_lanes(z);
      lanes[r + 1] = sum_lanes(next);
      z.store(out + (i + r) * stride);
      next.store(out + (i + r + 1) * stride);
    }
    transpose_8x8(lanes);
    const HalfRow total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
                          ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    const HalfRow inverse = 1.0f / total;
    for (int r = 0; r < 8; ++r) {
      z.load(out + (i + r) * stride);
      z.scale(inverse[r]);
      z.store(out + (i + r) * stride);
    }
  }
  for (; i < n; ++i) {
    C z;
    z.load(logits + i * stride);
    exp_below(z, largest_of(largest_lanes(z)));
    z.scale(1.0f / sum_of(sum_lanes(z)));
    z.store(out + i * stride);
  }
}

SEGKERN_INLINE const HalfRowAt* halves(const float* p) {
  return reinterpret_cast<const HalfRowAt*>(p);
}
SEGKERN_INLINE HalfRowAt* halves(float* p) { return reinterpret_cast<HalfRowAt*>(p); }

void softmax(const float* logits, float* out, int64_t stride, int64_t n) {
  if (stride <= 64) {
    by_columns(stride, [&](auto* column, int64_t) {
      softmax_narrow<std::remove_pointer_t<decltype(column)>>(logits, out, stride, n);
    });
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    const HalfRowAt* in = halves(logits + i * stride);
    HalfRowAt* to = halves(out + i * stride);
    HalfRow best = in[0];
    for (int64_t k = 0; k < stride / 8; ++k) {
      const HalfRow v = in[k];
      best = v > best ? v : best;
    }
    const float top = largest_of(best);
    HalfRow total = {};
    for (int64_t k = 0; k < stride / 8; ++k) {
      HalfRow e;
      exp_vector<HalfRow, IntHalfRow>(in[k] - top, e);
      to[k] = e;
      total += e;
    }
    const float inverse = 1.0f / sum_of(total);
    for (int64_t k = 0; k < stride / 8; ++k) {
      to[k] *= inverse;
    }
  }
}

void softmax_backward(const float* q, const float* grad, float* out, int64_t stride, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const HalfRowAt* qi = halves(q + i * stride);
    const HalfRowAt* gi = halves(grad + i * stride);
    HalfRow total = {};
    for (int64_t k = 0; k < stride / 8; ++k) {
      total += qi[k] * gi[k];
    }
    const float mean = sum_of(total);
    for (int64_t k = 0; k < stride / 8; ++k) {
      halves(out + i * stride)[k] = qi[k] * (gi[k] - mean);
    }
  }
}

template <typename C>
void mix_column(const float* in, const float* matrix, float* out, int64_t channels,
                int64_t stride, int64_t n, int64_t first) {
  for (int64_t i = 0; i < n; ++i) {
    C total, row;
    total.load(out + i * stride + first);
    for (int64_t c = 0; c < channels; ++c) {
      row.load(matrix + c * stride + first);
      total.add_scaled(in[i * stride + c], row);
    }
    total.store(out + i * stride + first);
  }
}

void mix_add(const float* in, const float* matrix, float* out, int64_t channels, int64_t stride,
             int64_t n) {
  by_columns(stride, [&](auto* column, int64_t first) {
    mix_column<std::remove_pointer_t<decltype(column)>>(in, matrix, out, channels, stride, n,
                                                        first);
  });
}

void dot_add(const float* a, const float* b, float* sums, int64_t stride, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t k = 0; k < stride / 8; ++k) {
      halves(sums)[k] += halves(a + i * stride)[k] * halves(b + i * stride)[k];
    }
  }
}

void outer_add(const float* a, const float* b, float* matrix, int64_t channels, int64_t stride,
               int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      const float v = a[i * stride + c];
      for (int64_t k = 0; k < stride / 8; ++k) {
        halves(matrix + c * stride)[k] += v * halves(b + i * stride)[k];
      }
    }
  }
}

SEGKERN_INLINE HalfRow load_anywhere(const float* from) {
  HalfRow v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

// Tiles of eight points by eight channels; `fill` stands for channels that are not there.
void pack(const float* planes, int64_t plane, int64_t channels, float sign, float fill,
          float* rows, int64_t stride, int64_t n) {
  HalfRow filler = {};
  filler += fill;
  for (int64_t c = 0; c < stride; c += 8) {
    const int64_t present = channels - c;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      HalfRow tile[8];
      for (int k = 0; k < 8; ++k) {
        const float* from = planes + (c + k) * plane + i;
        tile[k] = k < present ? sign * load_anywhere(from) : filler;
        __builtin_prefetch(from + kStreamAhead);
      }
      transpose_8x8(tile);
      for (int k = 0; k < 8; ++k) {
        *halves(rows + (i + k) * stride + c) = tile[k];
      }
    }
    for (; i < n; ++i) {
      for (int k = 0; k < 8; ++k) {
        rows[i * stride + c + k] = k < present ? sign * planes[(c + k) * plane + i] : fill;
      }
    }
  }
}

void unpack(const float* rows, int64_t stride, int64_t channels, float sign, float* planes,
            int64_t plane, int64_t n) {
  for (int64_t c = 0; c < channels; c += 8) {
    const int64_t present = channels - c < 8 ? channels - c : 8;
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      HalfRow tile[8];
      for (int k = 0; k < 8; ++k) {
        tile[k] = sign * *halves(rows + (i + k) * stride + c);
      }
      transpose_8x8(tile);
      for (int k = 0; k < present; ++k) {
        __builtin_memcpy(planes + (c + k) * plane + i, &tile[k], sizeof(HalfRow));
      }
    }
    for (; i < n; ++i) {
      for (int k = 0; k < present; ++k) {
        planes[(c + k) * plane + i] = sign * rows[i * stride + c + k];
      }
    }
  }
}

// Products and sums are in loops of their own: a compiler that fused them into a multiply-add would
// round differently, and move points to other simplices than on the other levels and devices.
void embed(const double* features, const double* scales, int dims, int32_t* rem0, double* rest,
           int32_t* rank) {
  constexpr int64_t n = kPointBlock;
  const int corners = dims + 1;
  const double inverse = 1.0 / corners;
  double scaled[n], multiple[n], total[n], shift[n];
  int32_t whole[n];
  for (int64_t i = 0; i < n; ++i) {
    total[i] = 0;
  }
  // y_j = (sum of cf_i from j on) - j cf_{j-1}, into `rest`.
  for (int j = dims; j > 0; --j) {
    for (int64_t i = 0; i < n; ++i) {
      scaled[i] = scales[j - 1] * features[(j - 1) * n + i];
    }
    for (int64_t i = 0; i < n; ++i) {
      multiple[i] = j * scaled[i];
    }
    asm volatile("" : : "r"(scaled), "r"(multiple) : "memory");
    for (int64_t i = 0; i < n; ++i) {
      rest[j * n + i] = total[i] - multiple[i];
      total[i] += scaled[i];
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    rest[i] = total[i];
    whole[i] = 0;
  }
  // The nearest multiples of D, ties to even, and what lies behind them (exact products).
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  for (int j = 0; j < corners; ++j) {
    for (int64_t i = 0; i < n; ++i) {
      shift[i] = rest[j * n + i] * inverse;
    }
    asm volatile("" : : "r"(shift) : "memory");
    for (int64_t i = 0; i < n; ++i) {
      const double v = (shift[i] + magic) - magic;
      const int32_t integer = static_cast<int32_t>(v);
      whole[i] += integer;
      rem0[j * n + i] = integer * corners;
      rest[j * n + i] -= v * corners;
    }
  }
  for (int j = 0; j < corners; ++j) {
    for (int64_t i = 0; i < n; ++i) {
      rank[j * n + i] = whole[i];
    }
  }
  for (int a = 0; a < corners; ++a) {
    for (int b = a + 1; b < corners; ++b) {
      for (int64_t i = 0; i < n; ++i) {
        const int32_t less = rest[a * n + i] < rest[b * n + i];
        rank[a * n + i] += less;
        rank[b * n + i] += 1 - less;
      }
    }
  }
  for (int j = 0; j < corners; ++j) {
    for (int64_t i = 0; i < n; ++i) {
      const int32_t r = rank[j * n + i];
      const int32_t move = r < 0 ? corners : r >= corners ? -corners : 0;
      rank[j * n + i] = r + move;
      rem0[j * n + i] += move;
      rest[j * n + i] -= move;
    }
  }
}

#undef SEGKERN_INLINE

inline const LatticeRows kRows = {splat,   slice,   slice_add, merge,     blur,
                                  softmax, softmax_backward,   mix_add,   dot_add,
                                  outer_add, pack,  unpack,    embed};
