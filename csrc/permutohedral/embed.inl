// Part of rows.inl: points into the lattice.

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
