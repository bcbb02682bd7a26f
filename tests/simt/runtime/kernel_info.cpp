// Reads the symbol table of the shared object a kernel lives in. `__shared__ float tile[32]` in a
// kernel is a function-local `static thread_local`, so it has a thread-local symbol whose name
// begins with the kernel's:
//
//     _ZN7segkern6reduceIfEEvPKT_          the kernel, segkern::reduce<float>(float const*)
//     _ZZN7segkern6reduceIfEEvPKT_E4tile   its variable: _ZZ <kernel's encoding> E <name>
//
// That gives what no macro can: the size of a kernel's static shared memory, and where it lies.
#include "kernel_info.h"

#include <cxxabi.h>
#include <link.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "simt/error.h"
#include "simt/types.h"

namespace simt {

struct Module {
  struct Shared {
    std::string symbol;
    std::size_t offset;  // in the module's thread-local block
    std::size_t bytes;
  };
  std::string path;
  std::uintptr_t base = 0;
  std::vector<Shared> shared;
  std::map<std::uintptr_t, std::string> functions;  // address in the file -> mangled name
};

namespace {

bool starts_with(const std::string& text, const char* prefix) {
  return text.compare(0, std::strlen(prefix), prefix) == 0;
}

struct Query {
  std::uintptr_t address;  // in: any address of the module
  std::uintptr_t base;     // out
  std::string path;
  char* thread_local_block;  // the calling OS thread's
};

Query find_module(const void* address) {
  Query query{reinterpret_cast<std::uintptr_t>(address), 0, "", nullptr};
  // The block of a module loaded at run time is allocated when a thread first touches it.
  static_cast<void>(*static_cast<volatile unsigned*>(&threadIdx.x));
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        auto* query = static_cast<Query*>(data);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type == PT_LOAD &&
              query->address - info->dlpi_addr - header.p_vaddr < header.p_memsz) {
            query->base = info->dlpi_addr;
            query->path = *info->dlpi_name ? info->dlpi_name : "/proc/self/exe";
            query->thread_local_block = static_cast<char*>(info->dlpi_tls_data);
            return 1;
          }
        }
        return 0;
      },
      &query);
  return query;
}

std::unique_ptr<Module> read_module(const Query& query) {
  auto module = std::make_unique<Module>();
  module->path = query.path;
  module->base = query.base;
  std::ifstream file(query.path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file),
                                std::istreambuf_iterator<char>()};
  if (bytes.size() < sizeof(ElfW(Ehdr))) {
    throw Error("simt: cannot read " + query.path);
  }
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) {
      continue;
    }
    const char* strings = bytes.data() + sections[sections[i].sh_link].sh_offset;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[i].sh_offset);
    for (std::size_t s = 0; s < sections[i].sh_size / sizeof(*symbols); ++s) {
      const auto& symbol = symbols[s];
      const std::string name = strings + symbol.st_name;
      const int type = ELF64_ST_TYPE(symbol.st_info);
      if (type == STT_FUNC && symbol.st_value != 0) {
        module->functions.emplace(symbol.st_value, name);
      } else if (type == STT_TLS && starts_with(name, "_ZZ") &&
                 !starts_with(name, "_ZZN8pybind11") && !starts_with(name, "_ZZNSt")) {
        module->shared.push_back({name, symbol.st_value, symbol.st_size});
      }
    }
    return module;
  }
  throw Error("simt: " + query.path + " has no symbol table");
}

// "void segkern::(anonymous namespace)::pool<float>(Params)" -> "segkern::pool<float>"
std::string readable(const std::string& mangled) {
  int status = 0;
  std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status), std::free);
  if (status != 0) {
    return mangled;
  }
  std::string name = text.get();
  const std::string anonymous = "(anonymous namespace)::";
  for (auto at = name.find(anonymous); at != std::string::npos; at = name.find(anonymous)) {
    name.erase(at, anonymous.size());
  }
  if (starts_with(name, "void ")) {
    name.erase(0, 5);
  }
  int depth = 0;
  for (std::size_t i = 0; i < name.size(); ++i) {
    depth += (name[i] == '<') - (name[i] == '>');
    if (name[i] == '(' && depth == 0) {
      return name.substr(0, i);
    }
  }
  return name;
}

}  // namespace

const KernelInfo& kernel_info(const void* kernel) {
  static std::mutex mutex;
  static std::map<const void*, KernelInfo> kernels;
  static std::map<std::uintptr_t, std::unique_ptr<Module>> modules;
  const std::lock_guard<std::mutex> lock(mutex);
  if (const auto known = kernels.find(kernel); known != kernels.end()) {
    return known->second;
  }

  const Query query = find_module(kernel);
  auto& module = modules[query.base];
  if (module == nullptr) {
    module = read_module(query);
  }
  const auto symbol =
      module->functions.find(reinterpret_cast<std::uintptr_t>(kernel) - module->base);
  if (symbol == module->functions.end()) {
    throw Error("simt: no symbol for the kernel in " + module->path);
  }
  const std::string local = "_ZZ" + symbol->second.substr(2) + "E";
  std::size_t bytes = 0;
  for (const auto& shared : module->shared) {
    if (starts_with(shared.symbol, local.c_str())) {
      bytes += shared.bytes;
    }
  }
  return kernels.emplace(kernel, KernelInfo{kernel, readable(symbol->second), bytes, module.get()})
      .first->second;
}

StaticShared::StaticShared(const KernelInfo& kernel) : module_(kernel.module) {
  thread_local_block_ = find_module(kernel.address).thread_local_block;
}

void StaticShared::fill(unsigned char byte) const {
  for (const auto& shared : module_->shared) {
    std::memset(thread_local_block_ + shared.offset, byte, shared.bytes);
  }
}

}  // namespace simt
