// Binary masks of instances, packed to bits, and what is computed on them: areas, boxes, overlaps
// of pairs, and Matrix NMS.
//
// Row y of a mask is `words` 32-bit words; pixel x is bit x % 32 of word x / 32, and the bits
// beyond the width are 0. A box is x1, y1, x2, y2 with the far sides exclusive, all 0 for a mask
// without pixels. Includes neither torch nor CUDA.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/host_device.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

constexpr int64_t kWordBits = 32;

// What packing and measuring have found in one part of a mask.
struct MaskPart {
  int32_t area, x1, y1, x2, y2;
  float sum;  // of the probabilities of the pixels in the mask
};

struct PackParams {
  int64_t count;                 // masks of the result
  int64_t planes, height, width;  // of the input
  int64_t words;                 // a row
  bool bytes;                    // the input is bytes, a pixel is in the mask where one is not 0
  Element element;               // else it is logits, and a pixel is in where one exceeds
  double threshold;              // this
  const void* masks;             // (planes, height, width)
  const int64_t* rows;           // (count,) planes to pack, others than 0 to planes - 1 are empty;
                                 // or null, every plane
  uint32_t* bits;                // (count, height, words); read where only areas are asked for
  int32_t* areas;                // (count,)
  int32_t* boxes;                // (count, 4)
  float* maskness;               // (count,) mean probability in the mask, 0 if it is empty; or null
  // CUDA: each mask is measured in parts, of part_rows rows.
  int64_t parts, part_rows;
  MaskPart* partial;             // (count, parts)
};

// Parts of at least 2048 words, so that a block has work, and of few enough for 32 bits.
inline void split_into_parts(PackParams& p) {
  constexpr int64_t kPartWords = 2048;
  p.part_rows = p.words > 0 ? (kPartWords + p.words - 1) / p.words : kPartWords;
  p.parts = p.height > 0 ? (p.height + p.part_rows - 1) / p.part_rows : 1;
}

struct MaskSet {
  int64_t count;
  const uint32_t* bits;
  const int32_t* areas;
  const int32_t* boxes;
};

struct MaskIouParams {
  MaskSet a, b;
  int64_t height, words;
  const bool* crowd;  // (b.count,): the union is the area of a's mask; or null
  float* iou;         // (a.count, b.count)
};

// Entries are ordered by class, and by falling score in each; an entry of score -infinity takes no
// part and keeps that score.
struct MatrixNmsParams {
  MaskSet masks;
  int64_t count, height, words;
  const int64_t* rows;    // (count,) the entries' masks; or null, in order
  const int64_t* labels;  // (count,)
  const float* scores;    // (count,)
  bool linear;
  float sigma;
  float* overlaps;        // CUDA: (count, count), [j][i] for i < j
  float* largest;         // CUDA: (count,)
  float* out;             // (count,)

  // The mask of an entry, or -1 for a row that there is not.
  SEGKERN_HOST_DEVICE int64_t mask(int64_t entry) const {
    const int64_t row = rows ? rows[entry] : entry;
    return row >= 0 && row < masks.count ? row : -1;
  }
};

// Intersection over union; 0 where nothing is shared. Areas that a caller gave may be too small.
SEGKERN_HOST_DEVICE inline float overlap_of(int64_t shared, int64_t whole) {
  return shared <= 0       ? 0.0f
         : whole <= shared ? 1.0f
                           : static_cast<float>(shared) / static_cast<float>(whole);
}

// What pair (i, j) says against j, where `largest` is i's largest overlap with better masks: the
// decay is a falling function of the greatest of these.
SEGKERN_HOST_DEVICE inline float blame(bool linear, float overlap, float largest) {
  if (linear) {
    const float left = 1.0f - largest;  // 0 for a duplicate
    return -(1.0f - overlap) / (left > 1e-6f ? left : 1e-6f);
  }
  return overlap * overlap - largest * largest;
}

// The blame of a mask of another class or without better ones: no decay.
SEGKERN_HOST_DEVICE inline float no_blame(bool linear) { return linear ? -1.0f : 0.0f; }

void pack_masks_cpu(const PackParams& params);
void measure_masks_cpu(const PackParams& params);
void unpack_masks_cpu(const PackParams& params, bool* out);
void mask_iou_cpu(const MaskIouParams& params);
void matrix_nms_cpu(const MatrixNmsParams& params);

#if defined(USE_CUDA)
void launch_pack_masks(const PackParams& params, cudaStream_t stream);
void launch_measure_masks(const PackParams& params, cudaStream_t stream);
void launch_unpack_masks(const PackParams& params, bool* out, cudaStream_t stream);
void launch_mask_iou(const MaskIouParams& params, cudaStream_t stream);
void launch_matrix_nms(const MatrixNmsParams& params, cudaStream_t stream);
#endif

}  // namespace segkern
