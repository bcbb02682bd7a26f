"""The efficient spatial pyramid: reduce, parallel dilated branches, hierarchical sums."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from segkern import _load
from segkern.ops import conv_table, grouped
from segkern.ops._conv_autograd import epilogue_grads
from segkern.ops._convolution import (
    ACTIVATIONS,
    Epilogue,
    Window,
    accumulator,
    apply_epilogue,
    apply_epilogue_,
    autocast_dtype,
    check_beside,
    check_feature_map,
    check_weight,
    lower,
    make_epilogue,
    wants_grad,
)
from segkern.ops._pooling import IntPair, empty_like_layout, pair
from segkern.ops.atrous_conv import atrous_conv2d
from segkern.ops.dense import tf32_allowed

MAX_BRANCHES = 16


def esp_block(
    x: Tensor,
    reduce_weight: Tensor | None,
    branch_weights: Sequence[Tensor],
    *,
    stride: int = 1,
    dilations: Sequence[IntPair] | None = None,
    hierarchical: bool = True,
    residual: bool | Tensor = False,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
    activation_weight: Tensor | None = None,
) -> Tensor:
    """``activation((concat(sums of branches) + residual) * scale + shift)`` over a reduced map.

    Branch k is a dilated convolution of the reduced map that keeps its size. With `hierarchical`
    sums the branches from the third on add the one before them; the first is never added. On the
    CPU the reduced map and the branches are never in memory as a whole, and autograd keeps
    neither: a backward pass makes the reduced map again. On CUDA, without autograd and where
    ``conv_table.override(esp="segkern")`` asks for it, one launch makes the reduced map (and lays
    out the weights) and one everything else: the sums stay in registers, and each output element
    is written once. It takes float16, bfloat16, and float32 where torch lets convolutions use TF32,
    in both memory formats. See :mod:`segkern.ops.conv_table`, kind ``"esp"``.

    Args:
        x: (N, M, H, W), float64, float32, float16 or bfloat16.
        reduce_weight: (n, M, kr, kr), odd; padded by kr // 2. None: x is the reduced map.
        branch_weights: 1 to 16 tensors (n_k, n, kh, kw) with one odd kernel size for all; in the
            dtype of `x`. From the second on n_k must be the same where sums are hierarchical.
        stride: of the reduction.
        dilations: rate of each branch; None means 1, 2, 4, 8, ...
        hierarchical: whether branches are summed.
        residual: True adds `x`, a tensor adds itself: (N, sum of n_k, Ho, Wo).
        scale, shift: (sum of n_k,) or None.
        activation, activation_weight: as in :func:`segkern.ops.atrous_conv2d`.

    Returns:
        (N, sum of n_k, Ho, Wo) in the dtype and memory format of `x`.

    Raises:
        ValueError, TypeError: an argument of the wrong form, dtype, device or size.

    Deterministic on the CPU for any number of threads, its backward for a given number; the CUDA
    kernel always; elsewhere as torch's convolution. Under autocast in autocast's dtype. S. Mehta et
    al., arXiv:1803.06815, section 3.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> weights = [torch.rand(4, 3, 3, 3) for _ in range(4)]
        >>> ops.esp_block(torch.rand(1, 16, 9, 9), torch.rand(3, 16, 1, 1), weights,
        ...               residual=True).shape
        torch.Size([1, 16, 9, 9])
    """
    op = "esp_block"
    check_feature_map(op, "x", x)
    dtype = autocast_dtype(x)
    x, reduce_weight = lower(dtype, x), lower(dtype, reduce_weight)
    weights = [lower(dtype, weight) for weight in branch_weights]
    if not 1 <= len(weights) <= MAX_BRANCHES:
        raise ValueError(
            f"{op}: branch_weights must be 1 to {MAX_BRANCHES} tensors, got {len(weights)}"
        )
    if reduce_weight is not None:
        check_weight(op, "reduce_weight", reduce_weight, x, 1)
        if reduce_weight.shape[2] % 2 == 0 or reduce_weight.shape[3] % 2 == 0:
            raise ValueError(
                f"{op}: reduce_weight must have an odd kernel, got {tuple(reduce_weight.shape)}"
            )
    if dilations is None:
        dilations = [2**k for k in range(len(weights))]
    rates = [pair(op, "dilations", rate, 1) for rate in dilations]
    if len(rates) != len(weights):
        raise ValueError(
            f"{op}: dilations must be one a branch, got {len(rates)} for {len(weights)} branches"
        )
    reduced = x.shape[1] if reduce_weight is None else reduce_weight.shape[0]
    _check_branches(op, weights, reduced, x, hierarchical)
    if residual is True:
        residual = x
    added = lower(dtype, residual) if isinstance(residual, Tensor) else None

    pointwise = reduce_weight is None or (
        tuple(reduce_weight.shape[2:]) == (1, 1) and pair(op, "stride", stride, 1) == [1, 1]
    )
    if not pointwise:
        middle = [k // 2 for k in reduce_weight.shape[2:]]
        x = atrous_conv2d(x, reduce_weight, stride=stride, padding=middle)
        reduce_weight = None
    channels = sum(weight.shape[0] for weight in weights)
    epilogue = make_epilogue(
        op,
        x,
        channels,
        (x.shape[0], channels, *x.shape[2:]),
        None,
        scale,
        shift,
        added,
        activation,
        activation_weight,
    )
    channels_last = suggest_memory_format(x) == torch.channels_last
    choice = conv_table.choose("esp", x, max(rates), channels_last)
    training = wants_grad(x, reduce_weight, *weights, *epilogue.tensors())
    if choice == "segkern" and takes(x, training):
        return _native(x, reduce_weight, weights, rates, hierarchical, epilogue)
    return _composed(x, reduce_weight, weights, rates, hierarchical, epilogue, training)


def takes(x: Tensor, training: bool) -> bool:
    """Whether the kernel of the device of `x` runs a pyramid.

    On CUDA without autograd: float16, bfloat16, and float32 where torch lets convolutions use TF32.
    On the CPU everything.
    """
    if not x.is_cuda:
        return True
    if training or x.dtype == torch.float64:
        return False
    return x.dtype != torch.float32 or tf32_allowed()


def _check_branches(
    op: str, weights: list[Tensor], reduced: int, x: Tensor, hierarchical: bool
) -> None:
    kernel = tuple(weights[0].shape[2:])
    for k, weight in enumerate(weights):
        name = f"branch_weights[{k}]"
        check_beside(op, name, weight, x)
        if weight.dim() != 4 or weight.shape[1] != reduced or weight.shape[0] < 1:
            raise ValueError(
                f"{op}: {name} must be (n_k, {reduced}, kh, kw), got {tuple(weight.shape)}"
            )
        if tuple(weight.shape[2:]) != kernel or any(size % 2 == 0 for size in kernel):
            raise ValueError(
                f"{op}: {name} must have the odd kernel of all branches, {kernel}, "
                f"got {tuple(weight.shape[2:])}"
            )
        if hierarchical and k >= 2 and weight.shape[0] != weights[k - 1].shape[0]:
            raise ValueError(
                f"{op}: {name} must have the channels of the branch before it, "
                f"{weights[k - 1].shape[0]}, got {weight.shape[0]}"
            )


def _native(
    x: Tensor,
    reduce_weight: Tensor | None,
    weights: list[Tensor],
    rates: list[list[int]],
    hierarchical: bool,
    epilogue: Epilogue,
) -> Tensor:
    if x.is_cuda:
        _load.require_cuda("esp_block")
    # The native order is (merged + residual) * scale + shift.
    return torch.ops.segkern.esp_pyramid.default(
        x,
        reduce_weight,
        weights,
        [rate for both in rates for rate in both],
        epilogue.residual,
        epilogue.scale,
        epilogue.shift,
        epilogue.slope,
        hierarchical,
        ACTIVATIONS.index(epilogue.activation),
    )


def _composed(
    x: Tensor,
    reduce_weight: Tensor | None,
    weights: list[Tensor],
    rates: list[list[int]],
    hierarchical: bool,
    epilogue: Epilogue,
    training: bool,
) -> Tensor:
    """The same in torch's operators."""
    kernel = weights[0].shape[2:]
    if reduce_weight is not None:
        x = torch.conv2d(x, reduce_weight)
    outputs = [
        atrous_conv2d(
            x,
            weight,
            padding=[rate[i] * (kernel[i] // 2) for i in range(2)],
            dilation=rate,
        )
        for weight, rate in zip(weights, rates, strict=True)
    ]
    if hierarchical:
        for k in range(2, len(outputs)):
            outputs[k] = outputs[k] + outputs[k - 1]
    merged = torch.cat(outputs, 1)
    if epilogue.residual is not None:
        merged = merged.to(accumulator(x.dtype)) + epilogue.residual
        epilogue = epilogue._replace(residual=None)
    if training:
        return apply_epilogue(merged, epilogue, x.dtype)
    return apply_epilogue_(merged, epilogue).to(x.dtype)


@torch.library.register_fake("segkern::esp_pyramid")
def _esp_fake(
    input, reduce_weight, weights, rates, residual, scale, shift, slope, hierarchical, activation
):
    channels = sum(weight.shape[0] for weight in weights)
    return empty_like_layout(input, [input.shape[0], channels, *input.shape[2:]])


def _setup(ctx, inputs, output):
    (
        input,
        reduce_weight,
        weights,
        ctx.rates,
        residual,
        scale,
        shift,
        slope,
        ctx.hierarchical,
        activation,
    ) = inputs
    ctx.activation = ACTIVATIONS[activation]
    ctx.shift_dtype = None if shift is None else shift.dtype
    ctx.needs_weights = [weight.requires_grad for weight in weights]
    # What the sum before the norm is made from, where its gradient or PReLU's asks for it.
    again = ctx.activation == "prelu" or ctx.needs_input_grad[5]
    ctx.save_for_backward(
        input,
        reduce_weight,
        residual if again else None,
        scale,
        shift if ctx.activation == "prelu" else None,
        slope,
        output if ctx.activation == "relu" else None,
        *weights,
    )


def _backward(ctx, grad):
    input, reduce_weight, residual, scale, shift, slope, output, *weights = ctx.saved_tensors
    needs = ctx.needs_input_grad
    merged = None
    if ctx.activation == "prelu" or needs[5]:
        merged = torch.ops.segkern.esp_pyramid.default(
            input,
            reduce_weight,
            weights,
            ctx.rates,
            residual,
            None,
            None,
            None,
            ctx.hierarchical,
            0,
        ).to(accumulator(input.dtype))
    epilogue = Epilogue(scale, shift, None, ctx.activation, slope)
    wanted = (needs[5], needs[6], False, needs[7])
    found = epilogue_grads(grad, epilogue, output, merged, ctx.shift_dtype, wanted)
    reduced = input if reduce_weight is None else torch.conv2d(input, reduce_weight)
    parts = list(found.conv.split([weight.shape[0] for weight in weights], 1))
    if ctx.hierarchical:
        for k in range(len(parts) - 1, 1, -1):
            parts[k - 1] = parts[k - 1] + parts[k]
    total, of_weights = None, []
    for k, weight in enumerate(weights):
        rate = ctx.rates[2 * k : 2 * k + 2]
        of_input, of_weight = _branch_grads(
            parts[k], reduced, weight, rate, needs[0] or needs[1], ctx.needs_weights[k]
        )
        of_weights.append(of_weight)
        if of_input is not None:
            total = of_input if total is None else total + of_input
    of_reduce = None
    if reduce_weight is not None and total is not None:
        total, of_reduce, _ = torch.ops.aten.convolution_backward(
            total,
            input,
            reduce_weight,
            None,
            [1, 1],
            [0, 0],
            [1, 1],
            False,
            [0, 0],
            1,
            [needs[0], needs[1], False],
        )
    of_residual = found.conv if needs[4] else None
    of_input = total if needs[0] else None
    return (
        of_input,
        of_reduce,
        of_weights,
        None,
        of_residual,
        found.scale,
        found.shift,
        found.slope,
        None,
        None,
    )


def _branch_grads(
    grad: Tensor, reduced: Tensor, weight: Tensor, rate: list[int], of_input: bool, of_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the reduced map and the weight of one branch."""
    padding = [rate[i] * (weight.shape[2 + i] // 2) for i in range(2)]
    window = Window([1, 1], padding, rate)
    if not grouped.takes(reduced, weight, window, 1, Epilogue()):
        both = torch.ops.aten.convolution_backward(
            grad,
            reduced,
            weight,
            None,
            [1, 1],
            padding,
            rate,
            False,
            [0, 0],
            1,
            [of_input, of_weight, False],
        )
        return both[0], both[1]
    grad = grad.contiguous()  # as both kernels read it
    grads: list[Tensor | None] = [None, None]
    if of_input:
        grads[0] = torch.ops.segkern._grouped_conv2d_grad_input.default(
            grad, weight, *reduced.shape[2:], *window, 1
        )
    if of_weight:
        grads[1] = torch.ops.segkern._grouped_conv2d_grad_weight.default(
            grad, reduced, *weight.shape[2:], *window, 1
        )
    return grads[0], grads[1]


torch.library.register_autograd("segkern::esp_pyramid", _backward, setup_context=_setup)
