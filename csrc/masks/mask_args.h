// The arguments of the operators on packed masks, checked; common to both devices.
#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/layout.h"
#include "masks.h"

namespace segkern {

inline void check_like(const char* op, const char* name, const Tensor& tensor,
                       const std::vector<int64_t>& sizes, ScalarType dtype, const Tensor& beside) {
  SEGKERN_CHECK(sizes_of(tensor) == sizes && tensor.scalar_type() == dtype &&
                    tensor.device() == beside.device(),
                op, ": ", name, " must be ", torch::headeronly::toString(dtype), " ",
                shape_string(sizes), " on the device of the masks, got ",
                torch::headeronly::toString(tensor.scalar_type()), " ",
                shape_string(sizes_of(tensor)));
}

inline Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType dtype, const Tensor& like) {
  return empty_in_layout(sizes, dtype, like, false);
}

inline void check_plane(const char* op, const char* name, int64_t height, int64_t width) {
  SEGKERN_CHECK(height <= INT32_MAX && width <= INT32_MAX - kWordBits &&
                    (width == 0 || height <= INT32_MAX / width),
                op, ": ", name, " must have fewer than 2^31 pixels a mask, got ", height, " x ",
                width);
}

// The widths of rows of masks that are packed already.
inline void check_bits(const char* op, const char* name, const Tensor& bits) {
  SEGKERN_CHECK(bits.dim() == 3 && bits.scalar_type() == ScalarType::Int, op, ": ", name,
                " must be int32 (N, H, words), got ",
                torch::headeronly::toString(bits.scalar_type()), " ",
                shape_string(sizes_of(bits)));
  SEGKERN_CHECK(bits.size(2) <= INT32_MAX / kWordBits, op, ": ", name,
                " must have fewer than 2^26 words a row, got ", bits.size(2));
  check_plane(op, name, bits.size(1), bits.size(2) * kWordBits);
}

struct PackCall {
  Tensor masks, rows, bits, areas, boxes, maskness, unpacked, partial;
  PackParams params;
};

inline void allocate_measures(PackCall& call, const Tensor& like) {
  PackParams& p = call.params;
  call.areas = new_tensor({p.count}, ScalarType::Int, like);
  call.boxes = new_tensor({p.count, 4}, ScalarType::Int, like);
  p.areas = static_cast<int32_t*>(call.areas.data_ptr());
  p.boxes = static_cast<int32_t*>(call.boxes.data_ptr());
}

inline PackCall prepare_pack(const Tensor& masks, const std::optional<Tensor>& rows,
                             double threshold, bool want_maskness) {
  constexpr const char* op = "pack_masks";
  SEGKERN_CHECK(masks.dim() == 3, op, ": masks must be (N, H, W), got ",
                shape_string(sizes_of(masks)));
  PackCall call{};
  PackParams& p = call.params;
  const ScalarType dtype = masks.scalar_type();
  p.bytes = dtype == ScalarType::Bool || dtype == ScalarType::Byte;
  p.element = p.bytes ? Element::kFloat32 : element_of(masks, op, "masks");
  p.threshold = threshold;
  p.planes = masks.size(0);
  p.height = masks.size(1);
  p.width = masks.size(2);
  check_plane(op, "masks", p.height, p.width);
  p.words = (p.width + kWordBits - 1) / kWordBits;
  p.count = p.planes;
  call.masks = torch::stable::contiguous(masks);
  p.masks = call.masks.data_ptr();
  if (rows) {
    SEGKERN_CHECK(rows->dim() == 1, op, ": rows must be (K,), got ",
                  shape_string(sizes_of(*rows)));
    check_like(op, "rows", *rows, {rows->size(0)}, ScalarType::Long, masks);
    p.count = rows->size(0);
    call.rows = torch::stable::contiguous(*rows);
    p.rows = static_cast<const int64_t*>(call.rows.data_ptr());
  }
  call.bits = new_tensor({p.count, p.height, p.words}, ScalarType::Int, masks);
  p.bits = static_cast<uint32_t*>(call.bits.data_ptr());
  allocate_measures(call, masks);
  call.maskness = new_tensor({want_maskness ? p.count : 0}, ScalarType::Float, masks);
  p.maskness = want_maskness ? static_cast<float*>(call.maskness.data_ptr()) : nullptr;
  return call;
}

inline PackCall prepare_measure(const Tensor& bits) {
  constexpr const char* op = "measure_masks";
  check_bits(op, "bits", bits);
  PackCall call{};
  PackParams& p = call.params;
  call.bits = torch::stable::contiguous(bits);
  p.bits = static_cast<uint32_t*>(call.bits.data_ptr());
  p.bytes = true;
  p.count = p.planes = bits.size(0);
  p.height = bits.size(1);
  p.words = bits.size(2);
  p.width = p.words * kWordBits;
  allocate_measures(call, bits);
  return call;
}

