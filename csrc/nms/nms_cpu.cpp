// Greedy, box by box: one that stays takes out those behind it.
#include "nms.h"

namespace segkern {
namespace {

template <typename T>
void suppress(const NmsParams& p) {
  const auto* boxes = static_cast<const T*>(p.boxes);
  const T threshold = static_cast<T>(p.threshold);
  for (int64_t i = 0; i < p.count; ++i) {
    p.keep[i] = p.live[i];
  }
  for (int64_t i = 0; i < p.count; ++i) {
    if (!p.keep[i]) {
      continue;
    }
    for (int64_t j = i + 1; j < p.count; ++j) {
      const bool alike = !p.labels || p.labels[i] == p.labels[j];
      if (alike && p.keep[j] && overlaps(boxes + 4 * i, boxes + 4 * j, threshold)) {
        p.keep[j] = false;
      }
    }
  }
}

}  // namespace

void nms_cpu(const NmsParams& p) {
  if (p.wide) {
    suppress<double>(p);
  } else {
    suppress<float>(p);
  }
}

}  // namespace segkern
