// Argument checks with one message form: "<op>: <argument> must be <wanted>, got <given>".
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace segkern {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

template <typename Sizes>
std::string shape_string(const Sizes& sizes) {
  std::ostringstream out;
  out << '(';
  for (size_t i = 0; i < sizes.size(); ++i) {
    out << (i ? ", " : "") << sizes[i];
  }
  out << (sizes.size() == 1 ? ",)" : ")");
  return out.str();
}

inline std::vector<int64_t> sizes_of(const torch::stable::Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

}  // namespace segkern

// Throws RuntimeError with the concatenation of the remaining arguments.
#define SEGKERN_CHECK(condition, ...) \
  do {                                \
    if (!(condition)) {               \
      ::segkern::fail(__VA_ARGS__);   \
    }                                 \
  } while (0)
