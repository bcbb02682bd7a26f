// Row kernels of pooling and unpooling; compiled once per instruction set (common/cpu_targets.h)
// and vectorised by the compiler. A "row" is n independent elements: windows of one output row in
// the contiguous layout, channels of one window in channels-last.
//
// torch's rule for the maximum: a tap replaces the best so far if it is greater or a NaN. So ties
// go to the first tap in raster order, and a NaN anywhere gives NaN.

// Written so that the compiler turns every loop into straight vector code: all taps are loaded
// before the first comparison, and values, keys and codes have lanes of one width.

// Loops run in blocks of kBlock elements. Left to itself the compiler makes a vector of codes (one
// byte) the unit, 64 windows at AVX-512, and a row of 240 ends in 48 scalars. The last block of a
// row starts early enough to be whole and does some elements twice, to the same result; rows
// shorter than a block are scalar.
constexpr int64_t kBlock = 16;

template <typename Block, typename Rest>
inline void each_block(int64_t n, const Block& block, const Rest& rest) {
  if (n < kBlock) {
    for (int64_t i = 0; i < n; ++i) {
      rest(i);
    }
    return;
  }
  int64_t i = 0;
  for (; i + kBlock <= n; i += kBlock) {
    block(i);
  }
  if (i < n) {
    block(n - kBlock);
  }
}

template <typename Body>
inline void each(int64_t n, const Body& body) {
  each_block(
      n,
      [&](int64_t i) __attribute__((always_inline)) {
#pragma GCC ivdep
        for (int64_t j = 0; j < kBlock; ++j) {
          body(i + j);
        }
      },
      body);
}

// How a type is stored and compared. Floats compare as they are.
template <typename F, typename Int>
struct FloatOrder {
  using Bits = F;
  using Key = F;
  using Code = Int;
  static inline Key key(F v) { return v; }
  static inline bool beats(Key v, Key best) { return (v > best) | (v != v); }
};
using Float32Order = FloatOrder<float, int32_t>;
using Float64Order = FloatOrder<double, int64_t>;

// Half types compare as 16-bit integers in the order of the numbers they stand for: twice the
// lanes of float and no conversion. kInfinity is the bit pattern of infinity.
template <uint16_t kInfinity>
struct HalfOrder {
  using Bits = uint16_t;
  using Key = int16_t;
  using Code = int16_t;
  // Sign and magnitude to two's complement; both zeros give 0, every NaN the largest key.
  static inline Key key(Bits v) {
    const int16_t magnitude = static_cast<int16_t>(v & 0x7fff);
    const int16_t sign = static_cast<int16_t>(static_cast<int16_t>(v) >> 15);
    const int16_t ordered = static_cast<int16_t>((magnitude ^ sign) - sign);
    return magnitude > static_cast<int16_t>(kInfinity) ? int16_t{0x7fff} : ordered;
  }
  static inline bool beats(Key v, Key best) { return (v > best) | (v == 0x7fff); }
};
using Float16Order = HalfOrder<0x7c00>;
using BFloat16Order = HalfOrder<0x7f80>;

// The best of the taps seen so far.
template <typename O>
struct Best {
  typename O::Bits value;
  typename O::Key key;
  typename O::Code code;

  inline void challenge(typename O::Bits v, typename O::Code k) {
    const typename O::Key v_key = O::key(v);
    const bool take = O::beats(v_key, key);
    value = take ? v : value;
    key = take ? v_key : key;
    code = take ? k : code;
  }
};

template <typename O>
inline Best<O> best_of_4(typename O::Bits a, typename O::Bits b, typename O::Bits c,
                         typename O::Bits d) {
  Best<O> best{a, O::key(a), 0};
  best.challenge(b, 1);
  best.challenge(c, 2);
  best.challenge(d, 3);
  return best;
}

