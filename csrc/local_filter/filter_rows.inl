// Row kernels of the local filter; see common/cpu_targets.h for how this file is included. A column
// holds kSums sums over the window's rows: of v times 1, x, y, |I|^2, x^2 + y^2 and each colour.

// columns += factor * the terms of one row of values.
template <int C>
void add_row(const double* values, double factor, const double* colours, double y, int64_t width,
             double* columns) {
  constexpr int kSums = 5 + C;
  for (int64_t i = 0; i < width; ++i) {
    const double v = factor * values[i];
    const double x = static_cast<double>(i);
    double term[kSums];
    term[0] = 1;
    term[1] = x;
    term[2] = y;
    term[3] = 0;
    term[4] = x * x + y * y;
    for (int c = 0; c < C; ++c) {
      const double colour = colours[c * width + i];
      term[3] += colour * colour;
      term[5 + c] = colour;
    }
    for (int k = 0; k < kSums; ++k) {
      columns[i * kSums + k] += v * term[k];
    }
  }
}

// The two results of a row, from the columns' sums.
template <int C>
void slide_row(const double* columns, const double* colours, double y, int64_t width,
               int64_t first, int64_t kernel, double* colour_out, double* position_out) {
  constexpr int kSums = 5 + C;
  double sum[kSums] = {};
  const int64_t before = first + kernel - 1 < width ? first + kernel - 1 : width;
  for (int64_t i = 0; i < before; ++i) {
    for (int k = 0; k < kSums; ++k) {
      sum[k] += columns[i * kSums + k];
    }
  }
  for (int64_t i = 0; i < width; ++i) {
    const int64_t enters = i + first + kernel - 1, leaves = i + first;
    if (enters < width) {
      for (int k = 0; k < kSums; ++k) {
        sum[k] += columns[enters * kSums + k];
      }
    }
    const double x = static_cast<double>(i);
    double square = 0, mixed = 0;
    for (int c = 0; c < C; ++c) {
      const double colour = colours[c * width + i];
      square += colour * colour;
      mixed += colour * sum[5 + c];
    }
    colour_out[i] = square * sum[0] - 2 * mixed + sum[3];
    position_out[i] = (x * x + y * y) * sum[0] - 2 * (x * sum[1] + y * sum[2]) + sum[4];
    if (leaves >= 0) {
      for (int k = 0; k < kSums; ++k) {
        sum[k] -= columns[leaves * kSums + k];
      }
    }
  }
}

constexpr FilterRows kRows[kMaxColours] = {
    {add_row<1>, slide_row<1>},
    {add_row<2>, slide_row<2>},
    {add_row<3>, slide_row<3>},
    {add_row<4>, slide_row<4>},
};
