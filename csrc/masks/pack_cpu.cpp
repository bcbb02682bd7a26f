// A task is a mask: its rows are packed, counted and summed while they are in the first-level
// cache.
#include <algorithm>
#include <cstring>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../common/dispatch.h"
#include "mask_rows.h"
#include "masks.h"

namespace segkern {
namespace {

// The words of a row of logits, and the sum of the probabilities in the mask.
template <typename T>
double pack_logits(const MaskRows& kernels, const PackParams& p, const T* in, uint32_t* out) {
  if constexpr (std::is_same_v<T, float>) {
    kernels.pack_floats(in, static_cast<float>(p.threshold), out, p.width);
  } else {
    using wide_t = std::conditional_t<std::is_same_v<T, double>, double, float>;
    const auto least = static_cast<wide_t>(p.threshold);
    std::fill_n(out, p.words, 0u);
    for (int64_t x = 0; x < p.width; ++x) {
      out[x / kWordBits] |= static_cast<uint32_t>(static_cast<wide_t>(in[x]) > least)
                            << (x % kWordBits);
    }
  }
  double sum = 0;
  for (int64_t w = 0; p.maskness && w < p.words; ++w) {
    if (out[w]) {
      float logits[kWordBits] = {};
      const int64_t first = w * kWordBits, n = std::min(kWordBits, p.width - first);
      for (int64_t i = 0; i < n; ++i) {
        logits[i] = static_cast<float>(in[first + i]);
      }
      sum += kernels.probability(logits, out[w]);
    }
  }
  return sum;
}

// Areas, boxes and sums of a mask whose rows come one after the other.
class Measure {
 public:
  Measure(const MaskRows& kernels, const PackParams& p)
      : kernels_(kernels), p_(p), columns_(p.words) {}

  void start() {
    std::fill(columns_.begin(), columns_.end(), 0u);
    area_ = 0;
    top_ = bottom_ = 0;
  }
  void add(int64_t y, const uint32_t* row) {
    const int64_t pixels = kernels_.measure(row, columns_.data(), p_.words);
    if (pixels) {
      top_ = area_ ? top_ : y;
      bottom_ = y + 1;
      area_ += pixels;
    }
  }
  void write(int64_t mask, double sum) const {
    int32_t* box = p_.boxes + 4 * mask;
    p_.areas[mask] = static_cast<int32_t>(area_);
    if (p_.maskness) {
      p_.maskness[mask] = area_ ? static_cast<float>(sum / static_cast<double>(area_)) : 0.0f;
    }
    std::fill_n(box, 4, 0);
    if (!area_) {
      return;
    }
    int64_t left = 0, right = p_.words - 1;
    while (!columns_[left]) {
      ++left;
    }
    while (!columns_[right]) {
      --right;
    }
    box[0] = static_cast<int32_t>(left * kWordBits + __builtin_ctz(columns_[left]));
    box[1] = static_cast<int32_t>(top_);
    box[2] = static_cast<int32_t>((right + 1) * kWordBits - __builtin_clz(columns_[right]));
    box[3] = static_cast<int32_t>(bottom_);
  }
  int64_t area() const { return area_; }

 private:
  const MaskRows& kernels_;
  const PackParams& p_;
  std::vector<uint32_t> columns_;
  int64_t area_ = 0, top_ = 0, bottom_ = 0;
};

// Calls row(mask, plane, y, words) -> sum of probabilities for every row of the masks.
template <typename Row>
void each_mask(const PackParams& p, const MaskRows& kernels, const Row& row) {
  torch::stable::parallel_for(0, p.count, 1, [&](int64_t begin, int64_t end) {
    Measure measure(kernels, p);
    for (int64_t mask = begin; mask < end; ++mask) {
      const int64_t plane = p.rows ? p.rows[mask] : mask;
      uint32_t* bits = p.bits + mask * p.height * p.words;
      measure.start();
      double sum = 0;
      if (plane >= 0 && plane < p.planes) {
        for (int64_t y = 0; y < p.height; ++y) {
          sum += row(plane, y, bits + y * p.words);
          measure.add(y, bits + y * p.words);
        }
      } else {
        std::fill_n(bits, p.height * p.words, 0u);
      }
      measure.write(mask, p.bytes ? static_cast<double>(measure.area()) : sum);
    }
  });
}

}  // namespace

void pack_masks_cpu(const PackParams& p) {
  const MaskRows& kernels = mask_rows();
  if (p.bytes) {
    const auto* in = static_cast<const uint8_t*>(p.masks);
    each_mask(p, kernels, [&](int64_t plane, int64_t y, uint32_t* out) {
      kernels.pack_bytes(in + (plane * p.height + y) * p.width, out, p.width);
      return 0.0;
    });
    return;
  }
  SEGKERN_DISPATCH_FLOATING(p.element, [&] {
    const auto* in = static_cast<const scalar_t*>(p.masks);
    each_mask(p, kernels, [&](int64_t plane, int64_t y, uint32_t* out) {
      return pack_logits(kernels, p, in + (plane * p.height + y) * p.width, out);
    });
  });
}

void measure_masks_cpu(const PackParams& p) {
  each_mask(p, mask_rows(), [](int64_t, int64_t, uint32_t*) { return 0.0; });
}

void unpack_masks_cpu(const PackParams& p, bool* out) {
  torch::stable::parallel_for(0, p.count * p.height, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t w = 0; w < p.words; ++w) {
        const uint32_t word = p.bits[row * p.words + w];
        const int64_t first = w * kWordBits, n = std::min(kWordBits, p.width - first);
        for (int64_t i = 0; i < n; ++i) {
          out[row * p.width + first + i] = word >> i & 1u;
        }
      }
    }
  });
}

}  // namespace segkern
