#include "roi_rows.h"

#include <cstring>
#include <type_traits>

namespace segkern {
namespace {

struct RoiRowTable {
  RoiRows<float> single;
  RoiRows<double> wide;
};

}  // namespace
}  // namespace segkern

#define SEGKERN_ROW_KERNELS "../roi/roi_rows.inl"
#include "../common/each_cpu_target.inl"

namespace segkern {

const RoiRows<float>& roi_rows(float) { return rows_of_this_cpu().single; }
const RoiRows<double>& roi_rows(double) { return rows_of_this_cpu().wide; }

}  // namespace segkern
