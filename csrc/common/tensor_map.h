// Maps of tensors for the copy engine of Hopper, made on the host. The driver's function is found
// through the runtime, so that nothing is linked with the driver's library. The tests' stand-in
// headers have a map of their own.
#pragma once

#include <stdexcept>
#include <string>

#include "element.h"

#if !defined(SEGKERN_SIMT)
#include <cuda.h>
#include <cuda_runtime_api.h>
#endif

namespace segkern {

#if defined(SEGKERN_SIMT)
using simt::TensorMap;
#else
using TensorMap = CUtensorMap;
#endif

// A dense tensor of 16-bit elements and the boxes that are copied of it, the innermost axis first.
// A box has kBoxDepth elements along that axis.
struct TensorBoxes {
  const void* data;
  Element element;
  int rank;
  int64_t sizes[5];
  int64_t box[5];
};

constexpr int64_t kBoxDepth = 64;

// What the copy engine asks of a tensor and its boxes; PTX ISA, section tensors.
inline void check_boxes(const TensorBoxes& t) {
  const auto wrong = [](const std::string& what) {
    throw std::runtime_error("segkern: a tensor for the copy engine must have " + what);
  };
  if (t.rank < 3 || t.rank > 5) {
    wrong("3 to 5 axes");
  }
  if (t.element != Element::kFloat16 && t.element != Element::kBFloat16) {
    wrong("16-bit elements");
  }
  if (reinterpret_cast<uintptr_t>(t.data) % 16 != 0 || t.sizes[0] % 8 != 0) {
    wrong("rows that start at multiples of 16 bytes");
  }
  if (t.box[0] != kBoxDepth) {
    wrong("boxes of 128 bytes");
  }
  int64_t bytes = 2;
  for (int i = 0; i < t.rank; ++i) {
    if (t.sizes[i] < 1 || t.sizes[i] > INT32_MAX || t.box[i] < 1 || t.box[i] > 256) {
      wrong("axes of less than 2**31 elements and boxes of at most 256");
    }
    bytes *= t.sizes[i];
    if (i + 1 < t.rank && bytes >= int64_t{1} << 40) {
      wrong("strides of less than 2**40 bytes");
    }
  }
}

#if defined(SEGKERN_SIMT)

inline TensorMap make_tensor_map(const TensorBoxes& t) {
  check_boxes(t);
  return simt::make_tensor_map(t.data, t.rank, t.sizes, t.box);
}

#else

inline TensorMap make_tensor_map(const TensorBoxes& t) {
  check_boxes(t);
  using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                              const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                              const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                              12000, cudaEnableDefault, &found);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess || found != cudaDriverEntryPointSuccess || entry == nullptr) {
    throw std::runtime_error(
        "segkern: the CUDA driver must be of version 12.0 or later for tensor maps");
  }
  cuuint64_t sizes[5], strides[4];
  cuuint32_t box[5], steps[5];
  cuuint64_t stride = 2;
  for (int i = 0; i < t.rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(t.sizes[i]);
    box[i] = static_cast<cuuint32_t>(t.box[i]);
    steps[i] = 1;
    stride *= sizes[i];
    if (i + 1 < t.rank) {
      strides[i] = stride;
    }
  }
  alignas(64) CUtensorMap map;
  const CUresult result = reinterpret_cast<Encode>(entry)(
      &map,
      t.element == Element::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                     : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
      static_cast<cuuint32_t>(t.rank), const_cast<void*>(t.data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("segkern: the CUDA driver refused a tensor map, error " +
                             std::to_string(static_cast<int>(result)));
  }
  return map;
}

#endif

}  // namespace segkern
