// Part of rows.inl: vectors, and rows held in them.

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
