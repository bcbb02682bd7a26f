"""What the atrous operators share: argument checks, sizes, the epilogue, folded batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Union

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from segkern.ops._pooling import IntPair, pair

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS = (None, "relu", "prelu")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

Padding = Union[IntPair, str]

# Sizes beyond this cannot be multiplied into an element count of 64 bits.
_MAX_LENGTH = 2**31 - 1


class Window(NamedTuple):
    """Stride, zero padding and dilation of a convolution, (height, width) each."""

    stride: list[int]
    padding: list[int]
    dilation: list[int]


class Epilogue(NamedTuple):
    """What follows a convolution: ``activation(conv * scale + shift + residual)``.

    scale, shift: (C,) or None. residual: the output's shape or None. slope: (1,) or (C,), the
    weight of PReLU, only there for ``activation == "prelu"``.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    activation: str | None = None
    slope: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        found = (self.scale, self.shift, self.residual, self.slope)
        return [tensor for tensor in found if tensor is not None]


def check_feature_map(op: str, name: str, tensor: Tensor) -> None:
    """Raises where `tensor` is not a floating (N, C, H, W) tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.dim() != 4:
        raise ValueError(f"{op}: {name} must be (N, C, H, W), got {tuple(tensor.shape)}")
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{op}: {name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}"
        )


def check_beside(op: str, name: str, tensor: Tensor, x: Tensor, *, dtype: bool = True) -> None:
    """Raises where `tensor` is not on the device, or not of the dtype, of the input `x`."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.device != x.device:
        raise ValueError(
            f"{op}: {name} must be on the device of x, {x.device}, got {tensor.device}"
        )
    if dtype and tensor.dtype != x.dtype:
        raise TypeError(f"{op}: {name} must have the dtype of x, {x.dtype}, got {tensor.dtype}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{op}: {name} must be a floating tensor, got {tensor.dtype}")


def check_channels(
    op: str, name: str, tensor: Tensor | None, channels: int, x: Tensor, *, one: bool = False
) -> None:
    """Raises where a per-channel tensor is not (channels,), or (1,) where `one` allows it."""
    if tensor is None:
        return
    check_beside(op, name, tensor, x, dtype=False)
    if tuple(tensor.shape) != (channels,) and not (one and tuple(tensor.shape) == (1,)):
        wanted = f"({channels},)" + (" or (1,)" if one else "")
        raise ValueError(f"{op}: {name} must be {wanted}, got {tuple(tensor.shape)}")


def check_weight(op: str, name: str, weight: Tensor, x: Tensor, groups: int) -> None:
    """Raises where `weight` is no (C_out, C_in / groups, kh, kw) kernel for the input `x`."""
    check_beside(op, name, weight, x)
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise ValueError(f"{op}: groups must be a positive integer, got {groups!r}")
    if weight.dim() != 4:
        raise ValueError(
            f"{op}: {name} must be (C_out, C_in / groups, kh, kw), got {tuple(weight.shape)}"
        )
    channels = x.shape[1]
    if channels % groups != 0:
        raise ValueError(f"{op}: groups must divide the channels of x, {channels}, got {groups}")
    if weight.shape[0] % groups != 0 or weight.shape[0] == 0:
        raise ValueError(
            f"{op}: groups must divide the output channels of {name}, {weight.shape[0]}, "
            f"got {groups}"
        )
    if weight.shape[1] != channels // groups:
        raise ValueError(
            f"{op}: {name} must have C_in / groups = {channels // groups} input channels for x "
            f"with {channels} channels and groups={groups}, got {tuple(weight.shape)}"
        )
    if weight.shape[2] < 1 or weight.shape[3] < 1:
        raise ValueError(
            f"{op}: {name} must have a kernel of at least 1x1, got {tuple(weight.shape)}"
        )


