"""Max pooling and unpooling layers over :mod:`segkern.ops`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from segkern import ops

INDEX_FORMATS = ("offset", "packed", "flat")

# A uint8 offset names at most this many elements of a window.
_MAX_OFFSET_WINDOW = 256


class MaxPool2d(torch.nn.MaxPool2d):
    r"""Max pooling that keeps one byte, or two bits, per window where torch keeps eight bytes.

    Takes the place of :class:`torch.nn.MaxPool2d`, of which it is a subclass: the same arguments,
    no parameters, the same ``repr``, the same output bits. The position of each maximum is what
    backward needs, and what ``return_indices=True`` hands to :class:`MaxUnpool2d`.

    Args:
        kernel_size: Window size, an int or ``(kh, kw)``.
        stride: Step between windows; ``None`` means ``kernel_size``.
        padding: Implicit border of minus infinity, at most half the window.
        dilation: Step between the elements of one window.
        return_indices: Return ``(output, indices)`` instead of the output.
        ceil_mode: Round the output size up, so that a last partial window counts.
        index_format: ``"offset"`` (uint8, position inside the window, windows of at most 256
            elements), ``"packed"`` (int32 words of 2 bits a window for windows of at most 4
            elements, 4 bits for at most 16) or ``"flat"`` (torch's int64 ``h * W + w``). Without
            ``return_indices`` it changes only the memory kept for backward, and ``"flat"`` is
            not used for windows that an offset can name.

    Shape:
        - Input: ``(N, C, H, W)`` or ``(C, H, W)``, a floating dtype.
        - Output: ``(N, C, Ho, Wo)`` in the input's dtype and memory format.
        - Indices: the output's shape, except for ``"packed"``, where the last size is
          ``ceil(Wo / 16)`` at 2 bits and ``ceil(Wo / 8)`` at 4 bits.

    Raises:
        ValueError: If ``index_format`` is not one of the three.

    Ties go to the first maximum in raster order and NaN propagates, as in torch. Forward and
    backward are deterministic.

    Example:
        >>> import torch
        >>> pool = MaxPool2d(2, return_indices=True)
        >>> output, indices = pool(torch.zeros(1, 1, 4, 4))
        >>> indices.dtype, tuple(indices.shape)
        (torch.uint8, (1, 1, 2, 2))
    """

    index_format: str

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
        *,
        index_format: str = "offset",
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, return_indices, ceil_mode)
        if index_format not in INDEX_FORMATS:
            raise ValueError(
                f"MaxPool2d: index_format must be one of {', '.join(INDEX_FORMATS)}, "
                f"got {index_format!r}"
            )
        self.index_format = index_format

    @classmethod
    def from_torch(cls, module: torch.nn.MaxPool2d) -> MaxPool2d:
        """A new layer with the arguments and the training flag of ``module``.

        The indices it returns are torch's int64 ones (``index_format="flat"``), because the code
        round ``module`` was written for those. Hooks stay with ``module``; to keep them, swap in
        place with :func:`segkern.nn.convert`.

        Args:
            module: The torch layer; it is left as it is.

        Returns:
            The layer of this class.

        Raises:
            TypeError: If ``module`` is not a :class:`torch.nn.MaxPool2d`.
        """
        _check_type(cls, module, torch.nn.MaxPool2d)
        layer = cls(
            module.kernel_size,
            module.stride,
            module.padding,
            module.dilation,
            module.return_indices,
            module.ceil_mode,
            index_format="flat",
        )
        return layer.train(module.training)

    @classmethod
    def _adopt(cls, module: torch.nn.MaxPool2d) -> None:
        """Turn ``module`` itself into a layer of this class: :func:`segkern.nn.convert`'s step."""
        module.__class__ = cls
        module.index_format = "flat"

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        output, indices = ops.max_pool2d_with_indices(
            input,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=self.ceil_mode,
            index_format=self._index_format(),
        )
        return (output, indices) if self.return_indices else output

    def _index_format(self) -> str:
        """The format asked for; for indices that only backward sees, a compact one."""
        if self.return_indices or self.index_format == "packed":
            return self.index_format
        kernel_h, kernel_w = _pair(self.kernel_size)
        return "offset" if kernel_h * kernel_w <= _MAX_OFFSET_WINDOW else "flat"


class MaxUnpool2d(torch.nn.MaxUnpool2d):
    r"""Puts each pooled value back where its maximum was, and zero everywhere else.

    Takes the place of :class:`torch.nn.MaxUnpool2d`, of which it is a subclass. It takes the
    indices of either library: their dtype names the format (uint8 offset, int32 packed, int64
    flat), so the layer needs no option for it.

    Args:
        kernel_size: Window size of the pooling layer, an int or ``(kh, kw)``.
        stride: Stride of the pooling layer; ``None`` means ``kernel_size``.
        padding: Padding of the pooling layer.
        dilation: Dilation of the pooling layer. torch's layer has none, as its flat indices need
            none; the compact formats do.

    Shape:
        - Input: ``(N, C, Ho, Wo)`` or ``(C, Ho, Wo)``, a floating dtype.
        - Indices: what the pooling layer returned.
        - Output: ``(N, C, H, W)``; H and W are those of ``output_size``, without it
          ``(Ho - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + 1``.

    Where windows overlap and several name one position, the last window in raster order wins and
    only it receives the gradient. Forward and backward are deterministic.

    Example:
        >>> import torch
        >>> pool, unpool = MaxPool2d(2, return_indices=True), MaxUnpool2d(2)
        >>> output, indices = pool(torch.arange(16.0).view(1, 1, 4, 4))
        >>> unpool(output, indices)[0, 0, 1]
        tensor([0., 5., 0., 7.])
    """

    # A class attribute, so that a layer that was torch's has it too.
    dilation: int | tuple[int, int] = 1

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] | None = None,
        padding: int | tuple[int, int] = 0,
        *,
        dilation: int | tuple[int, int] = 1,
    ) -> None:
        super().__init__(kernel_size, stride, padding)
        self.dilation = dilation

    @classmethod
    def from_torch(cls, module: torch.nn.MaxUnpool2d) -> MaxUnpool2d:
        """A new layer with the arguments and the training flag of ``module``.

        Args:
            module: The torch layer; it is left as it is.

        Returns:
            The layer of this class.

        Raises:
            TypeError: If ``module`` is not a :class:`torch.nn.MaxUnpool2d`.
        """
        _check_type(cls, module, torch.nn.MaxUnpool2d)
        layer = cls(module.kernel_size, module.stride, module.padding)
        return layer.train(module.training)

    @classmethod
    def _adopt(cls, module: torch.nn.MaxUnpool2d) -> None:
        """Turn ``module`` itself into a layer of this class: :func:`segkern.nn.convert`'s step."""
        module.__class__ = cls

    def forward(
        self, input: Tensor, indices: Tensor, output_size: Sequence[int] | None = None
    ) -> Tensor:
        """Unpool ``input``.

        Args:
            input: Pooled values, ``(N, C, Ho, Wo)`` or ``(C, Ho, Wo)``.
            indices: What the pooling layer returned: uint8, int32 or int64.
            output_size: Size of the pooled input, ``(H, W)`` or the full size with the leading
                axes, as :meth:`torch.Tensor.size` gives it. Several inputs can share one output
                size under floor or ceil pooling, so record it where that matters.

        Returns:
            ``(N, C, H, W)`` or ``(C, H, W)``, the dtype and memory format of ``input``.

        Raises:
            ValueError: If ``output_size`` has not 2 values or as many as ``input`` has axes.
        """
        if output_size is not None:
            if len(output_size) not in (2, input.dim()):
                raise ValueError(
                    f"MaxUnpool2d: output_size must be (H, W) or have {input.dim()} values, "
                    f"got {tuple(output_size)}"
                )
            output_size = tuple(output_size[-2:])
        return ops.max_unpool2d(
            input,
            indices,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            output_size=output_size,
        )

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return shown if _pair(self.dilation) == (1, 1) else f"{shown}, dilation={self.dilation}"


def _check_type(cls: type, module: object, expected: type) -> None:
    if not isinstance(module, expected):
        raise TypeError(
            f"{cls.__name__}.from_torch: module must be a torch.nn.{expected.__name__}, "
            f"got {type(module).__name__}"
        )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(value, int):
        return (value, value)
    first, second = value
    return (first, second)
