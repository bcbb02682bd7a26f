// Unpooling: each window's value at the position it names, zeros elsewhere; and its backward.
#pragma once

#include "../max_pool/window.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

// Where several windows name one position, the last one in raster order is the winner: its value
// is written, and only it gets the position's gradient.

// out, indices -> in. Returns false if an index was out of range; `in` is then unspecified.
bool max_unpool_fwd_cpu(const PoolParams& params);

// in (gradient), indices -> out (gradient). With winners_only false every window reads the
// position that it names; that is the transpose of pooling's backward.
bool max_unpool_bwd_cpu(const PoolParams& params, bool winners_only);

#if defined(USE_CUDA)
// Bytes of workspace that the two launches below need: winners of overlapping or flat indices.
int64_t max_unpool_workspace(const PoolParams& params);
void launch_max_unpool_fwd(const PoolParams& params, void* workspace, cudaStream_t stream);
void launch_max_unpool_bwd(const PoolParams& params, bool winners_only, void* workspace,
                           cudaStream_t stream);
#endif

}  // namespace segkern