inline PackCall prepare_unpack(const Tensor& bits, int64_t width) {
  constexpr const char* op = "unpack_masks";
  check_bits(op, "bits", bits);
  SEGKERN_CHECK(width >= 0 && (width + kWordBits - 1) / kWordBits == bits.size(2), op,
                ": width must be one of rows of ", bits.size(2), " words, got ", width);
  PackCall call{};
  PackParams& p = call.params;
  call.bits = torch::stable::contiguous(bits);
  p.bits = static_cast<uint32_t*>(call.bits.data_ptr());
  p.count = bits.size(0);
  p.height = bits.size(1);
  p.words = bits.size(2);
  p.width = width;
  call.unpacked = new_tensor({p.count, p.height, width}, ScalarType::Bool, bits);
  return call;
}

// A set of packed masks with dense tensors behind it.
struct MaskArgs {
  Tensor bits, areas, boxes;
  MaskSet set;

  MaskArgs(const char* op, const Tensor& given, const Tensor& area, const Tensor& box) {
    check_bits(op, "bits", given);
    check_like(op, "areas", area, {given.size(0)}, ScalarType::Int, given);
    check_like(op, "boxes", box, {given.size(0), 4}, ScalarType::Int, given);
    bits = torch::stable::contiguous(given);
    areas = torch::stable::contiguous(area);
    boxes = torch::stable::contiguous(box);
    set.count = given.size(0);
    set.bits = static_cast<const uint32_t*>(bits.data_ptr());
    set.areas = static_cast<const int32_t*>(areas.data_ptr());
    set.boxes = static_cast<const int32_t*>(boxes.data_ptr());
  }
};

struct MaskIouCall {
  MaskArgs a, b;
  Tensor crowd, iou;
  MaskIouParams params;
};

inline MaskIouCall prepare_mask_iou(const Tensor& bits_a, const Tensor& areas_a,
                                    const Tensor& boxes_a, const Tensor& bits_b,
                                    const Tensor& areas_b, const Tensor& boxes_b,
                                    const std::optional<Tensor>& crowd) {
  constexpr const char* op = "mask_iou";
  MaskIouCall call{{op, bits_a, areas_a, boxes_a}, {op, bits_b, areas_b, boxes_b}, {}, {}, {}};
  SEGKERN_CHECK(bits_a.size(1) == bits_b.size(1) && bits_a.size(2) == bits_b.size(2) &&
                    bits_a.device() == bits_b.device(),
                op, ": the masks must have one size and device, got ",
                shape_string(sizes_of(bits_a)), " and ", shape_string(sizes_of(bits_b)));
  MaskIouParams& p = call.params;
  p.a = call.a.set;
  p.b = call.b.set;
  p.height = bits_a.size(1);
  p.words = bits_a.size(2);
  if (crowd) {
    check_like(op, "crowd", *crowd, {p.b.count}, ScalarType::Bool, bits_b);
    call.crowd = torch::stable::contiguous(*crowd);
    p.crowd = static_cast<const bool*>(call.crowd.data_ptr());
  }
  call.iou = new_tensor({p.a.count, p.b.count}, ScalarType::Float, bits_a);
  p.iou = static_cast<float*>(call.iou.data_ptr());
  return call;
}

struct MatrixNmsCall {
  MaskArgs masks;
  Tensor rows, labels, scores, out, overlaps, largest;
  MatrixNmsParams params;
};

inline MatrixNmsCall prepare_matrix_nms(const Tensor& bits, const Tensor& areas,
                                        const Tensor& boxes, const std::optional<Tensor>& rows,
                                        const Tensor& labels, const Tensor& scores, bool linear,
                                        double sigma) {
  constexpr const char* op = "_matrix_nms";
  MatrixNmsCall call{{op, bits, areas, boxes}, {}, {}, {}, {}, {}, {}, {}};
  MatrixNmsParams& p = call.params;
  p.masks = call.masks.set;
  p.height = bits.size(1);
  p.words = bits.size(2);
  SEGKERN_CHECK(scores.dim() == 1, op, ": scores must be (N,), got ",
                shape_string(sizes_of(scores)));
  p.count = scores.size(0);
  SEGKERN_CHECK(rows || p.count == p.masks.count, op, ": scores must be (", p.masks.count,
                ",), got ", shape_string(sizes_of(scores)));
  check_like(op, "scores", scores, {p.count}, ScalarType::Float, bits);
  check_like(op, "labels", labels, {p.count}, ScalarType::Long, bits);
  call.scores = torch::stable::contiguous(scores);
  call.labels = torch::stable::contiguous(labels);
  if (rows) {
    check_like(op, "rows", *rows, {p.count}, ScalarType::Long, bits);
    call.rows = torch::stable::contiguous(*rows);
    p.rows = static_cast<const int64_t*>(call.rows.data_ptr());
  }
  p.labels = static_cast<const int64_t*>(call.labels.data_ptr());
  p.scores = static_cast<const float*>(call.scores.data_ptr());
  p.linear = linear;
  p.sigma = static_cast<float>(sigma);
  call.out = new_tensor({p.count}, ScalarType::Float, bits);
  p.out = static_cast<float*>(call.out.data_ptr());
  return call;
}

}  // namespace segkern
