// Row kernels of packed masks, for the processor at hand.
#pragma once

#include <cstdint>

namespace segkern {

struct MaskRows {
  // Bits set in both of two runs of words.
  int64_t (*shared)(const uint32_t* a, const uint32_t* b, int64_t words);
  // Bits of a row; `columns` collects the columns of all rows.
  int64_t (*measure)(const uint32_t* row, uint32_t* columns, int64_t words);
  void (*pack_bytes)(const uint8_t* in, uint32_t* out, int64_t width);
  void (*pack_floats)(const float* in, float threshold, uint32_t* out, int64_t width);
  // The sum of the logistic function over the elements whose bits are set.
  float (*probability)(const float* logits, uint32_t bits);
};

const MaskRows& mask_rows();

}  // namespace segkern
