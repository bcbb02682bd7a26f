#include "max_unpool.h"
#include "scatter_gather.h"

namespace segkern {

bool max_unpool_fwd_cpu(const PoolParams& p) {
  return can_tile(p) ? expand_tiles(p) : scatter_last(p);
}

bool max_unpool_bwd_cpu(const PoolParams& p, bool winners_only) {
  return can_tile(p) ? select_tiles(p) : gather(p, winners_only);
}

}  // namespace segkern
