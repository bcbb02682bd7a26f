// Names of operations and places, for reports.
#pragma once

#include <string>

#include "simt/scheduler.h"
#include "simt/types.h"

namespace simt {

const char* name(Operation operation);
std::string describe(uint3 v);                         // (x, y, z)
std::string describe(Operation operation, Site site);  // __syncthreads (planted.cuh:12)
std::string describe_mask(unsigned mask);              // 0x0000ffff

}  // namespace simt
