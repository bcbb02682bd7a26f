// The vectorised row kernels of pooling and unpooling, for the processor at hand.
#pragma once

#include <cstdint>

namespace segkern {

// Comparing kernels of one element type; pointers are to elements.
struct MaxRows {
  void (*max_2x2)(const void* r0, const void* r1, void* y, uint8_t* code, int64_t n);
  void (*max_4)(const void* a, const void* b, const void* c, const void* d, void* y, uint8_t* code,
                int64_t n);
  void (*max_tap)(const void* x, int64_t stride, void* y, uint8_t* code, uint8_t k, int64_t n);
};

// Copying kernels of one element size. The integer is the bitwise or of the codes.
struct MoveRows {
  int (*expand_2x2)(const void* y, const uint8_t* code, void* r0, void* r1, int64_t n);
  int (*select_2x2)(const void* r0, const void* r1, const uint8_t* code, void* y, int64_t n);
  int (*expand_4)(const void* y, const uint8_t* code, void* a, void* b, void* c, void* d,
                  int64_t n);
  int (*select_4)(const void* a, const void* b, const void* c, const void* d, const uint8_t* code,
                  void* y, int64_t n);
  void (*expand_tap)(const void* y, const uint8_t* code, uint8_t k, void* out, int64_t n);
  void (*select_tap)(const void* x, const uint8_t* code, uint8_t k, void* y, int64_t n);
};

struct PoolRows {
  MaxRows max[4];    // by Element
  MoveRows move[4];  // by Element
  int (*largest_code)(const uint8_t* code, int64_t n);
  void (*pack_row)(const uint8_t* code, uint32_t* words, int64_t n_words, int bits);
  void (*unpack_row)(const uint32_t* words, uint8_t* code, int64_t n_words, int bits);
  void (*pack_lane)(const uint8_t* code, int shift, uint32_t* words, int64_t n);
  void (*unpack_lane)(const uint32_t* words, int shift, uint32_t mask, uint8_t* code, int64_t n);
};

const PoolRows& pool_rows();

}  // namespace segkern
