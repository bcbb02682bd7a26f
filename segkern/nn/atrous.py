"""Atrous convolution layers over :mod:`segkern.ops`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segkern import ops
from segkern.ops._convolution import norm_affine
from segkern.ops._pooling import IntPair, pair

Norm = torch.nn.modules.batchnorm._BatchNorm
NormLayer = Callable[[int], torch.nn.Module]


class AtrousConv2d(torch.nn.Conv2d):
    r"""Convolution at any rate, by the kernels of :func:`segkern.ops.atrous_conv2d`.

    Takes the place of :class:`torch.nn.Conv2d`, of which it is a subclass: the same arguments,
    ``state_dict`` and ``repr``, the same values to rounding. Depthwise and small groups run on
    kernels of this package, dense ones on oneDNN or cuDNN; see :mod:`segkern.ops.conv_table`.

    Shape:
        - Input: ``(N, C_in, H, W)`` or ``(C_in, H, W)``, a floating dtype.
        - Output: ``(N, C_out, Ho, Wo)`` in the input's dtype and memory format.

    Forward and backward are deterministic on the CPU for any number of threads.

    Example:
        >>> import torch
        >>> conv = AtrousConv2d(8, 8, 3, padding=18, dilation=18, groups=8)
        >>> conv(torch.zeros(1, 8, 33, 33)).shape
        torch.Size([1, 8, 33, 33])
    """

    @classmethod
    def from_torch(cls, module: torch.nn.Conv2d) -> AtrousConv2d:
        """This layer with the arguments, and the very parameters, of a torch layer."""
        if not isinstance(module, torch.nn.Conv2d):
            raise TypeError(
                f"AtrousConv2d: module must be a torch.nn.Conv2d, got {type(module).__name__}"
            )
        layer = cls.__new__(cls)
        torch.nn.Module.__init__(layer)
        shared = {"_parameters", "_buffers", "_modules"}
        for name, value in vars(module).items():
            layer.__dict__[name] = dict(value) if name in shared else value
        return layer

    @classmethod
    def _adopt(cls, module: torch.nn.Conv2d) -> None:
        module.__class__ = cls

    def forward(self, input: Tensor) -> Tensor:
        return self.fused(input)

    def fused(
        self,
        input: Tensor,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        activation: str | None = None,
        activation_weight: Tensor | None = None,
    ) -> Tensor:
        """``activation((conv(input) + bias) * scale + shift + residual)`` in one call."""
        single = isinstance(input, Tensor) and input.dim() == 3
        output = ops.atrous_conv2d(
            input.unsqueeze(0) if single else input,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            padding_mode=self.padding_mode,
            scale=scale,
            shift=shift,
            residual=residual.unsqueeze(0) if single and residual is not None else residual,
            activation=activation,
            activation_weight=activation_weight,
        )
        return output.squeeze(0) if single else output


class ConvNormAct(torch.nn.Sequential):
    """Convolution, batch norm and activation; one call of the convolution in evaluation.

    A :class:`torch.nn.Sequential` of the convolution (``"0"``), the norm (``"1"``) and the
    activation (next number), so that state dicts are those of the usual Sequential of torch's
    layers. While the norm uses its running statistics they are folded into the convolution's
    epilogue; in training the layers run one after the other.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups, padding_mode: Of the
            convolution.
        padding: None pads so that stride 1 keeps the size of the map for odd kernels:
            ``dilation * (kernel_size - 1) // 2``.
        bias: None means a bias exactly where there is no norm.
        norm_layer: Makes the norm from the number of channels; None leaves it out.
        activation: ``"relu"``, ``"prelu"`` (a slope a channel) or None.

    Raises:
        ValueError: batch-norm statistics that are not finite (CPU); an argument of a wrong form.

    Example:
        >>> import torch
        >>> block = ConvNormAct(4, 6, 3, dilation=2).eval()
        >>> sorted(block.state_dict())[0], block(torch.zeros(1, 4, 9, 9)).shape
        ('0.weight', torch.Size([1, 6, 9, 9]))
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair = 3,
        stride: IntPair = 1,
        padding: IntPair | str | None = None,
        dilation: IntPair = 1,
        groups: int = 1,
        *,
        bias: bool | None = None,
        padding_mode: str = "zeros",
        norm_layer: NormLayer | None = torch.nn.BatchNorm2d,
        activation: str | None = "relu",
    ) -> None:
        if padding is None:
            kernel = pair("ConvNormAct", "kernel_size", kernel_size, 1)
            rates = pair("ConvNormAct", "dilation", dilation, 1)
            padding = tuple(r * (k - 1) // 2 for k, r in zip(kernel, rates, strict=True))
        conv = AtrousConv2d(
            in_channels,
            out_channels,
            kernel_size if isinstance(kernel_size, int) else tuple(kernel_size),
            stride,
            padding,
            dilation,
            groups,
            norm_layer is None if bias is None else bias,
            padding_mode,
        )
        layers: list[torch.nn.Module] = [conv]
        if norm_layer is not None:
            layers.append(norm_layer(out_channels))
        if activation == "relu":
            layers.append(torch.nn.ReLU())
        elif activation == "prelu":
            layers.append(torch.nn.PReLU(out_channels))
        elif activation is not None:
            raise ValueError(
                f"ConvNormAct: activation must be 'relu', 'prelu' or None, got {activation!r}"
            )
        super().__init__(*layers)

    @property
    def conv(self) -> AtrousConv2d:
        return self[0]

    @property
    def norm(self) -> torch.nn.Module | None:
        named = [m for m in list(self)[1:] if not isinstance(m, (torch.nn.ReLU, torch.nn.PReLU))]
        return named[0] if named else None

    def activation(self) -> tuple[str | None, Tensor | None]:
        """The activation's name and weight, as :func:`segkern.ops.atrous_conv2d` takes them."""
        last = self[-1]
        if isinstance(last, torch.nn.ReLU):
            return "relu", None
        return ("prelu", last.weight) if isinstance(last, torch.nn.PReLU) else (None, None)

    def affine(self) -> tuple[Tensor | None, Tensor | None] | None:
        """(scale, shift) of the norm at the moment; None where it cannot be folded."""
        norm = self.norm
        return (None, None) if norm is None else folded_norm(norm)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        affine = self.affine()
        name, slope = self.activation()
        if affine is not None:
            return self.conv.fused(
                input,
                scale=affine[0],
                shift=affine[1],
                residual=residual,
                activation=name,
                activation_weight=slope,
            )
        output = self.norm(self.conv(input))
        if residual is not None:
            output = output + residual
        return output if name is None else self[-1](output)


def folded_norm(norm: torch.nn.Module) -> tuple[Tensor, Tensor] | None:
    """A batch norm that uses its running statistics as (scale, shift); None for any other."""
    if not isinstance(norm, Norm) or norm.training or norm.running_mean is None:
        return None
    return norm_affine(
        type(norm).__name__, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps
    )


class SeparableConv2d(torch.nn.Module):
    """Depthwise atrous convolution, norm, activation, pointwise convolution, norm, activation.

    Args:
        in_channels, out_channels: Of the pair.
        kernel_size, stride, padding, dilation: Of the depthwise convolution; padding None keeps
            the size of the map at stride 1 and odd kernels.
        norm_layer: Makes each of the two norms; None leaves them out and gives the pointwise
            convolution a bias.
        depthwise_norm: False leaves out the first norm.
        depthwise_activation: Between the two convolutions; None as in the released Xception.
        activation: After the second norm.

    State dict: ``depthwise.0.weight``, ``depthwise.1.*``, ``pointwise.0.weight``,
    ``pointwise.1.*``. L.-C. Chen et al., arXiv:1802.02611.

    Example:
        >>> import torch
        >>> SeparableConv2d(8, 4, dilation=6).eval()(torch.zeros(1, 8, 17, 17)).shape
        torch.Size([1, 4, 17, 17])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntPair = 3,
        stride: IntPair = 1,
        padding: IntPair | None = None,
        dilation: IntPair = 1,
        *,
        norm_layer: NormLayer | None = torch.nn.BatchNorm2d,
        depthwise_norm: bool = True,
        depthwise_activation: str | None = "relu",
        activation: str | None = "relu",
    ) -> None:
        super().__init__()
        self.depthwise = ConvNormAct(
            in_channels,
            in_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            in_channels,
            bias=False,
            norm_layer=norm_layer if depthwise_norm else None,
            activation=depthwise_activation,
        )
        self.pointwise = ConvNormAct(
            in_channels, out_channels, 1, norm_layer=norm_layer, activation=activation
        )

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        first, second = self.depthwise.affine(), self.pointwise.affine()
        if first is None or second is None or self.pointwise.conv.bias is not None:
            return self.pointwise(self.depthwise(input), residual)
        conv = self.depthwise.conv
        inner, inner_slope = self.depthwise.activation()
        outer, outer_slope = self.pointwise.activation()
        return ops.atrous_separable_conv2d(
            input,
            conv.weight,
            self.pointwise.conv.weight,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            depthwise_scale=first[0],
            depthwise_shift=first[1],
            depthwise_activation=inner,
            depthwise_activation_weight=inner_slope,
            scale=second[0],
            shift=second[1],
            residual=residual,
            activation=outer,
            activation_weight=outer_slope,
        )
