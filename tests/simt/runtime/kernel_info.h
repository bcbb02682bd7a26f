// What the binary knows about a kernel: its name and its static shared memory.
#pragma once

#include <cstddef>
#include <string>

namespace simt {

struct Module;

struct KernelInfo {
  const void* address;
  std::string name;                 // demangled, with template arguments, without parameters
  std::size_t static_shared_bytes;  // __shared__ variables declared in the kernel itself
  const Module* module;
};

/// Looks up the kernel that starts at `kernel`. The reference stays valid.
const KernelInfo& kernel_info(const void* kernel);

/// The calling OS thread's copy of the static shared memory of a kernel's module.
class StaticShared {
 public:
  StaticShared() = default;
  explicit StaticShared(const KernelInfo& kernel);
  /// Fills every __shared__ variable of the module with `byte`.
  void fill(unsigned char byte) const;

 private:
  const Module* module_ = nullptr;
  char* thread_local_block_ = nullptr;
};

}  // namespace simt
