// Row kernels of bilinear resampling; compiled once per instruction set (common/cpu_targets.h).
// What has a weight of 0 adds nothing: infinities and NaNs do not spread from there.

template <typename T>
struct Wide {
  typedef T V __attribute__((vector_size(64)));
  static constexpr int kLanes = 64 / static_cast<int>(sizeof(T));

  static inline __attribute__((always_inline)) V load(const T* from) {
    V v;
    std::memcpy(&v, from, sizeof(v));
    return v;
  }
  static inline __attribute__((always_inline)) void store(T* to, const V& v) {
    std::memcpy(to, &v, sizeof(v));
  }
};

template <typename T>
void expand(const T* in, const int64_t* first, const T* near, const T* far, int64_t n, T* out) {
  for (int64_t o = 0; o < n; ++o) {
    const T* at = in + first[o];
    out[o] = near[o] * at[0] + far[o] * (far[o] != T(0) ? at[1] : T(0));
  }
}

// A block's inputs lie within one vector register or two, from which the lanes are picked.
#if defined(__GNUC__) && !defined(__clang__) && SEGKERN_VECTOR_BYTES >= 32
constexpr int kPickBytes = SEGKERN_VECTOR_BYTES;
#else
constexpr int kPickBytes = 0;  // picked one by one: expand
#endif

template <typename T, bool kPairs>
inline __attribute__((always_inline)) void expand_some(const T* in, const BlockTable<T>& table,
                                                       T* out) {
#if defined(__GNUC__) && !defined(__clang__) && SEGKERN_VECTOR_BYTES >= 32
  constexpr int L = kPickBytes / static_cast<int>(sizeof(T));
  typedef T V __attribute__((vector_size(kPickBytes)));
  typedef std::conditional_t<sizeof(T) == 8, int64_t, int32_t> I;
  typedef I M __attribute__((vector_size(kPickBytes)));
  const I* lanes = static_cast<const I*>(table.lane);
  const auto pick = [](const T* from, const M& lane) __attribute__((always_inline)) {
    V first, second;
    std::memcpy(&first, from, sizeof(V));
    if (!kPairs) {
      return V(__builtin_shuffle(first, lane));
    }
    std::memcpy(&second, from + L, sizeof(V));
    return V(__builtin_shuffle(first, second, lane));
  };
  for (int64_t b = 0; b < table.blocks; ++b) {
    const T* at = in + table.base[b];
    V near, far;
    M lane;
    std::memcpy(&lane, lanes + b * L, sizeof(M));
    std::memcpy(&near, table.near + b * L, sizeof(V));
    std::memcpy(&far, table.far + b * L, sizeof(V));
    const V behind = V(M(pick(at + 1, lane)) & M(far != V{}));
    const V made = near * pick(at, lane) + far * behind;
    std::memcpy(out + b * L, &made, sizeof(V));
  }
#else
  (void)in, (void)table, (void)out;
#endif
}

template <typename T>
void expand_blocks(const T* in, const BlockTable<T>& table, T* out) {
  table.pairs ? expand_some<T, true>(in, table, out) : expand_some<T, false>(in, table, out);
}

template <typename T>
void expand_pixels(const T* in, int64_t origin, const int64_t* first, const T* near, const T* far,
                   int64_t n, int64_t channels, T* out) {
  using W = Wide<T>;
  for (int64_t o = 0; o < n; ++o) {
    const T* at = in + (first[o] - origin) * channels;
    T* to = out + o * channels;
    const T a = near[o], b = far[o];
    if (b == T(0)) {
      for (int64_t c = 0; c < channels; c += W::kLanes) {
        W::store(to + c, a * W::load(at + c));
      }
      continue;
    }
    for (int64_t c = 0; c < channels; c += W::kLanes) {
      W::store(to + c, a * W::load(at + c) + b * W::load(at + channels + c));
    }
  }
}

template <typename T>
void blend(const T* a, const T* b, const T* near, const T* far, int64_t rows, int64_t n, T* out) {
  using W = Wide<T>;
  constexpr int L = W::kLanes;
  for (int64_t r = 0; r < rows; ++r, out += n) {
    const T u = near[r], v = far[r];
    if (v == T(0)) {
      std::memcpy(out, a, n * sizeof(T));
      continue;
    }
    int64_t x = 0;
    for (; x + L <= n; x += L) {
      W::store(out + x, u * W::load(a + x) + v * W::load(b + x));
    }
    if (x < n && n >= L) {  // some outputs twice, to the same result
      x = n - L;
      W::store(out + x, u * W::load(a + x) + v * W::load(b + x));
      continue;
    }
    for (; x < n; ++x) {
      out[x] = u * a[x] + v * b[x];
    }
  }
}

// A vector past the caches where it is wanted and the processor has the store; `to` is aligned.
template <typename T>
inline __attribute__((always_inline)) void put(T* to, const typename Wide<T>::V& v, bool past) {
#if defined(SEGKERN_X86_TARGETS)
  if (past) {
#if SEGKERN_VECTOR_BYTES == 64
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<const __m512i&>(v));
#else
    __m128i parts[4];
    std::memcpy(parts, &v, sizeof(v));
    for (int i = 0; i < 4; ++i) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to) + i, parts[i]);
    }
#endif
    return;
  }
#endif
  Wide<T>::store(to, v);
}

