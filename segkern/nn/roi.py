"""Layers that read boxes of feature maps and write them back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segkern import ops
from segkern.ops._boxes import Boxes
from segkern.ops._pooling import IntPair


class RoIAlign(nn.Module):
    """Bins of boxes of one feature map: :func:`segkern.ops.roi_align`, whose arguments it has.

    ``aligned`` is True here, where torchvision's layer of this name has False.

    Example:
        >>> import torch
        >>> from segkern.nn import RoIAlign
        >>> x, box = torch.rand(1, 8, 16, 16), torch.tensor([[0.0, 4.0, 4.0, 32.0, 40.0]])
        >>> tuple(RoIAlign(7, spatial_scale=0.25)(x, box).shape)
        (1, 8, 7, 7)
    """

    def __init__(
        self,
        output_size: IntPair,
        spatial_scale: float = 1.0,
        sampling_ratio: int = 0,
        aligned: bool = True,
    ) -> None:
        super().__init__()
        self.output_size, self.spatial_scale = output_size, spatial_scale
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, input: Tensor, rois: Boxes) -> Tensor:
        return ops.roi_align(
            input,
            rois,
            self.output_size,
            spatial_scale=self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


class PyramidRoIAlign(nn.Module):
    """Bins of boxes of a pyramid, each from the level of its size, in one call.

    Args:
        output_size: bins, one integer or (height, width).
        strides: of the levels, fine to coarse, each twice the last; powers of 2.
        sampling_ratio, aligned, canonical_size, canonical_level: as of
            :func:`segkern.ops.roi_align`.

    Forward takes at least as many maps (N, C, H_i, W_i) as there are strides, of which it reads the
    first, and boxes (K, 5) or a list of (K_i, 4), one an image; it returns (K, C, *output_size).

    Example:
        >>> import torch
        >>> from segkern.nn import PyramidRoIAlign
        >>> maps = [torch.rand(1, 8, 32, 32), torch.rand(1, 8, 16, 16)]
        >>> boxes = [torch.tensor([[4.0, 4.0, 32.0, 40.0], [0.0, 0.0, 128.0, 128.0]])]
        >>> tuple(PyramidRoIAlign(7, (4, 8))(maps, boxes).shape)
        (2, 8, 7, 7)
    """

    def __init__(
        self,
        output_size: IntPair,
        strides: Sequence[int] = (4, 8, 16, 32),
        sampling_ratio: int = 0,
        aligned: bool = True,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.output_size, self.strides = output_size, tuple(strides)
        self.sampling_ratio, self.aligned = sampling_ratio, aligned
        self.canonical_size, self.canonical_level = canonical_size, canonical_level

    def forward(self, maps: Sequence[Tensor], rois: Boxes) -> Tensor:
        if len(maps) < len(self.strides):
            raise ValueError(
                f"PyramidRoIAlign: maps must be at least {len(self.strides)}, got {len(maps)}"
            )
        return ops.roi_align(
            maps[: len(self.strides)],
            rois,
            self.output_size,
            spatial_scale=[1 / stride for stride in self.strides],
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            canonical_size=self.canonical_size,
            canonical_level=self.canonical_level,
        )

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, strides={self.strides}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )


class RoIUpsample(nn.Module):
    """Boxes of features added to a map: :func:`segkern.ops.roi_upsample`, whose arguments it has.

    Forward takes (K, C, h, w), the boxes, and the size (N, H, W) of the map.

    Example:
        >>> import torch
        >>> from segkern.nn import RoIUpsample
        >>> box = torch.tensor([[0.0, 1.0, 0.0, 3.0, 2.0]])
        >>> tuple(RoIUpsample()(torch.ones(1, 8, 14, 14), box, (1, 2, 4)).shape)
        (1, 8, 2, 4)
    """

    def __init__(
        self,
        spatial_scale: float = 1.0,
        mode: str = "gather",
        reduction: str = "mean",
        sampling_ratio: int = 0,
        aligned: bool | None = None,
        divide_by_count: bool = False,
    ) -> None:
        super().__init__()
        self.spatial_scale, self.mode, self.reduction = spatial_scale, mode, reduction
        self.sampling_ratio, self.aligned = sampling_ratio, aligned
        self.divide_by_count = divide_by_count

    def forward(self, input: Tensor, rois: Boxes, output_size: Sequence[int]) -> Tensor:
        return ops.roi_upsample(
            input,
            rois,
            output_size,
            spatial_scale=self.spatial_scale,
            mode=self.mode,
            reduction=self.reduction,
            sampling_ratio=self.sampling_ratio,
            aligned=self.aligned,
            divide_by_count=self.divide_by_count,
        )

    def extra_repr(self) -> str:
        return (
            f"spatial_scale={self.spatial_scale}, mode={self.mode!r}, "
            f"reduction={self.reduction!r}, sampling_ratio={self.sampling_ratio}, "
            f"aligned={self.aligned}, divide_by_count={self.divide_by_count}"
        )
