// Row kernel of the separable Gaussian; compiled once per instruction set (common/cpu_targets.h).
// Every output is summed in the order of its taps, wherever its block begins.

typedef float Row __attribute__((vector_size(64)));
typedef float RowAt __attribute__((vector_size(64), aligned(4), may_alias));

constexpr int64_t kRow = 16;

// K vectors of outputs in registers.
template <int K>
inline __attribute__((always_inline)) void apply_block(const float* in, int64_t step, int64_t below,
                                                       int64_t above, const float* taps,
                                                       float* out) {
  const auto load = [](const float* from, int j) __attribute__((always_inline)) {
    return Row(reinterpret_cast<const RowAt*>(from)[j]);
  };
  const int64_t both = below < above ? below : above;
  Row sum[K];
  for (int j = 0; j < K; ++j) {
    sum[j] = taps[0] * load(in, j);
  }
  int64_t k = 1;
  for (; k <= both; ++k) {
    for (int j = 0; j < K; ++j) {
      sum[j] += taps[k] * (load(in - k * step, j) + load(in + k * step, j));
    }
  }
  const int64_t last = below + above - both, side = below > above ? -step : step;
  for (; k <= last; ++k) {
    for (int j = 0; j < K; ++j) {
      sum[j] += taps[k] * load(in + k * side, j);
    }
  }
  for (int j = 0; j < K; ++j) {
    reinterpret_cast<RowAt*>(out)[j] = sum[j];
  }
}

void apply(const float* in, int64_t step, int64_t below, int64_t above, const float* taps,
           float* out, int64_t n) {
  constexpr int kMany = 4;
  int64_t x = 0;
  for (; x + kMany * kRow <= n; x += kMany * kRow) {
    apply_block<kMany>(in + x, step, below, above, taps, out + x);
  }
  for (; x + kRow <= n; x += kRow) {
    apply_block<1>(in + x, step, below, above, taps, out + x);
  }
  if (x < n && n >= kRow) {  // some outputs twice, to the same result
    x = n - kRow;
    apply_block<1>(in + x, step, below, above, taps, out + x);
    return;
  }
  const int64_t both = below < above ? below : above;
  const int64_t last = below + above - both, side = below > above ? -step : step;
  for (; x < n; ++x) {
    float sum = taps[0] * in[x];
    for (int64_t k = 1; k <= both; ++k) {
      sum += taps[k] * (in[x - k * step] + in[x + k * step]);
    }
    for (int64_t k = both + 1; k <= last; ++k) {
      sum += taps[k] * in[x + k * side];
    }
    out[x] = sum;
  }
}

inline const TapRows kRows = {apply};
