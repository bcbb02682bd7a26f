// A task is a run of pixels of one item: their channels are walked as rows, which the compiler
// turns into vectors where planes are contiguous. The tasks do not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "../common/dispatch.h"
#include "../common/exp.h"
#include "../common/stream_store.h"
#include "block_min.h"

namespace segkern {
namespace {

constexpr int64_t kRun = 2048;  // pixels

template <typename T>
struct Wide {
  using type = float;
};
template <>
struct Wide<double> {
  using type = double;
};

// A run's pixels: element (channel u, pixel i) of a tensor with C channels.
template <bool kLast>
struct Run {
  static constexpr bool kChannelsLast = kLast;
  const BlockMinParams& p;
  PixelChannels at;
  int64_t n;

  int64_t narrow(int64_t u, int64_t i) const {
    return at.narrow + u * at.step + (kLast ? i * p.labels : i);
  }
  int64_t wide(int64_t channel, int64_t i) const {
    return at.wide + channel * at.step + (kLast ? i * p.labels * p.block : i);
  }
};

// Calls body(run, thread's scratch) for every run of pixels.
template <bool kLast, typename Scratch, typename Body>
void each_run(const BlockMinParams& p, const Body& body) {
  const int64_t runs = (p.area + kRun - 1) / kRun;
  torch::stable::parallel_for(0, p.items * runs, 16, [&](int64_t begin, int64_t end) {
    Scratch scratch(p);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t first = task % runs * kRun;
      body(Run<kLast>{p, PixelChannels(p, task / runs, first), std::min(kRun, p.area - first)},
           scratch);
    }
    stream_fence();
  });
}

template <typename Body>
void by_layout(const BlockMinParams& p, const Body& body) {
  if (p.channels_last) {
    body(std::true_type{});
  } else {
    body(std::false_type{});
  }
}

template <typename W>
struct Minimum {
  W best[kRun];
  int32_t code[kRun];

  explicit Minimum(const BlockMinParams&) {}

  // The smallest of the block of label u; a NaN is smaller than any number.
  template <typename T, typename R>
  void find(const R& run, const T* in, int64_t u) {
    for (int64_t i = 0; i < run.n; ++i) {
      best[i] = static_cast<W>(in[run.wide(u * run.p.block, i)]);
      code[i] = 0;
    }
    for (int64_t k = 1; k < run.p.block; ++k) {
      for (int64_t i = 0; i < run.n; ++i) {
        const W v = static_cast<W>(in[run.wide(u * run.p.block + k, i)]);
        const bool take = (v < best[i]) | ((v != v) & (best[i] == best[i]));
        best[i] = take ? v : best[i];
        code[i] = take ? static_cast<int32_t>(k) : code[i];
      }
    }
  }
};

template <typename W>
struct Logits : Minimum<W> {
  W most[kRun], total[kRun];
  std::vector<W> x;  // (labels, kRun)

  explicit Logits(const BlockMinParams& p) : Minimum<W>(p), x(p.labels * kRun) {}
};

// The gradient `value(i)` at the block's chosen elements of label u, zeros at the others. Codes are
// bytes, which the compiler takes for a view of anything: they are read before all is written.
template <typename T, typename R, typename Value>
void route(const R& given, int64_t u, T* to, const Value& value) {
  const R run = given;
  const int64_t n = run.n, block = run.p.block, labels = run.p.labels;
  const int64_t bytes =
      run.p.items * labels * block * run.p.area * static_cast<int64_t>(sizeof(T));
  const bool streamed = bytes >= kStreamBytes;
  int32_t code[kRun];
  T chosen[kRun], staged[kRun];
  for (int64_t i = 0; i < n; ++i) {
    code[i] = run.p.codes[run.narrow(u, i)];
    chosen[i] = value(i);
  }
  for (int64_t k = 0; k < block; ++k) {
    const auto wanted = static_cast<int32_t>(k);  // as wide as the codes, for vectors of both
    T* plane = to + run.wide(u * block + k, 0);
    T* line = R::kChannelsLast || !streamed ? plane : staged;
    const int64_t step = R::kChannelsLast ? labels * block : 1;
    for (int64_t i = 0; i < n; ++i) {
      const T value_i = chosen[i];
      line[i * step] = code[i] == wanted ? value_i : static_cast<T>(0.0f);
    }
    if (line == staged) {
      stream_store(plane, staged, n * static_cast<int64_t>(sizeof(T)));
    }
  }
}

}  // namespace

void block_min_fwd_cpu(const BlockMinParams& p) {
  SEGKERN_DISPATCH_FLOATING(p.element, [&] {
    using wide_t = typename Wide<scalar_t>::type;
    by_layout(p, [&](auto last) {
      each_run<decltype(last)::value, Minimum<wide_t>>(p, [&](const auto& run, auto& minimum) {
        const auto* in = static_cast<const scalar_t*>(p.wide_in);
        auto* out = static_cast<scalar_t*>(p.out);
        for (int64_t u = 0; u < p.labels; ++u) {
          minimum.find(run, in, u);
          for (int64_t i = 0; i < run.n; ++i) {
            out[run.narrow(u, i)] = static_cast<scalar_t>(minimum.best[i]);
            p.codes[run.narrow(u, i)] = static_cast<uint8_t>(minimum.code[i]);
          }
        }
      });
    });
  });
}

