// Python module simt_masks: packed masks, Matrix NMS and NMS of boxes, through the same choice of
// kernel and grid as on the device (csrc/*/*_launch.cuh). bfloat16 travels as simt/numpy.h says.
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "launcher.h"
#include "masks/masks_launch.cuh"
#include "nms/nms_launch.cuh"

using segkern::Element;
using segkern::MaskSet;
using segkern::PackParams;
using simt::Array;
using simt::DeviceBuffer;
using simt::element_named;
using simt::Launcher;

namespace {

// part_rows 0: as the operator chooses.
void split(PackParams& p, int64_t part_rows) {
  segkern::split_into_parts(p);
  if (part_rows > 0) {
    p.part_rows = part_rows;
    p.parts = (p.height + part_rows - 1) / part_rows;
  }
}

void pack(const std::string& dtype, Array masks, Array rows, double threshold,
          int64_t part_rows, Array bits, Array areas, Array boxes,
          Array maskness) {
  DeviceBuffer in(masks), order(rows), out(bits), area(areas), box(boxes), mean(maskness);
  PackParams p{};
  p.bytes = dtype == "uint8";
  p.element = p.bytes ? Element::kFloat32 : element_named(dtype);
  p.threshold = threshold;
  p.planes = masks.shape(0);
  p.height = masks.shape(1);
  p.width = masks.shape(2);
  p.words = (p.width + segkern::kWordBits - 1) / segkern::kWordBits;
  p.count = bits.shape(0);
  p.masks = in.as();
  p.rows = order.as<int64_t>();
  p.bits = out.as<uint32_t>();
  p.areas = area.as<int32_t>();
  p.boxes = box.as<int32_t>();
  p.maskness = mean.as<float>();
  split(p, part_rows);
  std::vector<segkern::MaskPart> partial(static_cast<std::size_t>(p.count * p.parts));
  p.partial = partial.data();
  segkern::pack_masks(p, Launcher{});
  for (DeviceBuffer* result : {&out, &area, &box, &mean}) {
    result->copy_back();
  }
}

void measure(Array bits, int64_t part_rows, Array areas, Array boxes) {
  DeviceBuffer in(bits), area(areas), box(boxes);
  PackParams p{};
  p.count = p.planes = bits.shape(0);
  p.height = bits.shape(1);
  p.words = bits.shape(2);
  p.bits = in.as<uint32_t>();
  p.areas = area.as<int32_t>();
  p.boxes = box.as<int32_t>();
  split(p, part_rows);
  std::vector<segkern::MaskPart> partial(static_cast<std::size_t>(p.count * p.parts));
  p.partial = partial.data();
  segkern::measure_masks(p, Launcher{});
  area.copy_back();
  box.copy_back();
}

void unpack(Array bits, Array masks) {
  DeviceBuffer in(bits), out(masks);
  PackParams p{};
  p.count = bits.shape(0);
  p.height = bits.shape(1);
  p.words = bits.shape(2);
  p.width = masks.shape(2);
  p.bits = in.as<uint32_t>();
  segkern::unpack_masks(p, out.as<bool>(), Launcher{});
  out.copy_back();
}

struct Masks {
  DeviceBuffer bits, areas, boxes;
  MaskSet set;

  explicit Masks(const std::vector<Array>& arrays)
      : bits(arrays.at(0)), areas(arrays.at(1)), boxes(arrays.at(2)) {
    set = {arrays[0].shape(0), bits.as<uint32_t>(), areas.as<int32_t>(), boxes.as<int32_t>()};
  }
};

// Masks are [bits, areas, boxes].
void iou(const std::vector<Array>& a, const std::vector<Array>& b, Array crowd,
         Array out) {
  const Masks one(a), other(b);
  DeviceBuffer crowds(crowd), result(out);
  segkern::mask_iou({one.set, other.set, a[0].shape(1), a[0].shape(2), crowds.as<bool>(),
                     result.as<float>()},
                    Launcher{});
  result.copy_back();
}

void matrix_nms(const std::vector<Array>& masks, Array rows, Array labels,
                Array scores, bool linear, float sigma, Array out) {
  const Masks set(masks);
  DeviceBuffer order(rows), classes(labels), given(scores), result(out);
  segkern::MatrixNmsParams p{};
  p.masks = set.set;
  p.count = scores.shape(0);
  p.height = masks[0].shape(1);
  p.words = masks[0].shape(2);
  p.rows = order.as<int64_t>();
  p.labels = classes.as<int64_t>();
  p.scores = given.as<float>();
  p.linear = linear;
  p.sigma = sigma;
  std::vector<float> overlaps(static_cast<std::size_t>(p.count * p.count)), largest(p.count);
  p.overlaps = overlaps.data();
  p.largest = largest.data();
  p.out = result.as<float>();
  segkern::matrix_nms(p, Launcher{});
  result.copy_back();
}

// labels of no elements: one class.
void nms(Array boxes, Array labels, Array live, double threshold, Array keep) {
  DeviceBuffer in(boxes), classes(labels), alive(live), out(keep);
  segkern::NmsParams p{};
  p.count = boxes.shape(0);
  p.wide = boxes.itemsize() == 8;
  p.boxes = in.as();
  p.labels = classes.as<int64_t>();
  p.live = alive.as<bool>();
  p.threshold = threshold;
  p.keep = out.as<bool>();
  p.words = (p.count + 31) / 32;
  std::vector<uint32_t> pairs(static_cast<std::size_t>(p.count * p.words)), gone(p.words);
  p.pairs = pairs.data();
  p.gone = gone.data();
  segkern::nms(p, Launcher{});
  out.copy_back();
}

}  // namespace

SIMT_MODULE(simt_masks, m) {
  m.def("pack", &pack);
  m.def("measure", &measure);
  m.def("unpack", &unpack);
  m.def("iou", &iou);
  m.def("matrix_nms", &matrix_nms);
  m.def("nms", &nms);
}
