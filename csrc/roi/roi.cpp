#include "roi.h"

#include <torch/csrc/stable/library.h>

#include "roi_ops.h"

namespace segkern {
namespace {

struct OnCpu {
  static constexpr bool kChecksImages = true;
  explicit OnCpu(const Tensor&) {}
  void read(const RoiParams& p) const { roi_read_cpu(p); }
  void write(const RoiParams& p) const { roi_write_cpu(p); }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align<OnCpu>));
  m.impl("_roi_align_backward", TORCH_BOX(&roi_align_backward<OnCpu>));
  m.impl("roi_upsample", TORCH_BOX(&roi_upsample<OnCpu>));
  m.impl("_roi_upsample_backward", TORCH_BOX(&roi_upsample_backward<OnCpu>));
}

}  // namespace segkern
