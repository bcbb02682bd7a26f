// Row kernels of packed masks; compiled once per instruction set (common/cpu_targets.h).

int64_t shared_bits(const uint32_t* a, const uint32_t* b, int64_t words) {
  int64_t sum = 0, i = 0;
  for (; i + 2 <= words; i += 2) {
    uint64_t x, y;
    __builtin_memcpy(&x, a + i, 8);
    __builtin_memcpy(&y, b + i, 8);
    sum += __builtin_popcountll(x & y);
  }
  return i < words ? sum + __builtin_popcount(a[i] & b[i]) : sum;
}

int64_t measure_row(const uint32_t* row, uint32_t* columns, int64_t words) {
  int64_t sum = 0;
  for (int64_t i = 0; i < words; ++i) {
    sum += __builtin_popcount(row[i]);
    columns[i] |= row[i];
  }
  return sum;
}

// The word of the elements from `first` on that are in the mask.
template <typename Test>
inline uint32_t tail_word(int64_t first, int64_t width, const Test& in_mask) {
  uint32_t word = 0;
  for (int64_t i = first; i < width; ++i) {
    word |= static_cast<uint32_t>(in_mask(i)) << (i - first);
  }
  return word;
}

void pack_byte_row(const uint8_t* in, uint32_t* out, int64_t width) {
  int64_t i = 0;
#if defined(SEGKERN_X86_TARGETS)
  const __m128i zero = _mm_setzero_si128();
  for (; i + 32 <= width; i += 32) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i + 16));
    const uint32_t none = static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(low, zero))) |
                          static_cast<uint32_t>(_mm_movemask_epi8(_mm_cmpeq_epi8(high, zero)))
                              << 16;
    out[i / 32] = ~none;
  }
#endif
  for (; i < width; i += 32) {
    const int64_t end = width < i + 32 ? width : i + 32;
    out[i / 32] = tail_word(i, end, [&](int64_t x) { return in[x] != 0; });
  }
}

void pack_float_row(const float* in, float threshold, uint32_t* out, int64_t width) {
  int64_t i = 0;
#if defined(SEGKERN_X86_TARGETS)
  const __m128 least = _mm_set1_ps(threshold);
  for (; i + 32 <= width; i += 32) {
    uint32_t word = 0;
    for (int k = 0; k < 8; ++k) {
      const __m128 x = _mm_loadu_ps(in + i + 4 * k);
      word |= static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps(x, least))) << (4 * k);
    }
    out[i / 32] = word;
  }
#endif
  for (; i < width; i += 32) {
    const int64_t end = width < i + 32 ? width : i + 32;
    out[i / 32] = tail_word(i, end, [&](int64_t x) { return in[x] > threshold; });
  }
}

// exp(-|x|) as 2^n 2^f with f from -1/2 to 1/2, the latter by its series; within 4e-6 of the value,
// 3e-7 where that exceeds 1e-3.
float probability_sum(const float* logits, uint32_t bits) {
  float terms[32];
  for (int i = 0; i < 32; ++i) {
    const float x = logits[i];
    const float size = x < 0 ? -x : x;
    const float t = size < 80.0f ? size * -1.44269504f : -115.0f;
    const int32_t n = static_cast<int32_t>(t - 0.5f);
    const float f = (t - static_cast<float>(n)) * 0.693147181f;
    float e = 1.0f + f * (1.0f / 6);
    e = 1.0f + f * 0.2f * e;
    e = 1.0f + f * 0.25f * e;
    e = 1.0f + f * (1.0f / 3) * e;
    e = 1.0f + f * 0.5f * e;
    e = 1.0f + f * e;
    const int32_t power = (n + 127) << 23;
    float scale;
    __builtin_memcpy(&scale, &power, 4);
    e *= scale;
    const float p = (x < 0 ? e : 1.0f) / (1.0f + e);
    terms[i] = (bits >> i & 1u) ? p : 0.0f;
  }
  float sum = 0;
  for (int i = 0; i < 32; ++i) {
    sum += terms[i];
  }
  return sum;
}

constexpr MaskRows kRows = {shared_bits, measure_row, pack_byte_row, pack_float_row,
                            probability_sum};