// each(), for a body that returns an element's code. Codes are gathered as wide as the elements and
// narrowed afterwards: a store of bytes inside the loop would shrink its vectors to 16 lanes of one
// byte, four floats.
template <typename O, typename Body>
inline void each_coded(int64_t n, uint8_t* __restrict__ code, const Body& body) {
  each_block(
      n,
      [&](int64_t i) __attribute__((always_inline)) {
        typename O::Code wide[kBlock];
#pragma GCC ivdep
        for (int64_t j = 0; j < kBlock; ++j) {
          wide[j] = body(i + j);
        }
#pragma GCC ivdep
        for (int64_t j = 0; j < kBlock; ++j) {
          code[i + j] = static_cast<uint8_t>(wide[j]);
        }
      },
      [&](int64_t i) { code[i] = static_cast<uint8_t>(body(i)); });
}

// The same for a body that reads an element's code, as a lane of type Lane; returns the bitwise or
// of all codes.
template <typename Lane, typename Body>
inline int each_decoded(int64_t n, const uint8_t* __restrict__ code, const Body& body) {
  Lane seen = 0;
  each_block(
      n,
      [&](int64_t i) __attribute__((always_inline)) {
        Lane wide[kBlock];
#pragma GCC ivdep
        for (int64_t j = 0; j < kBlock; ++j) {
          wide[j] = code[i + j];
        }
#pragma GCC ivdep
        for (int64_t j = 0; j < kBlock; ++j) {
          seen |= wide[j];
          body(i + j, wide[j]);
        }
      },
      [&](int64_t i) __attribute__((always_inline)) {
        seen |= code[i];
        body(i, static_cast<Lane>(code[i]));
      });
  return static_cast<int>(seen);
}

// One row of 2x2 windows, stride 2: rows r0 and r1 hold 2n elements.
template <typename O>
void max_2x2(const void* row0, const void* row1, void* out, uint8_t* __restrict__ code,
             int64_t n) {
  const auto* __restrict__ r0 = static_cast<const typename O::Bits*>(row0);
  const auto* __restrict__ r1 = static_cast<const typename O::Bits*>(row1);
  auto* __restrict__ y = static_cast<typename O::Bits*>(out);
  each_coded<O>(n, code, [&](int64_t i) {
    const Best<O> best = best_of_4<O>(r0[2 * i], r0[2 * i + 1], r1[2 * i], r1[2 * i + 1]);
    y[i] = best.value;
    return best.code;
  });
}

// One channels-last window of four taps over n channels.
template <typename O>
void max_4(const void* tap0, const void* tap1, const void* tap2, const void* tap3, void* out,
           uint8_t* __restrict__ code, int64_t n) {
  const auto* __restrict__ a = static_cast<const typename O::Bits*>(tap0);
  const auto* __restrict__ b = static_cast<const typename O::Bits*>(tap1);
  const auto* __restrict__ c = static_cast<const typename O::Bits*>(tap2);
  const auto* __restrict__ d = static_cast<const typename O::Bits*>(tap3);
  auto* __restrict__ y = static_cast<typename O::Bits*>(out);
  each_coded<O>(n, code, [&](int64_t i) {
    const Best<O> best = best_of_4<O>(a[i], b[i], c[i], d[i]);
    y[i] = best.value;
    return best.code;
  });
}

// Lets tap k, read from x at a stride, compete for n windows that hold a best so far.
template <typename O, int64_t kStride>
void max_tap_strided(const typename O::Bits* __restrict__ x, int64_t stride,
                     typename O::Bits* __restrict__ y, uint8_t* __restrict__ code, uint8_t k,
                     int64_t n) {
  const int64_t step = kStride ? kStride : stride;
  each(n, [&](int64_t i) {
    Best<O> best{y[i], O::key(y[i]), static_cast<typename O::Code>(code[i])};
    best.challenge(x[i * step], k);
    y[i] = best.value;
    code[i] = static_cast<uint8_t>(best.code);
  });
}

template <typename O>
void max_tap(const void* x, int64_t stride, void* y, uint8_t* code, uint8_t k, int64_t n) {
  const auto* in = static_cast<const typename O::Bits*>(x);
  auto* out = static_cast<typename O::Bits*>(y);
  switch (stride) {
    case 1:
      return max_tap_strided<O, 1>(in, 1, out, code, k, n);
    case 2:
      return max_tap_strided<O, 2>(in, 2, out, code, k, n);
    default:
      return max_tap_strided<O, 0>(in, stride, out, code, k, n);
  }
}

