// Which kernel runs; `launch` as in max_pool_launch.cuh.
#pragma once

#include "../common/kernel_dispatch.cuh"
#include "overlap.cuh"
#include "pack.cuh"

namespace segkern {

template <typename Launch>
void join_parts(const PackParams& p, const Launch& launch) {
  launch(join_parts_kernel, p.count * 32, p);
}

template <typename Launch>
void pack_masks(const PackParams& p, const Launch& launch) {
  const int64_t threads = p.count * p.parts * kBlockThreads;
  if (p.bytes) {
    launch(pack_masks_kernel<uint8_t, BytePixel>, threads, p);
  } else {
    by_type(p.element, [&](auto type) {
      using scalar_t = typename decltype(type)::type;
      launch(pack_masks_kernel<scalar_t, LogitPixel<scalar_t>>, threads, p);
    });
  }
  join_parts(p, launch);
}

template <typename Launch>
void measure_masks(const PackParams& p, const Launch& launch) {
  launch(measure_masks_kernel, p.count * p.parts * kBlockThreads, p);
  join_parts(p, launch);
}

template <typename Launch>
void unpack_masks(const PackParams& p, bool* out, const Launch& launch) {
  launch(unpack_masks_kernel, p.count * p.height * p.width, p, out);
}

template <typename Launch>
void mask_iou(const MaskIouParams& p, const Launch& launch) {
  const int64_t rows = (p.a.count + kTile - 1) / kTile, columns = (p.b.count + kTile - 1) / kTile;
  launch(mask_iou_kernel, rows * columns * kBlockThreads, p);
}

template <typename Launch>
void matrix_nms(const MatrixNmsParams& p, const Launch& launch) {
  const int64_t tiles = (p.count + kTile - 1) / kTile;
  launch(class_overlap_kernel, tiles * tiles * kBlockThreads, p);
  launch(largest_overlap_kernel, p.count * 32, p);
  launch(decay_kernel, p.count * 32, p);
}

}  // namespace segkern
