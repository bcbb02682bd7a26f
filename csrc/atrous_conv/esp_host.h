// The spatial pyramid from checked arguments to a result, for the hosts of every device: `run` is
// what computes, called with params where there is work. `in_tiles` asks for what the kernels for
// tensor cores take: see esp.h.
#pragma once

#include "conv_args.h"
#include "esp.h"

namespace segkern {

inline Tensor ones_or_zeros(const Tensor& like, int64_t n, bool ones) {
  Tensor t = torch::stable::new_zeros(like, {n}, accumulator_of(like));
  if (ones) {
    torch::stable::fill_(t, 1.0);
  }
  return t;
}

template <typename Run>
Tensor esp_pyramid_host(const Tensor& input, const std::optional<Tensor>& reduce_weight,
                        const std::vector<Tensor>& weights, const IntList& rates,
                        const std::optional<Tensor>& residual, const std::optional<Tensor>& scale,
                        const std::optional<Tensor>& shift, const std::optional<Tensor>& slope,
                        bool hierarchical, int64_t activation, bool in_tiles, const Run& run) {
  constexpr const char* kOp = "esp_pyramid";
  check_map(kOp, "input", input);
  const auto branches = static_cast<int64_t>(weights.size());
  SEGKERN_CHECK(branches >= 1 && branches <= kMaxBranches, kOp, ": weights must be 1 to ",
                kMaxBranches, " tensors, got ", branches);
  SEGKERN_CHECK(static_cast<int64_t>(rates.size()) == 2 * branches, kOp,
                ": rates must be two a branch, got ", rates.size());
  EspParams p{};
  p.batch = input.size(0);
  p.in_channels = input.size(1);
  p.height = input.size(2);
  p.width = input.size(3);
  p.reduced = reduce_weight.has_value() ? reduce_weight->size(0) : p.in_channels;
  p.branches = static_cast<int>(branches);
  p.hierarchical = hierarchical;
  p.element = element_of(input, kOp, "input");
  p.channels_last = is_channels_last(input);
  SEGKERN_CHECK(p.height < kMaxLength && p.width < kMaxLength, kOp,
                ": input must have less than 2**31 rows and columns, got ",
                shape_string(sizes_of(input)));
  SEGKERN_CHECK(!in_tiles || p.element != Element::kFloat64, kOp,
                ": input must be float16, bfloat16 or float32 on CUDA");
  const auto as_weight = [&](const char* name, const Tensor& t) {
    if (!in_tiles) {
      return as_accumulator(kOp, name, t, input);
    }
    check_same(kOp, name, t, input);
    return as_vectors(t, false);
  };
  std::vector<Tensor> kept;  // converted weights, alive for the call
  if (reduce_weight.has_value()) {
    check_sizes(kOp, "reduce_weight", *reduce_weight, {p.reduced, p.in_channels, 1, 1});
    SEGKERN_CHECK(p.reduced >= 1, kOp, ": reduce_weight must have an output channel");
    kept.push_back(as_weight("reduce_weight", *reduce_weight));
    p.reduce = kept.back().data_ptr();
  }
  for (int64_t b = 0; b < branches; ++b) {
    const Tensor& weight = weights[b];
    SEGKERN_CHECK(weight.dim() == 4, kOp, ": weights must be (C, reduced, kh, kw), got ",
                  shape_string(sizes_of(weight)));
    if (b == 0) {
      p.kernel_h = weight.size(2);
      p.kernel_w = weight.size(3);
      SEGKERN_CHECK(p.kernel_h % 2 == 1 && p.kernel_w % 2 == 1, kOp,
                    ": weights must have odd kernels, got ", shape_string(sizes_of(weight)));
    }
    check_sizes(kOp, "weights", weight, {weight.size(0), p.reduced, p.kernel_h, p.kernel_w});
    SEGKERN_CHECK(weight.size(0) >= 1 && (!hierarchical || b < 2 ||
                                          weight.size(0) == weights[b - 1].size(0)),
                  kOp, ": weights must have channels, as many as the branch before from the "
                  "third on, got ", shape_string(sizes_of(weight)));
    for (int64_t axis = 0; axis < 2; ++axis) {
      const int64_t rate = rates[2 * b + axis];
      SEGKERN_CHECK(rate >= 1 && rate < kMaxLength, kOp,
                    ": rates must be from 1 to 2**31, got ", rate);
      (axis == 0 ? p.rate_h : p.rate_w)[b] = rate;
    }
    kept.push_back(as_weight("weights", weight));
    p.weight[b] = kept.back().data_ptr();
    p.outputs[b] = weight.size(0);
    p.out_channels += weight.size(0);
  }
  const std::vector<int64_t> sizes = {p.batch, p.out_channels, p.height, p.width};
  const EpilogueArgs epilogue = epilogue_args(kOp, input, sizes, p.channels_last, scale, shift,
                                              residual, slope, activation);
  const auto vector_of = [&](const std::optional<Tensor>& t, bool ones) -> const void* {
    if (in_tiles) {
      return data_or_null(t);
    }
    Tensor full = t.has_value() ? *t : ones_or_zeros(input, p.out_channels, ones);
    if (full.size(0) != p.out_channels) {  // one slope for all channels
      Tensor copy = ones_or_zeros(input, p.out_channels, true);
      full = torch::stable::copy_(copy, full);
    }
    kept.push_back(full);
    return kept.back().data_ptr();
  };
  p.scale = vector_of(epilogue.scale, true);
  p.shift = vector_of(epilogue.shift, false);
  p.slope = vector_of(epilogue.slope, false);
  p.slope_step = epilogue.slope.has_value() && epilogue.slope->size(0) > 1 ? 1 : 0;
  p.activation = epilogue.activation;
  const auto as_map = [&](const Tensor& t) {
    return in_tiles ? as_vectors(t, p.channels_last) : as_layout(t, p.channels_last);
  };
  const Tensor in = as_map(input);
  if (epilogue.residual.has_value()) {
    kept.push_back(as_map(*epilogue.residual));
    p.residual = kept.back().data_ptr();
  }
  Tensor out = empty_in_layout(sizes, input.scalar_type(), input, p.channels_last);
  p.in = in.data_ptr();
  p.out = out.data_ptr();
  if (p.batch > 0 && p.height > 0 && p.width > 0) {
    run(p);
  }
  return out;
}

}  // namespace segkern
