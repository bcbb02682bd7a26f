// Every operator schema of segkern, and the module that holds them with their CPU kernels. The
// CUDA kernels are in a second module (cuda_module.cpp), so that this one loads where there is no
// CUDA.
//
// Sizes of planes are SymInt, so that export and compile keep them symbolic; index_format is an
// IndexFormat (csrc/max_pool/window.h), spelled out as a string in segkern.ops.
#include <Python.h>

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(segkern, m) {
  // Pooling. indices: uint8, int32 or int64, see segkern/ops/max_pool.py.
  m.def(
      "max_pool2d_with_indices(Tensor input, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, bool ceil_mode, int index_format) -> (Tensor, Tensor)");
  m.def(
      "_max_pool2d_backward(Tensor grad, Tensor indices, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, SymInt input_h, SymInt input_w) -> Tensor");
  m.def(
      "max_unpool2d(Tensor input, Tensor indices, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, SymInt output_h, SymInt output_w) -> Tensor");
  m.def(
      "_max_unpool2d_backward(Tensor grad, Tensor indices, int[] kernel_size, int[] stride, "
      "int[] padding, int[] dilation, SymInt pooled_h, SymInt pooled_w, bool winners_only) "
      "-> Tensor");
  m.def(
      "convert_pool_indices(Tensor indices, int[] kernel_size, int[] stride, int[] padding, "
      "int[] dilation, SymInt input_h, SymInt input_w, SymInt pooled_h, SymInt pooled_w, "
      "int index_format) -> Tensor");
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                                   nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
