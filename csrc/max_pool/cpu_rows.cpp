#include "cpu_rows.h"

#define SEGKERN_ROW_KERNELS "../max_pool/cpu_rows.inl"
#include "../common/each_cpu_target.inl"

namespace segkern {

const PoolRows& pool_rows() { return rows_of_this_cpu(); }

}  // namespace segkern
