#include <tuple>

#include <torch/csrc/stable/library.h>

#include "../common/stream.h"
#include "mask_args.h"

namespace segkern {
namespace {

void allocate_parts(PackCall& call) {
  PackParams& p = call.params;
  split_into_parts(p);
  call.partial = new_tensor({p.count, p.parts, static_cast<int64_t>(sizeof(MaskPart))},
                            ScalarType::Byte, call.bits);
  p.partial = static_cast<MaskPart*>(call.partial.data_ptr());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pack_masks(const Tensor& masks,
                                                      std::optional<Tensor> rows, double threshold,
                                                      bool maskness) {
  const OnDeviceOf device(masks);
  PackCall call = prepare_pack(masks, rows, threshold, maskness);
  if (call.params.count) {
    allocate_parts(call);
    launch_pack_masks(call.params, device.stream());
  }
  return {call.bits, call.areas, call.boxes, call.maskness};
}

std::tuple<Tensor, Tensor> measure_masks(const Tensor& bits) {
  const OnDeviceOf device(bits);
  PackCall call = prepare_measure(bits);
  if (call.params.count) {
    allocate_parts(call);
    launch_measure_masks(call.params, device.stream());
  }
  return {call.areas, call.boxes};
}

Tensor unpack_masks(const Tensor& bits, int64_t width) {
  const OnDeviceOf device(bits);
  PackCall call = prepare_unpack(bits, width);
  launch_unpack_masks(call.params, static_cast<bool*>(call.unpacked.data_ptr()),
                      device.stream());
  return call.unpacked;
}

Tensor mask_iou(const Tensor& bits_a, const Tensor& areas_a, const Tensor& boxes_a,
                const Tensor& bits_b, const Tensor& areas_b, const Tensor& boxes_b,
                std::optional<Tensor> crowd) {
  const OnDeviceOf device(bits_a);
  MaskIouCall call =
      prepare_mask_iou(bits_a, areas_a, boxes_a, bits_b, areas_b, boxes_b, crowd);
  launch_mask_iou(call.params, device.stream());
  return call.iou;
}

Tensor matrix_nms(const Tensor& bits, const Tensor& areas, const Tensor& boxes,
                  std::optional<Tensor> rows, const Tensor& labels, const Tensor& scores,
                  bool linear, double sigma) {
  const OnDeviceOf device(bits);
  MatrixNmsCall call =
      prepare_matrix_nms(bits, areas, boxes, rows, labels, scores, linear, sigma);
  const int64_t count = call.params.count;
  call.overlaps = new_tensor({count, count}, ScalarType::Float, bits);
  call.largest = new_tensor({count}, ScalarType::Float, bits);
  call.params.overlaps = static_cast<float*>(call.overlaps.data_ptr());
  call.params.largest = static_cast<float*>(call.largest.data_ptr());
  launch_matrix_nms(call.params, device.stream());
  return call.out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkern, CUDA, m) {
  m.impl("pack_masks", TORCH_BOX(&pack_masks));
  m.impl("measure_masks", TORCH_BOX(&measure_masks));
  m.impl("unpack_masks", TORCH_BOX(&unpack_masks));
  m.impl("mask_iou", TORCH_BOX(&mask_iou));
  m.impl("_matrix_nms", TORCH_BOX(&matrix_nms));
}

}  // namespace segkern