// The moves below only copy bits: U is an unsigned integer of the element's size. They return the
// bitwise or of the codes, from which the caller sees whether one was out of range.

// Writes 2x2 windows out: each value at its place, zeros elsewhere. In vectors of kBlock elements,
// spelled out because the compiler finds no good code for interleaved stores.
template <typename U>
int expand_2x2(const void* windows, const uint8_t* code, void* row0, void* row1, int64_t n) {
  typedef U Lanes __attribute__((vector_size(kBlock * sizeof(U))));
  typedef uint8_t Codes __attribute__((vector_size(kBlock)));
  const U* y = static_cast<const U*>(windows);
  U* r0 = static_cast<U*>(row0);
  U* r1 = static_cast<U*>(row1);
  const Lanes zero = {};
  Lanes all = {};
  U seen = 0;
  each_block(
      n,
      [&](int64_t i) __attribute__((always_inline)) {
        Lanes v;
        Codes bytes;
        __builtin_memcpy(&v, y + i, sizeof(v));
        __builtin_memcpy(&bytes, code + i, sizeof(bytes));
        const Lanes k = __builtin_convertvector(bytes, Lanes);
        all |= k;
        const Lanes tap[4] = {k == 0 ? v : zero, k == 1 ? v : zero, k == 2 ? v : zero,
                              k == 3 ? v : zero};
        for (int row = 0; row < 2; ++row) {
          const Lanes even = tap[2 * row];
          const Lanes odd = tap[2 * row + 1];
          const Lanes first = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4,
                                                      20, 5, 21, 6, 22, 7, 23);
          const Lanes second = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27,
                                                       12, 28, 13, 29, 14, 30, 15, 31);
          U* to = (row ? r1 : r0) + 2 * i;
          __builtin_memcpy(to, &first, sizeof(first));
          __builtin_memcpy(to + kBlock, &second, sizeof(second));
        }
      },
      [&](int64_t i) __attribute__((always_inline)) {
        seen |= code[i];
        r0[2 * i] = code[i] == 0 ? y[i] : U{0};
        r0[2 * i + 1] = code[i] == 1 ? y[i] : U{0};
        r1[2 * i] = code[i] == 2 ? y[i] : U{0};
        r1[2 * i + 1] = code[i] == 3 ? y[i] : U{0};
      });
  for (int64_t lane = 0; lane < kBlock; ++lane) {
    seen |= all[lane];
  }
  return static_cast<int>(seen);
}

// Eight bytes: vectors of kBlock would not fit a register, and plain arithmetic does well.
template <>
int expand_2x2<uint64_t>(const void* windows, const uint8_t* code, void* row0, void* row1,
                         int64_t n) {
  const uint64_t* __restrict__ y = static_cast<const uint64_t*>(windows);
  uint64_t* __restrict__ r0 = static_cast<uint64_t*>(row0);
  uint64_t* __restrict__ r1 = static_cast<uint64_t*>(row1);
  return each_decoded<uint64_t>(n, code, [&](int64_t i, uint64_t k) {
    const uint64_t right = -(k & 1);     // all ones for codes 1 and 3
    const uint64_t low = -(k >> 1 & 1);  // all ones for codes 2 and 3
    r0[2 * i] = y[i] & ~low & ~right;
    r0[2 * i + 1] = y[i] & ~low & right;
    r1[2 * i] = y[i] & low & ~right;
    r1[2 * i + 1] = y[i] & low & right;
  });
}

template <typename U>
inline U pick(U k, U a, U b, U c, U d) {
  const U low = k & 1 ? b : a;
  const U high = k & 1 ? d : c;
  return k & 2 ? high : low;
}

// The inverse: picks each window's element.
template <typename U>
int select_2x2(const void* row0, const void* row1, const uint8_t* __restrict__ code, void* windows,
               int64_t n) {
  const U* __restrict__ r0 = static_cast<const U*>(row0);
  const U* __restrict__ r1 = static_cast<const U*>(row1);
  U* __restrict__ y = static_cast<U*>(windows);
  return each_decoded<U>(n, code, [&](int64_t i, U k) {
    const U a = r0[2 * i], b = r0[2 * i + 1], c = r1[2 * i], d = r1[2 * i + 1];
    y[i] = pick<U>(k, a, b, c, d);
  });
}

