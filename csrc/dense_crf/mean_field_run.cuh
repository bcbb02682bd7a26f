// Whole inferences and their gradients as sequences of launches, without a look at what the device
// knows; `launch` as in lattice_build_launch.cuh.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "mean_field_launch.cuh"

namespace segkern {

// Padded rows of all items, `item` floats from one to the next.
struct RowsAt {
  float* rows;
  int64_t item;
};

template <typename Launch>
class MeanFieldRun {
 public:
  MeanFieldRun(const CrfBuffers& crf, const Launch& launch)
      : crf_(crf), launch_(launch), plane_(crf.rows.points * crf.rows.stride) {}

  // So many updates from the start on; the marginals after the last one are in marginals(updates).
  void forward(int64_t updates) {
    spread_costs(false);
    lattice_pack(crf_.unary, Element::kFloat32, crf_.logits, crf_.rows.batch, crf_.rows.labels,
                 crf_.rows.points, crf_.rows.stride, plane_, -1.0f, -INFINITY, launch_);
    if (crf_.q0) {
      pack(crf_.q0, marginals(0));
    } else {
      const RowsAt to = marginals(0);
      mean_field_update(MeanFieldParams{crf_.rows, {}, crf_.logits, to.rows, plane_, to.item, true},
                        launch_);
    }
    for (int64_t update = 1; update <= updates; ++update) {
      filter(marginals(update - 1), false);
      const RowsAt to = marginals(update);
      each_group([&](const MeanFieldTerms& group, size_t first, bool last) {
        MeanFieldParams p{crf_.rows, group, first == 0 ? crf_.logits : crf_.partial,
                          crf_.partial, plane_, plane_, last};
        if (last) {
          p.out = to.rows;
          p.out_item = to.item;
        }
        mean_field_update(p, launch_);
      });
    }
  }

  // The result as planes.
  void finish(float* q) {
    const RowsAt from = marginals(crf_.iterations);
    unpack(from.rows, q, 1.0f);
  }

  // The objective of each item at the result; parts (batch, blocks).
  void objective(double* parts, double* out) {
    const RowsAt at = marginals(crf_.iterations);
    filter(at, false);
    each_group([&](const MeanFieldTerms& group, size_t first, bool last) {
      const float* base = first == 0 ? crf_.logits : crf_.partial;
      if (last) {
        mean_field_objective(ObjectiveParams{crf_.rows, group, base, at.rows, parts}, launch_);
      } else {
        mean_field_update(
            MeanFieldParams{crf_.rows, group, base, crf_.partial, plane_, plane_, false}, launch_);
      }
    });
    const int64_t blocks = item_blocks(crf_.rows, kSumRounds);
    mean_field_sum(SumParams{parts, 1, 0, blocks, blocks, crf_.rows.batch, 1.0}, out, launch_);
  }

  // From gradients to the result to all others; the history holds the marginals before each update.
  void backward(const CrfGradBuffers& g) {
    spread_costs(true);
    const RowsAt grads = {g.grads, plane_};
    pack(g.grad, grads);
    const bool from_start = crf_.q0 && crf_.iterations == 0;
    if (from_start) {  // the result is the start, and the logits play no part
      lattice_pack(g.q, Element::kFloat32, g.total, crf_.rows.batch, 0, crf_.rows.points,
                   crf_.rows.stride, plane_, 0.0f, 0.0f, launch_);
    } else {
      pack(g.q, {g.last, plane_});
      MeanFieldBackwardParams p{};
      p.rows = crf_.rows;
      p.base = p.out = g.grads;
      p.q = g.last;
      p.q_item = plane_;
      p.total = g.total;
      p.last = p.first_total = true;
      mean_field_backward(p, launch_);
    }
    for (int64_t update = crf_.iterations - 1; update >= 0; --update) {
      filter(grads, true);
      const RowsAt q = marginals(update);
      const bool first = update + 1 == crf_.iterations;
      each_group([&](const MeanFieldTerms& group, size_t begin, bool last) {
        MeanFieldBackwardParams p{};
        p.rows = crf_.rows;
        p.group = group;
        p.base = begin == 0 ? nullptr : g.grads;
        p.q = q.rows;
        p.q_item = q.item;
        p.out = last && update == 0 && !crf_.q0 ? nullptr : g.grads;
        p.total = update == 0 && crf_.q0 ? nullptr : g.total;
        p.part_row = static_cast<int64_t>(crf_.terms.size()) * crf_.rows.stride;
        p.parts = g.parts + static_cast<int64_t>(begin) * crf_.rows.stride;
        p.last = last;
        p.first_parts = first;
        mean_field_backward(p, launch_);
        for (int t = 0; t < group.n_terms; ++t) {
          if (group.terms[t].full) {
            mean_field_outer(
                OuterParams{crf_.rows, group.terms[t].filter, q.rows, q.item,
                            crf_.terms[begin + t].outer_parts, OuterShape(crf_.rows).chunk_rows,
                            first},
                launch_);
          }
        }
      });
    }
    unpack(g.total, g.grad_unary, -1.0f);
    if (crf_.q0) {
      unpack(g.grads, g.grad_q0, 1.0f);
    }
    sum_costs(g.parts);
  }

