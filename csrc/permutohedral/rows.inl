// Row kernels of the lattice; compiled once per instruction set (common/cpu_targets.h). Sums are
// rounded as that set's multiply-add rounds them, so levels differ in the last bits; the embedding
// decides which vertices exist and is the same to the bit at every level.

#include "columns.inl"

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

#include "softmax.inl"

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

#include "embed.inl"

#undef SEGKERN_INLINE

inline const LatticeRows kRows = {splat,   slice,   slice_add, merge,     blur,
                                  softmax, softmax_backward,   mix_add,   dot_add,
                                  outer_add, pack,  unpack,    embed};
