// Python module simt_roi: reading and writing boxes, through the same choice of kernels and grid as
// on the device (csrc/roi/roi_launch.cuh). Half types travel as the bits that simt/numpy.h says.
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "launcher.h"
#include "roi/roi_launch.cuh"

using segkern::Element;
using segkern::RoiParams;
using simt::Array;
using simt::DeviceBuffer;
using simt::element_named;
using simt::Launcher;

namespace {

// Shapes are in memory order: (N, C, H, W), or (N, H, W, C) with channels_last.
RoiParams params_of(const std::string& dtype, const std::vector<Array>& maps,
                    const Array& boxes, const Array& bins,
                    const std::vector<double>& scales, const std::vector<double>& limits,
                    int weights, int64_t sampling_ratio, bool aligned, bool channels_last) {
  RoiParams p{};
  p.element = element_named(dtype);
  p.levels = static_cast<int64_t>(maps.size());
  const int row = channels_last ? 1 : 2;
  for (int64_t k = 0; k < p.levels; ++k) {
    p.level[k].height = maps[k].shape(row);
    p.level[k].width = maps[k].shape(row + 1);
    p.level[k].scale = scales[k];
    if (k > 0) {
      p.level_size[k - 1] = limits[k - 1];
    }
  }
  p.images = maps[0].shape(0);
  p.channels = bins.shape(channels_last ? 3 : 1);
  p.rois = boxes.shape(0);
  p.bins_h = bins.shape(row);
  p.bins_w = bins.shape(row + 1);
  p.sampling_ratio = sampling_ratio;
  p.aligned = aligned;
  p.channels_last = channels_last;
  p.weights = static_cast<segkern::RoiWeights>(weights);
  return p;
}

// coverage: int32 (images, H, W), or empty; only written. chosen: int32 of the map's shape for the
// largest of the boxes, written where the map is and read where it is, or empty.
void run(bool write, const std::string& dtype, std::vector<Array> maps, Array boxes,
         Array bins, Array coverage, Array chosen, std::vector<double> scales,
         std::vector<double> limits, int weights, int64_t sampling_ratio, bool aligned,
         bool channels_last) {
  RoiParams p = params_of(dtype, maps, boxes, bins, scales, limits, weights, sampling_ratio,
                          aligned, channels_last);
  std::vector<std::unique_ptr<DeviceBuffer>> levels;
  for (size_t k = 0; k < maps.size(); ++k) {
    levels.push_back(std::make_unique<DeviceBuffer>(maps[k]));
    p.level[k].data = levels[k]->as();
  }
  DeviceBuffer rows(boxes), values(bins), counts(coverage), owners(chosen);
  p.boxes = rows.as();
  p.bins = values.as();
  p.chosen = chosen.size() > 0 ? owners.as<int32_t>() : nullptr;
  if (write) {
    p.coverage = coverage.size() > 0 ? counts.as<int32_t>() : nullptr;
    segkern::roi_write(p, Launcher{});
    for (auto& level : levels) {
      level->copy_back();
    }
    counts.copy_back();
    owners.copy_back();
  } else {
    segkern::roi_read(p, Launcher{});
    values.copy_back();
  }
}

}  // namespace

SIMT_MODULE(simt_roi, m) {
  m.def("run", &run);
}
