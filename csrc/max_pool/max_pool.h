// Max pooling that keeps the positions of the maxima, and its backward.
#pragma once

#include "window.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

// in -> out, indices.
void max_pool_fwd_cpu(const PoolParams& params);

// The same for windows of more than 256 elements, flat indices.
void max_pool_wide_cpu(const PoolParams& params);

// out (gradient), indices -> in (gradient): every window adds its gradient to the element that it
// names, in raster order. Returns false if an index was out of range; `in` is then unspecified.
bool max_pool_bwd_cpu(const PoolParams& params);

#if defined(USE_CUDA)
void launch_max_pool_fwd(const PoolParams& params, cudaStream_t stream);
void launch_max_pool_bwd(const PoolParams& params, cudaStream_t stream);
void launch_convert_pool_indices(const ConvertParams& params, cudaStream_t stream);
#endif

}  // namespace segkern
