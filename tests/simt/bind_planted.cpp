// Python module simt_planted: every kernel of planted.cuh as a function over NumPy arrays, launched
// as the name says.
#include <array>
#include <string>

#include "common/kernel_dispatch.cuh"
#include "launcher.h"
#include "planted.cuh"

using simt::Array;
using simt::DeviceBuffer;

namespace {

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>((n + planted::kBlock - 1) / planted::kBlock);
}

// Binds a kernel of one output array, `out`, and plain arguments: name(out, *plain, grid, block,
// shared).
template <typename T, typename... Plain>
void def_output(simt::Bindings& m, const char* name, void (*kernel)(T*, Plain...)) {
  m.def(name,
        [kernel](Array out, Plain... plain, unsigned grid, unsigned block, std::size_t shared) {
          DeviceBuffer buffer(out);
          simt::launch(kernel, grid, block, shared, buffer.as<T>(), plain...);
          buffer.copy_back();
        });
}

// Binds a kernel of an input and an output array: name(in, out, *plain, grid, block).
template <typename In, typename Out, typename... Plain>
void def_input_output(simt::Bindings& m, const char* name,
                      void (*kernel)(const In*, Out*, Plain...)) {
  m.def(name, [kernel](Array in, Array out, Plain... plain, unsigned grid, unsigned block) {
    DeviceBuffer input(in), output(out);
    simt::launch(kernel, grid, block, 0, input.as<const In>(), output.as<Out>(), plain...);
    output.copy_back();
  });
}

void spin_lock(Array out, unsigned grid, unsigned block) {  // out: lock, counter
  DeviceBuffer buffer(out);
  simt::launch(planted::spin_lock, grid, block, 0, buffer.as<int>(), buffer.as<int>() + 1);
  buffer.copy_back();
}

void coordinates(Array out, std::array<unsigned, 3> grid, std::array<unsigned, 3> block,
                 std::size_t shared) {
  DeviceBuffer buffer(out);
  simt::launch(planted::coordinates, dim3(grid[0], grid[1], grid[2]),
               dim3(block[0], block[1], block[2]), shared, buffer.as<int>());
  buffer.copy_back();
}

void atomic_sum(Array in, Array sum, const std::string& dtype) {
  DeviceBuffer input(in), output(sum);
  segkern::by_type(simt::element_named(dtype), [&](auto tag) {
    using scalar_t = typename decltype(tag)::type;
    simt::launch(planted::atomic_sum<scalar_t>, blocks_for(in.size()), planted::kBlock, 0,
                 input.as<const scalar_t>(), output.as<scalar_t>());
  });
  output.copy_back();
}

template <typename scalar_t>
void small_float_kernels(const std::string& what, const DeviceBuffer& a, const DeviceBuffer& b,
                         const DeviceBuffer& out, int n) {
  const unsigned grid = blocks_for(n);
  if (what == "widen") {
    simt::launch(planted::widen<scalar_t>, grid, planted::kBlock, 0, a.as<const scalar_t>(),
                 out.as<float>(), n);
  } else if (what == "narrow") {
    simt::launch(planted::narrow<scalar_t>, grid, planted::kBlock, 0, a.as<const float>(),
                 out.as<scalar_t>(), n);
  } else {
    simt::launch(planted::small_float_arithmetic<scalar_t>, grid, planted::kBlock, 0,
                 a.as<const scalar_t>(), b.as<const scalar_t>(), out.as<scalar_t>(), n);
  }
}

void small_float(const std::string& what, const std::string& dtype, Array a, Array b,
                 Array out) {
  DeviceBuffer left(a), right(b), result(out);
  const int n = static_cast<int>(a.size());
  dtype == "float16" ? small_float_kernels<__half>(what, left, right, result, n)
                     : small_float_kernels<__nv_bfloat16>(what, left, right, result, n);
  result.copy_back();
}

}  // namespace

SIMT_MODULE(simt_planted, m) {
  def_input_output(m, "block_sum", planted::block_sum);
  def_input_output(m, "reverse_block", planted::reverse_block<true>);
  def_input_output(m, "reverse_block_race", planted::reverse_block<false>);
  def_input_output(m, "early_exit", planted::early_exit);
  def_input_output(m, "load_float4", planted::load_float4);
  def_input_output(m, "warp_intrinsics", planted::warp_intrinsics);
  def_input_output(m, "split_warp", planted::split_warp);
  def_input_output(m, "block_votes", planted::block_votes);
  def_input_output(m, "atomic_integers", planted::atomic_integers);
  def_output(m, "lost_update", planted::lost_update);
  def_output(m, "write_at", planted::write_at);
  def_output(m, "read_dynamic_shared", planted::read_dynamic_shared);
  def_output(m, "read_static_shared", planted::read_static_shared);
  def_output(m, "signed_overflow", planted::signed_overflow);
  def_output(m, "shift_too_far", planted::shift_too_far);
  def_output(m, "two_barriers", planted::two_barriers);
  def_output(m, "barrier_and_shuffle", planted::barrier_and_shuffle);
  def_output(m, "shuffle_from_left", planted::shuffle_from_left);
  def_output(m, "shuffle_outside_mask", planted::shuffle_outside_mask);
  def_output(m, "not_in_own_mask", planted::not_in_own_mask);
  def_output(m, "spin_forever", planted::spin_forever);
  def_output(m, "uninitialised_static_shared", planted::uninitialised_static_shared);
  def_output(m, "uninitialised_dynamic_shared", planted::uninitialised_dynamic_shared);
  def_output(m, "static_shared_40k", planted::static_shared_40k);
  def_output(m, "recurse", planted::recurse);
  m.def("spin_lock", &spin_lock);
  m.def("coordinates", &coordinates);
  m.def("atomic_sum", &atomic_sum);
  m.def("small_float", &small_float);
  m.def("allow_dynamic_shared",
        [](std::size_t bytes) { simt::allow_dynamic_shared(planted::static_shared_40k, bytes); });
}
