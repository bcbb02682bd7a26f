// What a kernel did wrong, and where in its source.
#pragma once

#include <stdexcept>
#include <string>

namespace simt {

/// Any misuse the rung reports: a barrier that is never completed, a shuffle from a lane that has
/// left, a launch that hardware would refuse, an illegal address. pybind11 turns it into a Python
/// RuntimeError.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// A place in a kernel's source. Barriers and warp operations take one as a last, defaulted
/// argument, so that a report names the line the author wrote.
struct Site {
  const char* file = "";
  int line = 0;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return Site{file, line};
  }
};

}  // namespace simt