void block_min_bwd_cpu(const BlockMinParams& p) {
  SEGKERN_DISPATCH_FLOATING(p.element, [&] {
    by_layout(p, [&](auto last) {
      each_run<decltype(last)::value, Minimum<float>>(p, [&](const auto& run, auto&) {
        const auto* grad = static_cast<const scalar_t*>(p.grad);
        for (int64_t u = 0; u < p.labels; ++u) {
          route(run, u, static_cast<scalar_t*>(p.wide_out),
                [&](int64_t i) { return grad[run.narrow(u, i)]; });
        }
      });
    });
  });
}

void mean_field_pass_fwd_cpu(const BlockMinParams& p) {
  SEGKERN_DISPATCH_FLOATING(p.element, [&] {
    using wide_t = typename Wide<scalar_t>::type;
    by_layout(p, [&](auto last) {
      each_run<decltype(last)::value, Logits<wide_t>>(p, [&](const auto& run, auto& l) {
        const auto* in = static_cast<const scalar_t*>(p.wide_in);
        const auto* unary = static_cast<const scalar_t*>(p.unary);
        auto* out = static_cast<scalar_t*>(p.out);
        std::fill_n(l.most, run.n, -std::numeric_limits<wide_t>::infinity());
        std::fill_n(l.total, run.n, wide_t(0));
        for (int64_t u = 0; u < p.labels; ++u) {
          l.find(run, in, u);
          wide_t* x = l.x.data() + u * kRun;
          for (int64_t i = 0; i < run.n; ++i) {
            x[i] = static_cast<wide_t>(unary[run.narrow(u, i)]) - l.best[i];
            l.most[i] = x[i] > l.most[i] ? x[i] : l.most[i];
            p.codes[run.narrow(u, i)] = static_cast<uint8_t>(l.code[i]);
          }
        }
        for (int64_t u = 0; u < p.labels; ++u) {
          const wide_t* x = l.x.data() + u * kRun;
          for (int64_t i = 0; i < run.n; ++i) {
            l.total[i] += exp_of(x[i] - l.most[i]);
          }
        }
        for (int64_t i = 0; i < run.n; ++i) {
          l.total[i] = l.most[i] + std::log(l.total[i]);
        }
        const bool log = p.log;
        for (int64_t u = 0; u < p.labels; ++u) {
          const wide_t* x = l.x.data() + u * kRun;
          for (int64_t i = 0; i < run.n; ++i) {
            const wide_t result = x[i] - l.total[i];
            out[run.narrow(u, i)] = static_cast<scalar_t>(log ? result : exp_of(result));
          }
        }
      });
    });
  });
}

// With q the marginals and G the gradient: of logarithms G - q sum(G), of marginals
// q (G - sum(q G)); minus that goes to the penalties that were the smallest.
void mean_field_pass_bwd_cpu(const BlockMinParams& p) {
  SEGKERN_DISPATCH_FLOATING(p.element, [&] {
    using wide_t = typename Wide<scalar_t>::type;
    by_layout(p, [&](auto last) {
      each_run<decltype(last)::value, Logits<wide_t>>(p, [&](const auto& run, auto& l) {
        const auto* result = static_cast<const scalar_t*>(p.result);
        const auto* grad = static_cast<const scalar_t*>(p.grad);
        auto* out = static_cast<scalar_t*>(p.out);
        const bool log = p.log;
        std::fill_n(l.total, run.n, wide_t(0));
        for (int64_t u = 0; u < p.labels; ++u) {
          for (int64_t i = 0; i < run.n; ++i) {
            const wide_t g = static_cast<wide_t>(grad[run.narrow(u, i)]);
            l.total[i] += log ? g : g * static_cast<wide_t>(result[run.narrow(u, i)]);
          }
        }
        for (int64_t u = 0; u < p.labels; ++u) {
          wide_t* x = l.x.data() + u * kRun;
          for (int64_t i = 0; i < run.n; ++i) {
            const wide_t g = static_cast<wide_t>(grad[run.narrow(u, i)]);
            const wide_t r = static_cast<wide_t>(result[run.narrow(u, i)]);
            x[i] = log ? g - exp_of(r) * l.total[i] : r * (g - l.total[i]);
          }
          for (int64_t i = 0; i < run.n; ++i) {
            out[run.narrow(u, i)] = static_cast<scalar_t>(x[i]);
          }
          route(run, u, static_cast<scalar_t*>(p.wide_out),
                [&](int64_t i) { return static_cast<scalar_t>(-x[i]); });
        }
      });
    });
  });
}

}  // namespace segkern
