// The host functions of the box operators, for a device that runs the two kernels.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>
#include <tuple>

#include "roi_args.h"

namespace segkern {

template <typename Device>
Tensor roi_align(std::vector<Tensor> inputs, const Tensor& rois, int64_t output_h,
                 int64_t output_w, std::vector<double> scales, std::vector<double> limits,
                 int64_t sampling_ratio, bool aligned) {
  constexpr const char* op = "roi_align";
  SEGKERN_CHECK(!inputs.empty(), op, ": input must have 1 to ", kMaxRoiLevels, " levels, got 0");
  const Tensor& first = inputs[0];
  for (const Tensor& input : inputs) {
    SEGKERN_CHECK(input.dim() == 4 && input.scalar_type() == first.scalar_type() &&
                      input.device() == first.device() && input.size(0) == first.size(0) &&
                      input.size(1) == first.size(1),
                  op, ": input must be (N, C, H, W), of one dtype, device, N and C on all levels, "
                  "got ", shape_string(sizes_of(input)), " beside ",
                  shape_string(sizes_of(first)));
  }
  const Device device(first);
  RoiParams p = check_boxes(op, first, rois, output_h, output_w, sampling_ratio);
  check_levels(op, p, static_cast<int64_t>(inputs.size()), scales, limits);
  p.images = first.size(0);
  p.channels = first.size(1);
  p.aligned = aligned;
  p.channels_last = is_channels_last(first);
  std::vector<Tensor> dense;
  for (size_t k = 0; k < inputs.size(); ++k) {
    dense.push_back(as_layout(inputs[k], p.channels_last));
    p.level[k].data = dense[k].data_ptr();
    p.level[k].height = inputs[k].size(2);
    p.level[k].width = inputs[k].size(3);
  }
  check_maps(op, p);
  const Tensor boxes = as_layout(rois, false);
  if (Device::kChecksImages) {
    check_images_cpu(op, boxes, p);
  }
  Tensor out = empty_in_layout({p.rois, p.channels, output_h, output_w}, first.scalar_type(),
                               first, p.channels_last);
  p.boxes = boxes.data_ptr();
  p.bins = out.data_ptr();
  if (out.numel() > 0) {
    device.read(p);
  }
  return out;
}

// sizes: N, C, then H and W of each level.
template <typename Device>
std::vector<Tensor> roi_align_backward(const Tensor& grad, const Tensor& rois, IntList sizes,
                                       std::vector<double> scales, std::vector<double> limits,
                                       int64_t sampling_ratio, bool aligned, bool channels_last) {
  constexpr const char* op = "_roi_align_backward";
  SEGKERN_CHECK(sizes.size() >= 4 && sizes.size() % 2 == 0 &&
                    *std::min_element(sizes.begin(), sizes.end()) >= 0,
                op, ": sizes must be N, C and H, W of each level, got ", shape_string(sizes));
  SEGKERN_CHECK(grad.dim() == 4 && rois.dim() == 2 && grad.size(0) == rois.size(0) &&
                    grad.size(1) == sizes[1],
                op, ": grad must be (K, C, H, W) for the K of rois and the C of sizes, got ",
                shape_string(sizes_of(grad)));
  const Device device(grad);
  RoiParams p = check_boxes(op, grad, rois, grad.size(2), grad.size(3), sampling_ratio);
  const int64_t levels = static_cast<int64_t>(sizes.size()) / 2 - 1;
  check_levels(op, p, levels, scales, limits);
  p.images = sizes[0];
  p.channels = sizes[1];
  p.aligned = aligned;
  p.channels_last = channels_last;
  const Tensor dense = as_layout(grad, channels_last), boxes = as_layout(rois, false);
  p.boxes = boxes.data_ptr();
  p.bins = dense.data_ptr();
  std::vector<Tensor> maps;
  bool any = false;
  for (int64_t k = 0; k < levels; ++k) {
    p.level[k].height = sizes[2 + 2 * k];
    p.level[k].width = sizes[3 + 2 * k];
    maps.push_back(empty_in_layout({sizes[0], sizes[1], sizes[2 + 2 * k], sizes[3 + 2 * k]},
                                   grad.scalar_type(), grad, channels_last));
    p.level[k].data = maps[k].data_ptr();
    any = any || maps[k].numel() > 0;
  }
  check_maps(op, p);
  if (any) {
    device.write(p);
  }
  return maps;
}

inline RoiWeights upsample_weights(const char* op, int64_t mode) {
  SEGKERN_CHECK(mode >= static_cast<int64_t>(RoiWeights::kPinv) && mode < kRoiWeightKinds, op,
                ": mode must be one of RoiWeights but the average, got ", mode);
  return static_cast<RoiWeights>(mode);
}

// How boxes over one pixel come together.
enum class RoiReduction : int64_t { kSum, kMean, kMax };
constexpr int64_t kRoiReductions = 3;

// The map and, int32: empty for a sum; for a mean (N, 1, H, W), how many boxes a pixel has; for a
// maximum, of the map's shape and layout, which box an element is of, -1 for none.
template <typename Device>
std::tuple<Tensor, Tensor> roi_upsample(const Tensor& input, const Tensor& rois, int64_t batch,
                                        int64_t height, int64_t width, double scale, int64_t mode,
                                        int64_t reduction, int64_t sampling_ratio,
                                        bool aligned) {
  constexpr const char* op = "roi_upsample";
  SEGKERN_CHECK(reduction >= 0 && reduction < kRoiReductions, op,
                ": reduction must be one of RoiReduction, got ", reduction);
  SEGKERN_CHECK(input.dim() == 4 && rois.dim() == 2 && input.size(0) == rois.size(0), op,
                ": input must be (K, C, H, W) for the K of rois, got ",
                shape_string(sizes_of(input)));
  SEGKERN_CHECK(batch >= 0 && height >= 0 && width >= 0, op,
                ": output_size must be three sizes, got (", batch, ", ", height, ", ", width, ")");
  const Device device(input);
  RoiParams p = check_boxes(op, input, rois, input.size(2), input.size(3), sampling_ratio);
  p.weights = upsample_weights(op, mode);
  p.images = batch;
  p.channels = input.size(1);
  p.aligned = aligned;
  p.channels_last = is_channels_last(input);
  const Tensor dense = as_layout(input, p.channels_last), boxes = as_layout(rois, false);
  Tensor out = empty_in_layout({batch, p.channels, height, width}, input.scalar_type(), input,
                               p.channels_last);
  const auto how = static_cast<RoiReduction>(reduction);
  const bool mean = how == RoiReduction::kMean, largest = how == RoiReduction::kMax;
  SEGKERN_CHECK(!largest || p.rois <= std::numeric_limits<int32_t>::max(), op,
                ": rois must be fewer than 2^31, got ", p.rois);
  Tensor notes = empty_in_layout(mean      ? IntList{batch, 1, height, width}
                                 : largest ? IntList{batch, p.channels, height, width}
                                           : IntList{0},
                                 ScalarType::Int, input, largest && p.channels_last);
  p.level[0] = {out.data_ptr(), height, width, scale};
  p.boxes = boxes.data_ptr();
  p.bins = dense.data_ptr();
  p.coverage = mean ? static_cast<int32_t*>(notes.data_ptr()) : nullptr;
  p.chosen = largest ? static_cast<int32_t*>(notes.data_ptr()) : nullptr;
  check_maps(op, p);
  if (out.numel() > 0) {
    device.write(p);
  }
  return {out, notes};
}

// grad: of the sums over boxes, or with `chosen` of the largest.
template <typename Device>
Tensor roi_upsample_backward(const Tensor& grad, const Tensor& rois,
                             const std::optional<Tensor>& chosen, int64_t bins_h, int64_t bins_w,
                             double scale, int64_t mode, int64_t sampling_ratio, bool aligned) {
  constexpr const char* op = "_roi_upsample_backward";
  SEGKERN_CHECK(grad.dim() == 4, op, ": grad must be (N, C, H, W), got ",
                shape_string(sizes_of(grad)));
  SEGKERN_CHECK(!chosen || (sizes_of(*chosen) == sizes_of(grad) &&
                            chosen->scalar_type() == ScalarType::Int &&
                            chosen->device() == grad.device()),
                op, ": chosen must be int32 of the shape and on the device of grad");
  const Device device(grad);
  RoiParams p = check_boxes(op, grad, rois, bins_h, bins_w, sampling_ratio);
  p.weights = upsample_weights(op, mode);
  p.images = grad.size(0);
  p.channels = grad.size(1);
  p.aligned = aligned;
  p.channels_last = is_channels_last(grad);
  const Tensor dense = as_layout(grad, p.channels_last), boxes = as_layout(rois, false);
  Tensor out = empty_in_layout({p.rois, p.channels, bins_h, bins_w}, grad.scalar_type(), grad,
                               p.channels_last);
  std::optional<Tensor> owners;
  if (chosen) {
    owners = as_layout(*chosen, p.channels_last);
    p.chosen = static_cast<int32_t*>(owners->data_ptr());
  }
  p.level[0] = {dense.data_ptr(), grad.size(2), grad.size(3), scale};
  p.boxes = boxes.data_ptr();
  p.bins = out.data_ptr();
  check_maps(op, p);
  if (out.numel() > 0) {
    device.read(p);
  }
  return out;
}

}  // namespace segkern
