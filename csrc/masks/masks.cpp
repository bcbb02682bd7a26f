#include "masks.h"

#include <tuple>

#include <torch/csrc/stable/library.h>

#include "mask_args.h"

namespace segkern {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> pack_masks(const Tensor& masks,
                                                      std::optional<Tensor> rows, double threshold,
                                                      bool maskness) {
  PackCall call = prepare_pack(masks, rows, threshold, maskness);
  pack_masks_cpu(call.params);
  return {call.bits, call.areas, call.boxes, call.maskness};
}

std::tuple<Tensor, Tensor> measure_masks(const Tensor& bits) {
  PackCall call = prepare_measure(bits);
  measure_masks_cpu(call.params);
  return {call.areas, call.boxes};
}

Tensor unpack_masks(const Tensor& bits, int64_t width) {
  PackCall call = prepare_unpack(bits, width);
  unpack_masks_cpu(call.params, static_cast<bool*>(call.unpacked.data_ptr()));
  return call.unpacked;
}

Tensor mask_iou(const Tensor& bits_a, const Tensor& areas_a, const Tensor& boxes_a,
                const Tensor& bits_b, const Tensor& areas_b, const Tensor& boxes_b,
                std::optional<Tensor> crowd) {
  MaskIouCall call =
      prepare_mask_iou(bits_a, areas_a, boxes_a, bits_b, areas_b, boxes_b, crowd);
  mask_iou_cpu(call.params);
  return call.iou;
}

Tensor matrix_nms(const Tensor& bits, const Tensor& areas, const Tensor& boxes,
                  std::optional<Tensor> rows, const Tensor& labels, const Tensor& scores,
                  bool linear, double sigma) {
  MatrixNmsCall call =
      prepare_matrix_nms(bits, areas, boxes, rows, labels, scores, linear, sigma);
  matrix_nms_cpu(call.params);
  return call.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CPU, m) {
  m.impl("pack_masks", TORCH_BOX(&pack_masks));
  m.impl("measure_masks", TORCH_BOX(&measure_masks));
  m.impl("unpack_masks", TORCH_BOX(&unpack_masks));
  m.impl("mask_iou", TORCH_BOX(&mask_iou));
  m.impl("_matrix_nms", TORCH_BOX(&matrix_nms));
}

}  // namespace segkern
