"""Minima over consecutive channels: DPN's choice of a mixture, alone and in a mean field pass."""

from __future__ import annotations

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._pooling import empty_like_layout


def block_min_pool(input: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """The smallest of every `block_size` consecutive channels, and which one it is.

    Channel u of the result is the minimum of channels u K to u K + K - 1, K the block size. The
    Deep Parsing Network's layer b14 chooses so among the K label contexts of a label.

    Args:
        input: (N, L * K, H, W), float64, float32, float16 or bfloat16. Contiguous and channels-last
            tensors are read as they lie, others are copied once.
        block_size: K, from 1 to 256.

    Returns:
        ``(output, indices)``: output (N, L, H, W) in the input's dtype; indices uint8 of the same
        shape, 0 to K - 1, the first of equal elements. Both in the input's memory format. A NaN is
        smaller than any number.

    Raises:
        ValueError, TypeError: an argument of the wrong form, dtype or rank.
        RuntimeError: channels that are no multiple of `block_size`; no kernels for the device.

    Differentiable once: the gradient goes to the element of the index. Deterministic on every
    device. Under autocast it keeps the input's dtype. Liu et al., arXiv:1509.02634.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> x = torch.tensor([3.0, 1.0, 1.0, 0.0, 5.0, 2.0]).view(1, 6, 1, 1)
        >>> y, indices = ops.block_min_pool(x, 3)
        >>> y.flatten().tolist(), indices.flatten().tolist()
        ([1.0, 0.0], [1, 0])
    """
    op = "block_min_pool"
    _check_planes(op, "input", input)
    if isinstance(block_size, bool) or not isinstance(block_size, int):
        raise TypeError(f"{op}: block_size must be an integer, got {block_size!r}")
    if not 1 <= block_size <= 256:
        raise ValueError(f"{op}: block_size must be from 1 to 256, got {block_size}")
    if input.is_cuda:
        _load.require_cuda(op)
    return torch.ops.segkern.block_min_pool.default(input, block_size)


def mixture_mean_field(log_unary: Tensor, penalty: Tensor, *, log: bool = True) -> Tensor:
    """Marginals after one mean field update in which the cheapest of K contexts is active.

    In one pass over the pixels, q(u) is proportional to exp(ln p(u) - min over k of penalty(u, k)):
    the Deep Parsing Network's layers b14 and b15 together.

    Args:
        log_unary: ln p, (N, L, H, W), float64, float32, float16 or bfloat16; unnormalised scores do
            too, as only differences between labels count.
        penalty: (N, L * K, H, W), the K channels of a label next to each other, K from 1 to 256.
            Where the dtypes differ the wider of the two is used.
        log: return ln q, which a cross-entropy takes as logits; otherwise q.

    Returns:
        Tensor of the shape and memory format of `log_unary`, computed in float32 (float64 for
        float64). A pixel with a NaN, with +infinity as a difference, or without a finite one gets
        NaN.

    Raises:
        ValueError, TypeError: an argument of the wrong form, dtype or rank.
        RuntimeError: channels of `penalty` that are no multiple of L, another batch or size; no
            kernels for the device.

    Differentiable once in both; penalties that are not the first minimum get 0. Deterministic on
    every device. Liu et al., arXiv:1509.02634.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> logits = torch.zeros(1, 2, 1, 1)
        >>> penalty = torch.tensor([2.0, 0.0, 3.0, 9.0]).view(1, 4, 1, 1)
        >>> ops.mixture_mean_field(logits, penalty, log=False).flatten()
        tensor([0.9526, 0.0474])
    """
    op = "mixture_mean_field"
    _check_planes(op, "log_unary", log_unary)
    _check_planes(op, "penalty", penalty)
    if log_unary.is_cuda:
        _load.require_cuda(op)
    if log_unary.dtype != penalty.dtype:
        dtype = torch.promote_types(log_unary.dtype, penalty.dtype)
        log_unary, penalty = log_unary.to(dtype), penalty.to(dtype)
    return torch.ops.segkern.mixture_mean_field.default(log_unary, penalty, bool(log))[0]


def _check_planes(op: str, name: str, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating, got {value.dtype}")
    if value.dim() != 4:
        raise ValueError(f"{op}: {name} must be (N, C, H, W), got {tuple(value.shape)}")


@torch.library.register_fake("segkern::block_min_pool")
def _block_min_fake(input, block_size):
    batch, channels, height, width = input.shape
    torch._check(
        channels % block_size == 0,
        lambda: "block_min_pool: input must have a multiple of block_size channels",
    )
    size = [batch, channels // block_size, height, width]
    return empty_like_layout(input, size), empty_like_layout(input, size, torch.uint8)


@torch.library.register_fake("segkern::_block_min_pool_backward")
def _block_min_backward_fake(grad, indices, block_size):
    batch, labels, height, width = grad.shape
    return empty_like_layout(grad, [batch, labels * block_size, height, width])


@torch.library.register_fake("segkern::mixture_mean_field")
def _mean_field_fake(log_unary, penalty, log):
    labels = log_unary.shape[1]
    torch._check(
        labels > 0 and penalty.shape[1] % labels == 0 and penalty.shape[1] > 0,
        lambda: "mixture_mean_field: penalty must be (N, L * K, H, W)",
    )
    torch._check(
        penalty.shape[0] == log_unary.shape[0] and penalty.shape[2:] == log_unary.shape[2:],
        lambda: "mixture_mean_field: penalty must have the batch and size of log_unary",
    )
    size = list(log_unary.shape)
    return empty_like_layout(log_unary, size), empty_like_layout(log_unary, size, torch.uint8)


@torch.library.register_fake("segkern::_mixture_mean_field_backward")
def _mean_field_backward_fake(grad, output, indices, mixtures, log):
    batch, labels, height, width = output.shape
    return (
        empty_like_layout(output, [batch, labels, height, width]),
        empty_like_layout(output, [batch, labels * mixtures, height, width]),
    )


def _setup_block_min(ctx, inputs, output):
    ctx.block_size = inputs[1]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _backward_block_min(ctx, grad, _indices):
    (indices,) = ctx.saved_tensors
    return torch.ops.segkern._block_min_pool_backward.default(grad, indices, ctx.block_size), None


def _setup_mean_field(ctx, inputs, output):
    log_unary, penalty, ctx.log = inputs
    ctx.mixtures = penalty.shape[1] // log_unary.shape[1]
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(output[1])


def _backward_mean_field(ctx, grad, _indices):
    output, indices = ctx.saved_tensors
    grad_unary, grad_penalty = torch.ops.segkern._mixture_mean_field_backward.default(
        grad, output, indices, ctx.mixtures, ctx.log
    )
    return grad_unary, grad_penalty, None


torch.library.register_autograd(
    "segkern::block_min_pool", _backward_block_min, setup_context=_setup_block_min
)
torch.library.register_autograd(
    "segkern::mixture_mean_field", _backward_mean_field, setup_context=_setup_mean_field
)


def _refuse(op: str):
    def refuse(ctx, *grads):
        raise RuntimeError(f"{op}: second derivatives are not available")

    torch.library.register_autograd(
        f"segkern::_{op}_backward", refuse, setup_context=lambda ctx, inputs, output: None
    )


_refuse("block_min_pool")
_refuse("mixture_mean_field")
