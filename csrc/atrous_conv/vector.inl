// One vector register of T. Included by row kernels that are compiled once per instruction set
// (common/each_cpu_target.inl).

constexpr int kVectorBytes = SEGKERN_VECTOR_BYTES;

template <typename T>
struct Vec {
  static constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));
  typedef T Type __attribute__((vector_size(kVectorBytes)));
  Type v;

  static SEGKERN_INLINE Vec load(const T* from) {
    Vec out;
    std::memcpy(&out.v, from, sizeof(out.v));
    return out;
  }
  SEGKERN_INLINE void store(T* to) const { std::memcpy(to, &v, sizeof(v)); }
  static SEGKERN_INLINE Vec of(T value) {
    Vec out;
    out.v = Type{} + value;
    return out;
  }
  SEGKERN_INLINE void add_product(const Vec& a, const Vec& b) { v += a.v * b.v; }
};
