#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "roi.h"
#include "roi_ops.h"

namespace segkern {
namespace {

class OnCuda {
 public:
  static constexpr bool kChecksImages = false;
  explicit OnCuda(const Tensor& tensor) : device_(tensor) {}
  void read(const RoiParams& p) const { launch_roi_read(p, device_.stream()); }
  void write(const RoiParams& p) const { launch_roi_write(p, device_.stream()); }

 private:
  OnDeviceOf device_;
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("roi_align", TORCH_BOX(&roi_align<OnCuda>));
  m.impl("_roi_align_backward", TORCH_BOX(&roi_align_backward<OnCuda>));
  m.impl("roi_upsample", TORCH_BOX(&roi_upsample<OnCuda>));
  m.impl("_roi_upsample_backward", TORCH_BOX(&roi_upsample_backward<OnCuda>));
}

}  // namespace segkern
