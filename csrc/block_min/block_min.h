// The smallest of every K consecutive channels, alone and inside one mean field pass:
//
//   block_min:   out_u = min over k of in_(u K + k), code_u = the first k that has it
//   mean_field:  x_u = unary_u - min over k of penalty_(u K + k), out = (log-)softmax over u
//
// A NaN among the K is the smallest, and the first one counts. Tensors are (items, channels, area)
// or (items, area, channels) in memory, all of a call the same way. Includes neither torch nor
// CUDA.
#pragma once

#include <cstdint>

#include "../common/element.h"
#include "../common/host_device.h"

#if defined(USE_CUDA)
#include <cuda_runtime_api.h>
#endif

namespace segkern {

// Codes are bytes.
constexpr int64_t kMaxBlock = 256;

struct BlockMinParams {
  int64_t items, labels, block, area;
  Element element;
  bool channels_last;
  bool log;               // mean field's results are logarithms
  const void* wide_in;    // (items, labels * block, area): input or penalties
  const void* unary;      // (items, labels, area)
  const void* result;     // mean field's, for its backward
  const void* grad;       // (items, labels, area)
  void* out;              // (items, labels, area): results, or the gradient of unary
  void* wide_out;         // (items, labels * block, area): the gradient of wide_in
  uint8_t* codes;         // (items, labels, area)

  int64_t pixels() const { return items * area; }
};

// Where a pixel's channels lie.
struct PixelChannels {
  int64_t narrow, wide;  // the pixel's first element of tensors of labels, labels * block channels
  int64_t step;          // between channels

  SEGKERN_HOST_DEVICE PixelChannels(const BlockMinParams& p, int64_t item, int64_t at)
      : narrow(item * p.labels * p.area + at * (p.channels_last ? p.labels : 1)),
        wide(item * p.labels * p.block * p.area +
             at * (p.channels_last ? p.labels * p.block : 1)),
        step(p.channels_last ? 1 : p.area) {}
};

void block_min_fwd_cpu(const BlockMinParams& params);
void block_min_bwd_cpu(const BlockMinParams& params);
void mean_field_pass_fwd_cpu(const BlockMinParams& params);
void mean_field_pass_bwd_cpu(const BlockMinParams& params);

#if defined(USE_CUDA)
void launch_block_min_fwd(const BlockMinParams& params, cudaStream_t stream);
void launch_block_min_bwd(const BlockMinParams& params, cudaStream_t stream);
void launch_mean_field_pass_fwd(const BlockMinParams& params, cudaStream_t stream);
void launch_mean_field_pass_bwd(const BlockMinParams& params, cudaStream_t stream);
#endif

}  // namespace segkern
