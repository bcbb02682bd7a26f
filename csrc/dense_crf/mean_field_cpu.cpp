// One pass over the points does an update's slices, costs, softmax and the next update's splats on
// blocks of 64 points, so that marginals stay in the first-level cache and travel through memory
// only where they are asked for; between the passes only lattice vertices are worked on.
#include "mean_field.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <torch/csrc/stable/ops.h>

namespace segkern {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rows of logits are kept from update to update up to so many bytes; beyond, blocks are made anew
// from the planes each time, which costs a few percent and saves a third of the memory.
constexpr int64_t kKeptLogitBytes = int64_t{128} << 20;

// Calls body(slab, first point, points, scratch rows) for each block of points.
template <typename Body>
void each_block(int64_t points, int64_t scratch_floats, const Body& body) {
  torch::stable::parallel_for(0, slab_count(points), 1, [&](int64_t first, int64_t last) {
    AlignedFloats scratch(scratch_floats);
    for (int64_t slab = first; slab < last; ++slab) {
      const int64_t end = slab_begin(points, slab + 1);
      for (int64_t i = slab_begin(points, slab); i < end; i += kPointBlock) {
        body(slab, i, std::min(kPointBlock, end - i), scratch.get());
      }
    }
  });
}

std::vector<LatticeFilter> make_filters(const CrfItem& item) {
  std::vector<LatticeFilter> filters;
  filters.reserve(item.terms.size());
  for (const CrfTerm& term : item.terms) {
    filters.emplace_back(term.lattice, item.labels);
  }
  return filters;
}

void splat_all(const CrfItem& item, std::vector<LatticeFilter>& filters, int64_t i, int64_t n,
               const float* rows) {
  for (size_t t = 0; t < filters.size(); ++t) {
    filters[t].splat(i, i + n, item.terms[t].before, 1.0f, rows);
  }
}

// rows = base + the terms' negated energies; `message` is scratch for a block.
void add_messages(const CrfItem& item, const std::vector<LatticeFilter>& filters, int64_t i,
                  int64_t n, float* message, const float* base, float* rows) {
  for (size_t t = 0; t < filters.size(); ++t) {
    const CrfTerm& term = item.terms[t];
    if (term.full()) {
      continue;
    }
    filters[t].slice_add(i, i + n, term.after, term.factor.data(), base, rows);
    base = rows;
  }
  if (base != rows) {
    std::copy_n(base, n * item.stride(), rows);
  }
  for (size_t t = 0; t < filters.size(); ++t) {
    const CrfTerm& term = item.terms[t];
    if (term.full()) {
      filters[t].slice(i, i + n, term.after, message);
      lattice_rows().mix_add(message, term.matrix.data(), rows, item.labels, item.stride(), n);
    }
  }
}

void blur_all(std::vector<LatticeFilter>& filters, bool reverse) {
  for (LatticeFilter& filter : filters) {
    filter.blur(reverse);
  }
}

// The objective's share of one block, at marginals q with negated pairwise energies `message`.
double block_kl(const float* q, const float* logits, const float* message, int64_t labels,
                int64_t stride, int64_t n) {
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t l = 0; l < labels; ++l) {
      const double p = q[i * stride + l];
      const double energy = -static_cast<double>(logits[i * stride + l]) - message[i * stride + l];
      total += p * std::log(std::max(p, 1e-20)) + (p > 0 ? p * energy : 0);
    }
  }
  return total;
}

}  // namespace

void mean_field_cpu(const CrfItem& item, float* q, float* history, double* kl) {
  const LatticeRows& rows = lattice_rows();
  const int64_t points = item.points, labels = item.labels, stride = item.stride();
  const int64_t block = kPointBlock * stride;
  std::vector<LatticeFilter> filters = make_filters(item);
  const bool keep = points * stride * static_cast<int64_t>(sizeof(float)) <= kKeptLogitBytes;
  AlignedFloats kept(keep ? points * stride : 0);
  const auto make_logits = [&](int64_t i, int64_t n, float* to) {
    rows.pack(item.unary + i, points, labels, -1.0f, -kInfinity, to, stride, n);
  };
  // The logits of a block: where they are kept, or made in `scratch`.
  const auto logits = [&](int64_t i, int64_t n, float* scratch) -> const float* {
    if (keep) {
      return kept.get() + i * stride;
    }
    make_logits(i, n, scratch);
    return scratch;
  };

  // Ends an update: the next marginals, of a block, go where they are needed.
  const auto finish = [&](int64_t update, int64_t i, int64_t n, const float* marginals) {
    const bool last = update == item.iterations;
    if (history && !last) {
      std::copy_n(marginals, n * stride, history + (update * points + i) * stride);
    }
    if (last) {
      rows.unpack(marginals, stride, labels, 1.0f, q + i, points, n);
    }
    if (!last || kl) {
      splat_all(item, filters, i, n, marginals);
    }
  };

  each_block(points, 2 * block, [&](int64_t, int64_t i, int64_t n, float* scratch) {
    float* at = keep ? kept.get() + i * stride : scratch + block;
    make_logits(i, n, at);
    if (item.q0) {
      rows.pack(item.q0 + i, points, labels, 1.0f, 0.0f, scratch, stride, n);
    } else {
      rows.softmax(at, scratch, stride, n);
    }
    finish(0, i, n, scratch);
  });
  for (int64_t update = 1; update <= item.iterations; ++update) {
    blur_all(filters, false);
    each_block(points, 3 * block, [&](int64_t, int64_t i, int64_t n, float* scratch) {
      const float* base = logits(i, n, scratch + 2 * block);
      add_messages(item, filters, i, n, scratch + block, base, scratch);
      rows.softmax(scratch, scratch, stride, n);
      finish(update, i, n, scratch);
    });
  }
  if (kl) {
    blur_all(filters, false);
    std::vector<double> parts(slab_count(points), 0.0);
    each_block(points, 4 * block, [&](int64_t slab, int64_t i, int64_t n, float* scratch) {
      const float* energies = logits(i, n, scratch + 3 * block);
      float* marginals = scratch + block;
      std::fill_n(scratch, n * stride, 0.0f);
      add_messages(item, filters, i, n, scratch + 2 * block, scratch, scratch);
      rows.pack(q + i, points, labels, 1.0f, 0.0f, marginals, stride, n);
      parts[slab] += block_kl(marginals, energies, scratch, labels, stride, n);
    });
    *kl = 0;
    for (const double part : parts) {
      *kl += part;
    }
  }
}

