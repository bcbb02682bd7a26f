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

  // Atrous convolution, see segkern/ops/atrous_conv.py. activation: Activation in
  // csrc/atrous_conv/conv_window.h.
  m.def(
      "depthwise_conv2d(Tensor input, Tensor weight, Tensor? scale, Tensor? shift, "
      "Tensor? residual, Tensor? slope, int[] stride, int[] padding, int[] dilation, "
      "int activation) -> Tensor");
  // On CUDA only, where the channels of the input are a multiple of 16 bytes; see
  // segkern/ops/dense.py.
  m.def(
      "dense_conv2d(Tensor input, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, "
      "Tensor? slope, int[] stride, int[] padding, int[] dilation, int activation) -> Tensor");
  m.def(
      "_dense_conv2d_grad_input(Tensor grad, Tensor weight, SymInt input_h, SymInt input_w, "
      "int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def(
      "_dense_conv2d_grad_weight(Tensor grad, Tensor input, int kernel_h, int kernel_w, "
      "int[] stride, int[] padding, int[] dilation) -> Tensor");
  // The same by Hopper's own instructions, on GPUs of compute capability 9.0, of stride 1.
  m.def(
      "wgmma_conv2d(Tensor input, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, "
      "Tensor? slope, int[] stride, int[] padding, int[] dilation, int activation) -> Tensor");
  m.def(
      "_wgmma_conv2d_grad_input(Tensor grad, Tensor weight, SymInt input_h, SymInt input_w, "
      "int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def(
      "_wgmma_conv2d_grad_weight(Tensor grad, Tensor input, int kernel_h, int kernel_w, "
      "int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def(
      "_depthwise_conv2d_grad_input(Tensor grad, Tensor weight, SymInt input_h, SymInt input_w, "
      "int[] stride, int[] padding, int[] dilation) -> Tensor");
  m.def(
      "_depthwise_conv2d_grad_weight(Tensor grad, Tensor input, int kernel_h, int kernel_w, "
      "int[] stride, int[] padding, int[] dilation) -> Tensor");
  // Made for groups of a few channels; see segkern/ops/grouped.py.
  m.def(
      "grouped_conv2d(Tensor input, Tensor weight, Tensor? scale, Tensor? shift, Tensor? residual, "
      "Tensor? slope, int[] stride, int[] padding, int[] dilation, int groups, int activation) "
      "-> Tensor");
  m.def(
      "_grouped_conv2d_grad_input(Tensor grad, Tensor weight, SymInt input_h, SymInt input_w, "
      "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor");
  m.def(
      "_grouped_conv2d_grad_weight(Tensor grad, Tensor input, int kernel_h, int kernel_w, "
      "int[] stride, int[] padding, int[] dilation, int groups) -> Tensor");

  m.def("_relayout(Tensor input, bool channels_last) -> Tensor");
  m.def(
      "separable_conv2d(Tensor input, Tensor? depthwise_weight, Tensor? depthwise_scale, "
      "Tensor? depthwise_shift, Tensor? depthwise_slope, Tensor weight, Tensor? scale, "
      "Tensor? shift, Tensor? residual, Tensor? slope, int[] stride, int[] padding, "
      "int[] dilation, int depthwise_activation, int activation) -> Tensor");
  m.def(
      "esp_pyramid(Tensor input, Tensor? reduce_weight, Tensor[] weights, int[] rates, "
      "Tensor? residual, Tensor? scale, Tensor? shift, Tensor? slope, bool hierarchical, "
      "int activation) -> Tensor");

  // Whole maps at another size, and averaged over cells: see segkern/ops/resize_bilinear.py and
  // segkern/ops/pyramid_pool.py.
  m.def(
      "resize_bilinear(Tensor input, SymInt output_h, SymInt output_w, bool align_corners) "
      "-> Tensor");
  m.def(
      "_resize_bilinear_backward(Tensor grad, SymInt input_h, SymInt input_w, "
      "bool align_corners) -> Tensor");
  m.def("pyramid_pool(Tensor input, int[] bins) -> Tensor");
  m.def(
      "_pyramid_pool_backward(Tensor grad, int[] bins, SymInt input_h, SymInt input_w) "
      "-> Tensor");

  // Boxes on feature maps, see segkern/ops/roi_align.py and segkern/ops/roi_upsample.py.
  // level_sizes: limits between levels; sizes: N, C, then H and W of each level; mode and
  // reduction: RoiWeights in csrc/roi/roi.h and RoiReduction in csrc/roi/roi_ops.h.
  m.def(
      "roi_align(Tensor[] inputs, Tensor rois, SymInt output_h, SymInt output_w, "
      "float[] spatial_scales, float[] level_sizes, int sampling_ratio, bool aligned) -> Tensor");
  m.def(
      "_roi_align_backward(Tensor grad, Tensor rois, SymInt[] sizes, float[] spatial_scales, "
      "float[] level_sizes, int sampling_ratio, bool aligned, bool channels_last) -> Tensor[]");
  m.def(
      "roi_upsample(Tensor input, Tensor rois, SymInt batch, SymInt height, SymInt width, "
      "float spatial_scale, int mode, int reduction, int sampling_ratio, bool aligned) "
      "-> (Tensor, Tensor)");
  m.def(
      "_roi_upsample_backward(Tensor grad, Tensor rois, Tensor? chosen, SymInt bins_h, "
      "SymInt bins_w, float spatial_scale, int mode, int sampling_ratio, bool aligned) "
      "-> Tensor");

  // Permutohedral lattices: six tensors, see segkern/ops/permutohedral.py.
  m.def(
      "permutohedral_build(Tensor features) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "permutohedral_filter(Tensor values, Tensor? features, Tensor[] lattice, bool reverse) "
      "-> Tensor");
  m.def(
      "_permutohedral_feature_grad(Tensor grad, Tensor values, Tensor features, "
      "Tensor[] lattice, bool reverse) -> Tensor");

  // The exact Gaussian over a grid, see segkern/ops/separable_gaussian.py. `derivative` names the
  // axis, counted from the last, whose taps are their derivatives in its width, or is -1.
  m.def("separable_gaussian(Tensor values, Tensor widths, int derivative) -> Tensor");

  // Dense CRF over lattices: six tensors and two scales a term, see segkern/ops/dense_crf.py.
  m.def(
      "dense_crf(Tensor unary, Tensor? q0, Tensor[] lattices, Tensor[] scales, Tensor[] costs, "
      "int iterations, bool keep, bool want_kl) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_dense_crf_backward(Tensor grad, Tensor unary, Tensor? q0, Tensor q, Tensor history, "
      "Tensor[] lattices, Tensor[] scales, Tensor[] costs, int iterations) "
      "-> (Tensor, Tensor, Tensor[])");

  // Deep Parsing Network: see segkern/ops/local_filter.py and segkern/ops/block_min.py.
  m.def(
      "local_quadratic_filter(Tensor input, Tensor image, Tensor weights, int[] kernel_size, "
      "bool multiply) -> Tensor");
  m.def(
      "_local_quadratic_filter_backward(Tensor grad, Tensor input, Tensor image, Tensor weights, "
      "int[] kernel_size, bool multiply) -> (Tensor, Tensor)");
  m.def("block_min_pool(Tensor input, int block_size) -> (Tensor, Tensor)");
  m.def("_block_min_pool_backward(Tensor grad, Tensor indices, int block_size) -> Tensor");
  m.def("mixture_mean_field(Tensor log_unary, Tensor penalty, bool log) -> (Tensor, Tensor)");
  m.def(
      "_mixture_mean_field_backward(Tensor grad, Tensor output, Tensor indices, int mixtures, "
      "bool log) -> (Tensor, Tensor)");

  // Gaussian CRF: edges per level, and the numbers of a model, see segkern/ops/gaussian_crf.py.
  m.def(
      "gaussian_crf(Tensor unary, Tensor[] edges, int pairwise, float diagonal, float tolerance, "
      "int max_iterations, float eta, bool check) -> (Tensor, Tensor, Tensor)");
  m.def(
      "_gaussian_crf_backward(Tensor grad, Tensor solution, Tensor[] edges, int pairwise, "
      "float diagonal, float tolerance, int max_iterations, float eta, bool check, "
      "bool want_edges) -> (Tensor, Tensor[])");

  // Masks and boxes of instances: see segkern/ops/masks.py, segkern/ops/matrix_nms.py and
  // segkern/ops/nms.py. bits: int32, csrc/masks/masks.h.
  m.def(
      "pack_masks(Tensor masks, Tensor? rows, float threshold, bool maskness) "
      "-> (Tensor, Tensor, Tensor, Tensor)");
  m.def("measure_masks(Tensor bits) -> (Tensor, Tensor)");
  m.def("unpack_masks(Tensor bits, SymInt width) -> Tensor");
  m.def(
      "mask_iou(Tensor bits_a, Tensor areas_a, Tensor boxes_a, Tensor bits_b, Tensor areas_b, "
      "Tensor boxes_b, Tensor? crowd) -> Tensor");
  m.def(
      "_matrix_nms(Tensor bits, Tensor areas, Tensor boxes, Tensor? rows, Tensor labels, "
      "Tensor scores, bool linear, float sigma) -> Tensor");
  m.def("_nms(Tensor boxes, Tensor? labels, Tensor live, float iou_threshold) -> Tensor");
}

PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr,
                                   nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