 private:
  // The marginals after so many updates.
  RowsAt marginals(int64_t updates) const {
    if (crf_.history && updates < crf_.iterations) {
      return {crf_.history + updates * plane_, crf_.iterations * plane_};
    }
    return {crf_.q, plane_};
  }

  void pack(const float* planes, RowsAt to) {
    lattice_pack(planes, Element::kFloat32, to.rows, crf_.rows.batch, crf_.rows.labels,
                 crf_.rows.points, crf_.rows.stride, to.item, 1.0f, 0.0f, launch_);
  }

  void unpack(const float* rows, float* planes, float factor) {
    lattice_unpack(rows, planes, crf_.rows.batch, crf_.rows.labels, crf_.rows.points,
                   crf_.rows.stride, factor, launch_);
  }

  void spread_costs(bool transposed) {
    for (const CrfTermBuffers& term : crf_.terms) {
      mean_field_costs(term.cost, term.cost_dims, transposed, term.cost_rows, crf_.rows.labels,
                       crf_.rows.stride, launch_);
    }
  }

  // Filters rows with every term, in groups; `filtered_` has their blurred sums.
  void filter(RowsAt from, bool reverse) {
    filtered_.clear();
    for (size_t begin = 0; begin < crf_.terms.size(); begin += kGroupTerms) {
      FilterGroup group{};
      for (size_t t = begin; t < std::min(begin + kGroupTerms, crf_.terms.size()); ++t) {
        const CrfTermBuffers& term = crf_.terms[t];
        FilterParams& p = group.terms[group.n_terms++];
        p = term.filter;
        p.values = from.rows;
        p.values_item = from.item;
        p.before = reverse ? term.after : term.before;
        p.after = reverse ? term.before : term.after;
      }
      lattice_splat_and_blur(group, reverse, launch_);
      filtered_.insert(filtered_.end(), group.terms, group.terms + group.n_terms);
    }
  }

  // body(the group of terms, its first term, whether it is the last group), once at least.
  template <typename Body>
  void each_group(const Body& body) const {
    size_t begin = 0;
    do {
      MeanFieldTerms group{};
      const size_t end = std::min(begin + kGroupTerms, crf_.terms.size());
      for (size_t t = begin; t < end; ++t) {
        group.terms[group.n_terms++] = {filtered_[t], crf_.terms[t].cost_rows,
                                        crf_.terms[t].cost_dims == 2};
      }
      body(group, begin, end == crf_.terms.size());
      begin = end;
    } while (begin < crf_.terms.size());
  }

  void sum_costs(const double* parts) {
    const int64_t labels = crf_.rows.labels, stride = crf_.rows.stride;
    const bool any = crf_.iterations > 0;
    for (size_t t = 0; t < crf_.terms.size(); ++t) {
      const CrfTermBuffers& term = crf_.terms[t];
      SumParams p{parts + static_cast<int64_t>(t) * stride,
                  any ? part_blocks(crf_.rows) : 0,
                  static_cast<int64_t>(crf_.terms.size()) * stride,
                  1, 1, labels, -1.0};
      if (term.cost_dims == 0) {
        p.width = labels;
        p.outputs = 1;
      } else if (term.cost_dims == 2) {
        p.parts = term.outer_parts;
        p.rows = any ? OuterShape(crf_.rows).chunks : 0;
        p.row = p.outputs = labels * labels;
      }
      mean_field_sum(p, term.grad_cost, launch_);
    }
  }

  const CrfBuffers& crf_;
  const Launch& launch_;
  int64_t plane_;  // floats of an item's rows
  std::vector<FilterParams> filtered_;
};

}  // namespace segkern