template <typename T>
void blend_pixels(const T* one, const T* two, const int64_t* first, const T* near, const T* far,
                  T above, T below, int64_t n, int64_t channels, bool past, T* out) {
  using W = Wide<T>;
  for (int64_t o = 0; o < n; ++o) {
    const T u = near[o], v = far[o];
    const T* a = one + first[o] * channels;
    const T* c = two + first[o] * channels;
    // Where a weight is 0 the other pixel stands in for the one that is not to be read.
    const int64_t right = v == T(0) ? 0 : channels;
    T* to = out + o * channels;
    if (below == T(0)) {
      for (int64_t k = 0; k < channels; k += W::kLanes) {
        put<T>(to + k, u * W::load(a + k) + v * W::load(a + k + right), past);
      }
      continue;
    }
    for (int64_t k = 0; k < channels; k += W::kLanes) {
      const typename W::V top = u * W::load(a + k) + v * W::load(a + k + right);
      const typename W::V bottom = u * W::load(c + k) + v * W::load(c + k + right);
      put<T>(to + k, above * top + below * bottom, past);
    }
  }
}

// K vectors of both sums in registers.
template <typename T, int K>
inline __attribute__((always_inline)) void gather_block(const T* in, int64_t step, const T* near,
                                                        const T* far, int64_t count,
                                                        const T* carried, bool add, T* sum,
                                                        T* carry) {
  using W = Wide<T>;
  typename W::V here[K], behind[K];
  for (int j = 0; j < K; ++j) {
    const T* from = add ? sum : carried;
    here[j] = from ? W::load(from + j * W::kLanes) : typename W::V{};
    behind[j] = add ? W::load(carry + j * W::kLanes) : typename W::V{};
  }
  for (int64_t k = 0; k < count; ++k, in += step) {
    const T u = near[k], v = far[k];
    if (v == T(0)) {
      for (int j = 0; j < K; ++j) {
        here[j] += u * W::load(in + j * W::kLanes);
      }
      continue;
    }
    for (int j = 0; j < K; ++j) {
      const typename W::V row = W::load(in + j * W::kLanes);
      here[j] += u * row;
      behind[j] += v * row;
    }
  }
  for (int j = 0; j < K; ++j) {
    W::store(sum + j * W::kLanes, here[j]);
    W::store(carry + j * W::kLanes, behind[j]);
  }
}

template <typename T>
void gather(const T* in, int64_t step, const T* near, const T* far, int64_t count, int64_t n,
            const T* carried, bool add, T* sum, T* carry) {
  constexpr int L = Wide<T>::kLanes;
  constexpr int kMany = 4;
  const auto at = [&](int64_t x) { return carried ? carried + x : nullptr; };
  int64_t x = 0;
  for (; x + kMany * L <= n; x += kMany * L) {
    gather_block<T, kMany>(in + x, step, near, far, count, at(x), add, sum + x, carry + x);
  }
  for (; x + L <= n; x += L) {
    gather_block<T, 1>(in + x, step, near, far, count, at(x), add, sum + x, carry + x);
  }
  if (x < n && n >= L) {  // some sums twice, to the same numbers
    x = n - L;
    gather_block<T, 1>(in + x, step, near, far, count, at(x), add, sum + x, carry + x);
    return;
  }
  for (; x < n; ++x) {
    T here = carried ? carried[x] : T(0), behind = 0;
    for (int64_t k = 0; k < count; ++k) {
      const T value = in[k * step + x];
      here += near[k] * value;
      behind += far[k] == T(0) ? T(0) : far[k] * value;
    }
    sum[x] = here;
    carry[x] = behind;
  }
}

// K vectors of results in registers.
template <typename T, int K>
inline __attribute__((always_inline)) void mix_block(const T* in, int64_t step, const T* weights,
                                                     int64_t count, T* out) {
  using W = Wide<T>;
  typename W::V sum[K];
  for (int j = 0; j < K; ++j) {
    sum[j] = typename W::V{};
  }
  for (int64_t k = 0; k < count; ++k) {
    const T w = weights[k];
    for (int j = 0; j < K; ++j) {
      sum[j] += w * W::load(in + k * step + j * W::kLanes);
    }
  }
  for (int j = 0; j < K; ++j) {
    W::store(out + j * W::kLanes, sum[j]);
  }
}

template <typename T>
void mix_pixels(const T* in, int64_t origin, const int64_t* begin, const int64_t* start,
                const T* weights, int64_t n, int64_t channels, T* out) {
  constexpr int L = Wide<T>::kLanes;
  constexpr int kMany = 4;
  for (int64_t i = 0; i < n; ++i) {
    const T* at = in + (begin[i] - origin) * channels;
    const T* w = weights + start[i];
    const int64_t count = start[i + 1] - start[i];
    T* to = out + i * channels;
    int64_t c = 0;
    for (; c + kMany * L <= channels; c += kMany * L) {
      mix_block<T, kMany>(at + c, channels, w, count, to + c);
    }
    for (; c < channels; c += L) {
      mix_block<T, 1>(at + c, channels, w, count, to + c);
    }
  }
}

template <typename T>
constexpr ResizeRows<T> kRowsOf = {
    kPickBytes / static_cast<int>(sizeof(T)),
    expand<T>,
    expand_blocks<T>,
    expand_pixels<T>,
    blend<T>,
    blend_pixels<T>,
    gather<T>,
    mix_pixels<T>,
};

inline const ResizeRowTable kRows = {kRowsOf<float>, kRowsOf<double>};
