#include "nms.h"

#include <torch/csrc/stable/library.h>

#include "nms_args.h"

namespace segkern {
namespace {

Tensor nms(const Tensor& boxes, std::optional<Tensor> labels, const Tensor& live,
           double threshold) {
  NmsCall call = prepare_nms(boxes, labels, live, threshold);
  nms_cpu(call.params);
  return call.keep;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) { m.impl("_nms", TORCH_BOX(&nms)); }

}  // namespace segkern
