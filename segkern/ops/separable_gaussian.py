"""The exact Gaussian filter over the pixels of a grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._arrays import as_tensor, constants, like
from segkern.ops._crf_features import Widths, check_widths


def separable_gaussian(values: Any, sxy: Widths) -> Any:
    """Values summed over all pixels with a Gaussian of their distance, one axis after the other.

    out_i = sum_j exp(-|(p_i - p_j) / sxy|^2 / 2) values_j over the pixels j of the grid, i among
    them; nothing lies outside. It is not normalised: to average, divide by the filtered ones. The
    sum is exact but for float32 rounding: it ends along each axis where a tap is less than 2^-24
    of the middle one (5.8 widths), which leaves out less than 1e-8 of the mass.

    This is what :func:`permutohedral_filter` approximates over positions; over colours, or free
    features, only the lattice can filter.

    Args:
        values: (N, C, W), (N, C, H, W) or (N, C, D, H, W); float64, float32, float16 or bfloat16;
            summed in float32. A tensor or an array.
        sxy: width in pixels: a number, or (sx, sy), (sx, sy, sz); or a tensor of such numbers.

    Returns:
        Of the shape, dtype and kind of `values`.

    Raises:
        TypeError, ValueError: an argument of the wrong form; widths that are not positive and
            finite (which, as a tensor on CUDA, make the result NaN instead).

    Differentiable in the values, any number of times, and once in widths that are a tensor.
    Deterministic, and independent of the number of threads. The time grows with the widths.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> dot = torch.zeros(1, 1, 1, 3)
        >>> dot[..., 1] = 1
        >>> ops.separable_gaussian(dot, 1.0).flatten()
        tensor([0.6065, 1.0000, 0.6065])
    """
    op = "separable_gaussian"
    tensor = as_tensor(op, "values", values)
    if not tensor.is_floating_point():
        raise TypeError(f"{op}: values must be floating, got {tensor.dtype}")
    if tensor.dim() not in (3, 4, 5):
        raise ValueError(
            f"{op}: values must be (N, C, W), (N, C, H, W) or (N, C, D, H, W), "
            f"got {tuple(tensor.shape)}"
        )
    if tensor.is_cuda:
        _load.require_cuda(op)
    widths = grid_widths(op, sxy, tensor.dim() - 2, tensor.device)
    filtered = torch.ops.segkern.separable_gaussian.default(tensor.float(), widths, -1)
    return like(op, "values", values, filtered.to(tensor.dtype))


def grid_widths(op: str, sxy: Widths, axes: int, device: torch.device) -> Tensor:
    """(axes,) float32 widths on `device`."""
    widths = check_widths(op, "sxy", sxy, axes)
    return widths.to(device) if isinstance(widths, Tensor) else constants(widths, device)


@torch.library.register_fake("segkern::separable_gaussian")
def _separable_gaussian_fake(values, widths, derivative):
    return values.new_empty(values.shape)


def _setup(ctx, inputs, output):
    values, widths, derivative = inputs
    if derivative >= 0 and any(ctx.needs_input_grad):
        raise RuntimeError("separable_gaussian: widths have no second derivatives")
    ctx.save_for_backward(values if ctx.needs_input_grad[1] else None, widths)


def _backward(ctx, grad):
    values, widths = ctx.saved_tensors
    grad_values = grad_widths = None
    if ctx.needs_input_grad[0]:  # the filter is symmetric
        grad_values = torch.ops.segkern.separable_gaussian.default(grad, widths, -1)
    if ctx.needs_input_grad[1]:
        sums = []
        for axis in range(widths.shape[0]):
            moved = torch.ops.segkern.separable_gaussian.default(values, widths, axis)
            product = (grad * moved).double()
            while product.dim() > 0:  # by rows, whose sums do not depend on the threads
                product = product.sum(-1)
            sums.append(product)
        grad_widths = torch.stack(sums).float()
    return grad_values, grad_widths, None


torch.library.register_autograd("segkern::separable_gaussian", _backward, setup_context=_setup)
