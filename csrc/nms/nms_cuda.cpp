#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "nms_args.h"

namespace segkern {
namespace {

Tensor nms_cuda(const Tensor& boxes, std::optional<Tensor> labels, const Tensor& live,
                double threshold) {
  const OnDeviceOf device(boxes);
  NmsCall call = prepare_nms(boxes, labels, live, threshold);
  NmsParams& p = call.params;
  if (p.count > 0) {
    p.words = (p.count + 31) / 32;
    call.pairs = empty_in_layout({p.count, p.words}, ScalarType::Int, boxes, false);
    call.gone = empty_in_layout({p.words}, ScalarType::Int, boxes, false);
    p.pairs = static_cast<uint32_t*>(call.pairs.data_ptr());
    p.gone = static_cast<uint32_t*>(call.gone.data_ptr());
    launch_nms(p, device.stream());
  }
  return call.keep;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) { m.impl("_nms", TORCH_BOX(&nms_cuda)); }

}  // namespace segkern