// The same for one channels-last window of four taps over n channels.
template <typename U>
int expand_4(const void* window, const uint8_t* __restrict__ code, void* tap0, void* tap1,
             void* tap2, void* tap3, int64_t n) {
  const U* __restrict__ y = static_cast<const U*>(window);
  U* __restrict__ a = static_cast<U*>(tap0);
  U* __restrict__ b = static_cast<U*>(tap1);
  U* __restrict__ c = static_cast<U*>(tap2);
  U* __restrict__ d = static_cast<U*>(tap3);
  return each_decoded<U>(n, code, [&](int64_t i, U k) {
    const U v = y[i];
    a[i] = k == 0 ? v : U{0};
    b[i] = k == 1 ? v : U{0};
    c[i] = k == 2 ? v : U{0};
    d[i] = k == 3 ? v : U{0};
  });
}

template <typename U>
int select_4(const void* tap0, const void* tap1, const void* tap2, const void* tap3,
             const uint8_t* __restrict__ code, void* window, int64_t n) {
  const U* __restrict__ a = static_cast<const U*>(tap0);
  const U* __restrict__ b = static_cast<const U*>(tap1);
  const U* __restrict__ c = static_cast<const U*>(tap2);
  const U* __restrict__ d = static_cast<const U*>(tap3);
  U* __restrict__ y = static_cast<U*>(window);
  return each_decoded<U>(n, code, [&](int64_t i, U k) {
    y[i] = pick<U>(k, a[i], b[i], c[i], d[i]);
  });
}

// Channels-last windows of any size: the share of tap k over n channels.
template <typename U>
void expand_tap(const void* window, const uint8_t* __restrict__ code, uint8_t k, void* out,
                int64_t n) {
  const U* __restrict__ y = static_cast<const U*>(window);
  U* __restrict__ to = static_cast<U*>(out);
  each(n, [&](int64_t i) {
    const U v = y[i];
    to[i] = static_cast<U>(code[i]) == k ? v : U{0};
  });
}

template <typename U>
void select_tap(const void* in, const uint8_t* __restrict__ code, uint8_t k, void* window,
                int64_t n) {
  const U* __restrict__ x = static_cast<const U*>(in);
  U* __restrict__ y = static_cast<U*>(window);
  each(n, [&](int64_t i) {
    const U v = x[i];
    const U old = y[i];
    y[i] = static_cast<U>(code[i]) == k ? v : old;
  });
}

inline int largest_code(const uint8_t* __restrict__ code, int64_t n) {
  uint8_t largest = 0;
  each(n, [&](int64_t i) {
    largest = code[i] > largest ? code[i] : largest;
  });
  return largest;
}

// Eight codes of one byte to and from eight fields of kBits bits.
template <int kBits>
inline uint64_t squeeze(uint64_t bytes) {
#if defined(__BMI2__)
  return _pext_u64(bytes, kBits == 2 ? 0x0303030303030303u : 0x0f0f0f0f0f0f0f0fu);
#else
  if (kBits == 2) {
    bytes = (bytes | bytes >> 6) & 0x000f000f000f000fu;
    bytes = (bytes | bytes >> 12) & 0x000000ff000000ffu;
    return (bytes | bytes >> 24) & 0xffffu;
  }
  bytes = (bytes | bytes >> 4) & 0x00ff00ff00ff00ffu;
  bytes = (bytes | bytes >> 8) & 0x0000ffff0000ffffu;
  return (bytes | bytes >> 16) & 0xffffffffu;
#endif
}

template <int kBits>
inline uint64_t spread(uint64_t fields) {
#if defined(__BMI2__)
  return _pdep_u64(fields, kBits == 2 ? 0x0303030303030303u : 0x0f0f0f0f0f0f0f0fu);
#else
  if (kBits == 2) {
    fields = (fields | fields << 24) & 0x000000ff000000ffu;
    fields = (fields | fields << 12) & 0x000f000f000f000fu;
    return (fields | fields << 6) & 0x0303030303030303u;
  }
  fields = (fields | fields << 16) & 0x0000ffff0000ffffu;
  fields = (fields | fields << 8) & 0x00ff00ff00ff00ffu;
  return (fields | fields << 4) & 0x0f0f0f0f0f0f0f0fu;
#endif
}

