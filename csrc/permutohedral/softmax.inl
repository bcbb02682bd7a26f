// Part of rows.inl: softmax of rows, and its gradient.

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