// With G = S^T dz for the gradient dz of an update's logits, the update's marginals get -G cost,
// and the cost itself -G^T q: no forward filter is run again, and none of its results is kept.
void mean_field_backward_cpu(const CrfItem& item, const float* grad, const float* q,
                             const float* history, float* grad_unary, float* grad_q0,
                             const std::vector<std::vector<double>*>& grad_costs) {
  const LatticeRows& rows = lattice_rows();
  const int64_t points = item.points, labels = item.labels, stride = item.stride();
  const int64_t block = kPointBlock * stride;
  const int64_t slabs = slab_count(points);
  const size_t terms = item.terms.size();
  std::vector<LatticeFilter> filters = make_filters(item);
  AlignedFloats grad_logits(points * stride, true);  // summed over the updates
  // Sums of the costs' gradients, of each slab.
  std::vector<std::vector<double>> sums(slabs * terms);
  for (int64_t s = 0; s < slabs; ++s) {
    for (size_t t = 0; t < terms; ++t) {
      sums[s * terms + t].assign(item.terms[t].full() ? labels * stride : stride, 0.0);
    }
  }

  // Through the softmax of an update into its logits, and into the slots.
  const auto enter = [&](int64_t i, int64_t n, const float* marginals, float* grads, bool splat) {
    rows.softmax_backward(marginals, grads, grads, stride, n);
    float* total = grad_logits.get() + i * stride;
    for (int64_t k = 0; k < n * stride; ++k) {
      total[k] += grads[k];
    }
    if (splat) {
      for (size_t t = 0; t < terms; ++t) {
        filters[t].splat(i, i + n, item.terms[t].after, 1.0f, grads);
      }
    }
  };

  each_block(points, 2 * block, [&](int64_t, int64_t i, int64_t n, float* scratch) {
    float* marginals = scratch + block;
    rows.pack(grad + i, points, labels, 1.0f, 0.0f, scratch, stride, n);
    rows.pack(q + i, points, labels, 1.0f, 0.0f, marginals, stride, n);
    if (item.iterations > 0) {
      enter(i, n, marginals, scratch, true);
    } else if (item.q0) {
      rows.unpack(scratch, stride, labels, 1.0f, grad_q0 + i, points, n);
    } else {
      enter(i, n, marginals, scratch, false);
    }
  });
  for (int64_t update = item.iterations - 1; update >= 0; --update) {
    blur_all(filters, true);
    const int64_t floats = 2 * block + labels * stride;
    each_block(points, floats, [&](int64_t slab, int64_t i, int64_t n, float* scratch) {
      float* message = scratch + block;
      float* part = scratch + 2 * block;
      const float* marginals = history + (update * points + i) * stride;
      std::fill_n(scratch, n * stride, 0.0f);
      for (size_t t = 0; t < terms; ++t) {
        const CrfTerm& term = item.terms[t];
        filters[t].slice(i, i + n, term.before, message);
        std::vector<double>& sum = sums[slab * terms + t];
        std::fill_n(part, sum.size(), 0.0f);
        if (term.full()) {
          rows.outer_add(message, marginals, part, labels, stride, n);
          rows.mix_add(message, term.transposed.data(), scratch, labels, stride, n);
        } else {
          rows.dot_add(message, marginals, part, stride, n);
          for (int64_t k = 0; k < n; ++k) {
            for (int64_t l = 0; l < stride; ++l) {
              scratch[k * stride + l] += term.factor[l] * message[k * stride + l];
            }
          }
        }
        for (size_t k = 0; k < sum.size(); ++k) {
          sum[k] += part[k];
        }
      }
      if (update > 0 || !item.q0) {
        enter(i, n, marginals, scratch, update > 0);
      } else {
        rows.unpack(scratch, stride, labels, 1.0f, grad_q0 + i, points, n);
      }
    });
  }
  each_block(points, 0, [&](int64_t, int64_t i, int64_t n, float*) {
    rows.unpack(grad_logits.get() + i * stride, stride, labels, -1.0f, grad_unary + i, points, n);
  });
  for (size_t t = 0; t < terms; ++t) {
    const int64_t receiving = item.terms[t].full() ? labels : 1;
    for (int64_t s = 0; s < slabs; ++s) {
      for (int64_t r = 0; r < receiving; ++r) {
        for (int64_t l = 0; l < labels; ++l) {
          (*grad_costs[t])[r * labels + l] -= sums[s * terms + t][r * stride + l];
        }
      }
    }
  }
}

}  // namespace segkern