// A row of codes to words and back; `code` is padded with zeros to whole words.
template <int kBits>
void pack_bits(const uint8_t* code, uint32_t* words, int64_t n_words) {
  constexpr int kBytes = 32 / kBits;  // codes in a word
  for (int64_t i = 0; i < n_words; ++i) {
    uint64_t word = 0;
    for (int b = 0; b < kBytes; b += 8) {
      uint64_t bytes;
      __builtin_memcpy(&bytes, code + i * kBytes + b, 8);
      word |= squeeze<kBits>(bytes) << (b * kBits);
    }
    words[i] = static_cast<uint32_t>(word);
  }
}

template <int kBits>
void unpack_bits(const uint32_t* words, uint8_t* code, int64_t n_words) {
  constexpr int kBytes = 32 / kBits;
  for (int64_t i = 0; i < n_words; ++i) {
    for (int b = 0; b < kBytes; b += 8) {
      const uint64_t fields = words[i] >> (b * kBits) & (kBits == 2 ? 0xffffu : 0xffffffffu);
      const uint64_t bytes = spread<kBits>(fields);
      __builtin_memcpy(code + i * kBytes + b, &bytes, 8);
    }
  }
}

inline void pack_row(const uint8_t* code, uint32_t* words, int64_t n_words, int bits) {
  bits == 2 ? pack_bits<2>(code, words, n_words) : pack_bits<4>(code, words, n_words);
}

inline void unpack_row(const uint32_t* words, uint8_t* code, int64_t n_words, int bits) {
  bits == 2 ? unpack_bits<2>(words, code, n_words) : unpack_bits<4>(words, code, n_words);
}

// Channels-last: the codes of one window over n channels into, or out of, n words.
typedef uint32_t BlockWords __attribute__((vector_size(kBlock * sizeof(uint32_t))));
typedef uint8_t BlockCodes __attribute__((vector_size(kBlock)));

inline void pack_lane(const uint8_t* code, int shift, uint32_t* words, int64_t n) {
  each_block(
      n,
      [&](int64_t i) __attribute__((always_inline)) {
        BlockCodes codes;
        BlockWords word;
        __builtin_memcpy(&codes, code + i, sizeof(codes));
        __builtin_memcpy(&word, words + i, sizeof(word));
        word |= __builtin_convertvector(codes, BlockWords) << static_cast<uint32_t>(shift);
        __builtin_memcpy(words + i, &word, sizeof(word));
      },
      [&](int64_t i) { words[i] |= static_cast<uint32_t>(code[i]) << shift; });
}

inline void unpack_lane(const uint32_t* words, int shift, uint32_t mask, uint8_t* code,
                        int64_t n) {
  each_block(
      n,
      [&](int64_t i) __attribute__((always_inline)) {
        BlockWords word;
        __builtin_memcpy(&word, words + i, sizeof(word));
        const BlockWords fields = word >> static_cast<uint32_t>(shift) & mask;
        const BlockCodes codes = __builtin_convertvector(fields, BlockCodes);
        __builtin_memcpy(code + i, &codes, sizeof(codes));
      },
      [&](int64_t i) { code[i] = static_cast<uint8_t>(words[i] >> shift & mask); });
}

template <typename O>
constexpr MaxRows max_rows() {
  return {max_2x2<O>, max_4<O>, max_tap<O>};
}

template <typename U>
constexpr MoveRows move_rows() {
  return {expand_2x2<U>, select_2x2<U>, expand_4<U>, select_4<U>, expand_tap<U>, select_tap<U>};
}

// Indexed by Element: float64, float32, float16, bfloat16.
inline const PoolRows kRows = {
    {max_rows<Float64Order>(), max_rows<Float32Order>(), max_rows<Float16Order>(),
     max_rows<BFloat16Order>()},
    {move_rows<uint64_t>(), move_rows<uint32_t>(), move_rows<uint16_t>(), move_rows<uint16_t>()},
    largest_code,
    pack_row,
    unpack_row,
    pack_lane,
    unpack_lane,
};
