// What the CUDA kernels of mean field are launched with. Includes neither torch nor CUDA.
#pragma once

#include "../permutohedral/lattice_params.h"

namespace segkern {

constexpr int kMaxCudaTerms = 4;
constexpr int64_t kMaxCudaLabels = 256;

struct MeanFieldParams {
  int64_t batch, labels, points, stride;
  const float* unary;  // (batch, points, stride) energies
  float* q;            // (batch, points, stride) marginals
  int32_t n_terms;
  struct Term {
    FilterParams filter;  // blurred sums; scale is the factor after the filter
    const float* cost;    // (), (labels,) or (labels, labels)
    int32_t cost_dims;
  } terms[kMaxCudaTerms];
};

}  // namespace segkern
