// Overlaps of pairs of packed masks and Matrix NMS. A pair is counted over the rows and words that
// its boxes share.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include <torch/csrc/stable/ops.h>

#include "mask_rows.h"
#include "masks.h"

namespace segkern {
namespace {

// Columns of pairs that one task counts side by side, so that a mask which all of them meet is
// fetched once.
constexpr int64_t kColumns = 4;

class SharedArea {
 public:
  SharedArea(int64_t height, int64_t words)
      : count_(mask_rows().shared), height_(height), words_(words) {}

  int64_t operator()(const MaskSet& a, int64_t i, const MaskSet& b, int64_t j) const {
    const int32_t *p = a.boxes + 4 * i, *q = b.boxes + 4 * j;
    const int64_t x1 = std::max<int64_t>(0, std::max(p[0], q[0]));
    const int64_t y1 = std::max<int64_t>(0, std::max(p[1], q[1]));
    const int64_t x2 = std::min<int64_t>(words_ * kWordBits, std::min(p[2], q[2]));
    const int64_t y2 = std::min<int64_t>(height_, std::min(p[3], q[3]));
    if (x1 >= x2 || y1 >= y2) {
      return 0;
    }
    const int64_t first = x1 / kWordBits, width = (x2 - 1) / kWordBits + 1 - first;
    const uint32_t* u = a.bits + (i * height_ + y1) * words_ + first;
    const uint32_t* v = b.bits + (j * height_ + y1) * words_ + first;
    if (4 * width > words_ || words_ < 32) {  // one run, with what lies between
      return count_(u, v, (y2 - y1 - 1) * words_ + width);
    }
    int64_t sum = 0;
    for (int64_t y = y1; y < y2; ++y, u += words_, v += words_) {
      sum += count_(u, v, width);
    }
    return sum;
  }

 private:
  int64_t (*count_)(const uint32_t*, const uint32_t*, int64_t);
  int64_t height_, words_;
};

// Entries first to first + size - 1 are a class; its pairs start at `pairs`, column after column.
struct ClassRun {
  int64_t first, size, pairs;
};

struct ColumnBlock {
  ClassRun run;
  int64_t begin, end;  // columns of the class
};

inline int64_t column_start(int64_t j) { return j * (j - 1) / 2; }

std::vector<ColumnBlock> column_blocks(const MatrixNmsParams& p, int64_t& pairs) {
  std::vector<ColumnBlock> blocks;
  pairs = 0;
  for (int64_t first = 0; first < p.count;) {
    int64_t end = first;
    while (end < p.count && p.labels[end] == p.labels[first]) {
      ++end;
    }
    const ClassRun run{first, end - first, pairs};
    pairs += column_start(run.size);
    for (int64_t j = 0; j < run.size; j += kColumns) {
      blocks.push_back({run, j, std::min(j + kColumns, run.size)});
    }
    first = end;
  }
  // Columns grow: alternately the cheapest and the dearest, so that parts of the list cost alike.
  std::vector<ColumnBlock> mixed;
  for (size_t k = 0; k < blocks.size(); ++k) {
    mixed.push_back(k % 2 ? blocks[blocks.size() - 1 - k / 2] : blocks[k / 2]);
  }
  return mixed;
}

}  // namespace

void mask_iou_cpu(const MaskIouParams& p) {
  const SharedArea shared(p.height, p.words);
  const int64_t blocks = (p.b.count + kColumns - 1) / kColumns;
  torch::stable::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t last = std::min((block + 1) * kColumns, p.b.count);
      for (int64_t i = 0; i < p.a.count; ++i) {
        for (int64_t j = block * kColumns; j < last; ++j) {
          const int64_t both = shared(p.a, i, p.b, j);
          const int64_t area = p.a.areas[i];
          const bool crowd = p.crowd && p.crowd[j];
          p.iou[i * p.b.count + j] =
              overlap_of(both, crowd ? area : area + p.b.areas[j] - both);
        }
      }
    }
  });
}

void matrix_nms_cpu(const MatrixNmsParams& p) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  const SharedArea shared(p.height, p.words);
  int64_t pairs = 0;
  const std::vector<ColumnBlock> blocks = column_blocks(p, pairs);
  std::vector<float> overlaps(pairs), largest(p.count);
  const auto n = static_cast<int64_t>(blocks.size());
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const auto& [run, from, to] = blocks[k];
      for (int64_t i = 0; i + 1 < to; ++i) {
        const int64_t one = p.mask(run.first + i);
        for (int64_t j = std::max(from, i + 1); j < to; ++j) {
          const int64_t other = p.mask(run.first + j);
          float overlap = 0;
          if (one >= 0 && other >= 0 && p.scores[run.first + j] != kNone) {
            const int64_t both = shared(p.masks, one, p.masks, other);
            const int64_t areas = int64_t{p.masks.areas[one]} + p.masks.areas[other];
            overlap = overlap_of(both, areas - both);
          }
          overlaps[run.pairs + column_start(j) + i] = overlap;
          largest[run.first + j] = std::max(largest[run.first + j], overlap);
        }
      }
    }
  });
  torch::stable::parallel_for(0, n, 8, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const auto& [run, from, to] = blocks[k];
      for (int64_t j = from; j < to; ++j) {
        const float* column = overlaps.data() + run.pairs + column_start(j);
        float most = no_blame(p.linear);
        for (int64_t i = 0; i < j; ++i) {
          most = std::max(most, blame(p.linear, column[i], largest[run.first + i]));
        }
        const float score = p.scores[run.first + j];
        const float decay = p.linear ? -most : std::exp(-p.sigma * most);
        p.out[run.first + j] = score == kNone ? kNone : score * decay;
      }
    }
  });
}

}  // namespace segkern
