#include "../common/launch.cuh"
#include "masks.h"
#include "masks_launch.cuh"

namespace segkern {

void launch_pack_masks(const PackParams& params, cudaStream_t stream) {
  pack_masks(params, CudaLauncher{stream});
}

void launch_measure_masks(const PackParams& params, cudaStream_t stream) {
  measure_masks(params, CudaLauncher{stream});
}

void launch_unpack_masks(const PackParams& params, bool* out, cudaStream_t stream) {
  unpack_masks(params, out, CudaLauncher{stream});
}

void launch_mask_iou(const MaskIouParams& params, cudaStream_t stream) {
  mask_iou(params, CudaLauncher{stream});
}

void launch_matrix_nms(const MatrixNmsParams& params, cudaStream_t stream) {
  matrix_nms(params, CudaLauncher{stream});
}

}  // namespace segkern