def conv_window(
    op: str,
    kernel: Sequence[int],
    stride: IntPair,
    padding: Padding,
    dilation: IntPair,
) -> tuple[Window, list[int]]:
    """The window, and explicit zeros (left, right, top, bottom) that it cannot express.

    Those are not zero only for ``padding="same"`` with an even extent, which pads one side more.
    """
    strides = pair(op, "stride", stride, 1)
    rates = pair(op, "dilation", dilation, 1)
    for name, values in (("stride", strides), ("dilation", rates)):
        if any(value > _MAX_LENGTH for value in values):
            raise ValueError(f"{op}: {name} must be less than 2**31, got {values}")
    extra = [0, 0, 0, 0]
    if isinstance(padding, str):
        if padding == "valid":
            return Window(strides, [0, 0], rates), extra
        if padding != "same":
            raise ValueError(f"{op}: padding must be integers, 'same' or 'valid', got {padding!r}")
        if strides != [1, 1]:
            raise ValueError(f"{op}: padding 'same' must have stride 1, got {strides}")
        totals = [rates[i] * (kernel[i] - 1) for i in range(2)]
        extra = [0, totals[1] % 2, 0, totals[0] % 2]
        return Window(strides, [total // 2 for total in totals], rates), extra
    paddings = pair(op, "padding", padding, 0)
    if any(value > _MAX_LENGTH for value in paddings):
        raise ValueError(f"{op}: padding must be less than 2**31, got {paddings}")
    return Window(strides, paddings, rates), extra


def conv_length(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Outputs along one axis; not positive where the kernel does not fit (ints or SymInts)."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def output_plane(op: str, x: Tensor, kernel: Sequence[int], window: Window) -> tuple[int, int]:
    """(Ho, Wo); ValueError where there is no output."""
    out = [
        conv_length(
            x.shape[2 + i], kernel[i], window.stride[i], window.padding[i], window.dilation[i]
        )
        for i in range(2)
    ]
    for length in out:
        if not isinstance(length, int):
            torch._check(
                length >= 1, lambda: f"{op}: x must be large enough for its kernel {tuple(kernel)}"
            )
        elif length < 1:
            raise ValueError(
                f"{op}: x must be large enough for its kernel, got {tuple(x.shape[2:])} with "
                f"kernel {tuple(kernel)}, padding {window.padding} and dilation {window.dilation}"
            )
    return out[0], out[1]


def make_epilogue(
    op: str,
    x: Tensor,
    channels: int,
    out_shape: Sequence[int],
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str | None,
    activation_weight: Tensor | None,
) -> Epilogue:
    """The checked epilogue of a convolution of `x` with `channels` outputs; bias goes in shift."""
    for name, tensor in (("bias", bias), ("scale", scale), ("shift", shift)):
        check_channels(op, name, tensor, channels, x)
    check_activation(op, activation, activation_weight, channels, x)
    if residual is not None:
        check_beside(op, "residual", residual, x)
        if tuple(residual.shape) != tuple(out_shape):
            raise ValueError(
                f"{op}: residual must be the shape of the output, {tuple(out_shape)}, "
                f"got {tuple(residual.shape)}"
            )
    if bias is not None:
        moved = bias if scale is None else bias * scale
        shift = moved if shift is None else shift + moved
    return Epilogue(scale, shift, residual, activation, activation_weight)


def check_activation(
    op: str, activation: str | None, slope: Tensor | None, channels: int, x: Tensor
) -> None:
    """Raises where an activation is unknown or its weight missing, superfluous or misshapen."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be None, 'relu' or 'prelu', got {activation!r}")
    if (slope is not None) != (activation == "prelu"):
        raise ValueError(
            f"{op}: activation_weight must be given for 'prelu' and only for it, "
            f"got activation={activation!r} and "
            f"{'a weight' if slope is not None else 'no weight'}"
        )
    check_channels(op, "activation_weight", slope, channels, x, one=True)


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a backward through any of these."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which features of `dtype` are summed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def per_channel(tensor: Tensor, like: Tensor) -> Tensor:
    """A (C,) or (1,) tensor broadcast over (N, C, H, W) features."""
    return tensor.to(like.dtype).reshape(1, -1, 1, 1)


def apply_epilogue(y: Tensor, epilogue: Epilogue, dtype: torch.dtype) -> Tensor:
    """The epilogue in plain differentiable operators, rounded once to `dtype`."""
    if any(t is not None for t in epilogue[:3]) or epilogue.slope is not None:
        y = y.to(accumulator(dtype))
    if epilogue.scale is not None:
        y = y * per_channel(epilogue.scale, y)
    if epilogue.shift is not None:
        y = y + per_channel(epilogue.shift, y)
    if epilogue.residual is not None:
        y = y + epilogue.residual
    if epilogue.activation == "relu":
        y = torch.relu(y)
    elif epilogue.activation == "prelu":
        y = torch.nn.functional.prelu(y, epilogue.slope.to(y.dtype))
    return y.to(dtype)


def apply_epilogue_(y: Tensor, epilogue: Epilogue) -> Tensor:
    """The epilogue in place, for a fresh `y` that autograd does not see."""
    if y.dtype not in (torch.float32, torch.float64) and (
        epilogue.scale is not None or epilogue.shift is not None
    ):
        return apply_epilogue(y, epilogue, y.dtype)
    if epilogue.scale is not None:
        y = y.mul_(per_channel(epilogue.scale, y))
    if epilogue.shift is not None:
        y = y.add_(per_channel(epilogue.shift, y))
    if epilogue.residual is not None:
        y = y.add_(epilogue.residual)
    if epilogue.activation == "relu":
        y = y.relu_()
    elif epilogue.activation == "prelu":
        y = torch.nn.functional.prelu(y, epilogue.slope.to(y.dtype))
    return y


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks of a convolution of `x`, or None outside autocast."""
    kind = x.device.type
    if x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def lower(dtype: torch.dtype | None, tensor: Tensor | None) -> Tensor | None:
    """A feature tensor or a kernel in autocast's dtype, where there is one."""
    return tensor if dtype is None or tensor is None else tensor.to(dtype)


def norm_affine(
    op: str,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Batch norm with given statistics as ``(scale, shift)``, each (C,).

    Raises ValueError where a statistic of a CPU layer is not finite or a variance negative;
    looking would stall a CUDA stream, so there it is the caller's business.
    """
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    known = not (torch.compiler.is_compiling() or isinstance(running_mean, FakeTensor))
    if running_mean.device.type == "cpu" and known:
        check_statistics(op, running_mean, running_var)
    return scale, shift


def check_statistics(op: str, running_mean: Tensor, running_var: Tensor) -> None:
    """Raises ValueError where batch-norm statistics are not finite or a variance is negative."""
    # A sum is finite where its terms are, unless finite terms overflow: then look again.
    total = float((running_mean + running_var).sum())
    fine = total - total == 0.0 or bool((running_mean + running_var).isfinite().all())
    if not fine:
        raise ValueError(f"{op}: batch-norm statistics must be finite, got infinities or NaNs")
    if running_var.numel() and float(running_var.min()) < 0.0:
        raise ValueError(f"{op}: running_var must not be negative, got {float(running_var.min())}")
