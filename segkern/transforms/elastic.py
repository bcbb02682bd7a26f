"""The elastic deformation that U-Net is trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision import tv_tensors
from torchvision.transforms import v2


class ElasticDeformation(v2.Transform):
    """Move pixels by random displacements that are smooth over the image.

    A displacement is drawn at each point of a coarse grid whose corners are the image's corner
    pixels, both of its parts from a normal distribution of mean 0, and interpolated bicubically
    (cubic convolution, a = -0.75) to every pixel. An image is sampled bilinearly where they point
    to, a mask at the nearest pixel; beyond the border both are mirrored without repeating it.

    Args:
        sigma: Standard deviation of the displacements in pixels.
        grid: Points of the grid along each axis, at least 2.

    Paper: arXiv:1505.04597 section 3.1.
    """

    def __init__(self, sigma: float = 10.0, grid: int = 3) -> None:
        super().__init__()
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"ElasticDeformation: sigma must be at least 0, got {sigma!r}")
        if isinstance(grid, bool) or not isinstance(grid, int) or grid < 2:
            raise ValueError(f"ElasticDeformation: grid must be an int of at least 2, got {grid!r}")
        self.sigma = sigma
        self.grid = grid

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"coarse": self.sigma * torch.randn(2, self.grid, self.grid)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, Tensor):
            return inpt
        plain = inpt.as_subclass(Tensor)
        nearest = isinstance(inpt, tv_tensors.Mask)
        return tv_tensors.wrap(deform(plain, params["coarse"], nearest=nearest), like=inpt)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, grid={self.grid}"


def deform(image: Tensor, coarse: Tensor, *, nearest: bool = False) -> Tensor:
    """Apply the deformation of given displacements.

    Args:
        image: ``(..., H, W)``, any dtype.
        coarse: ``(2, g, g)``, displacements in pixels, down and to the right, of the grid points.
        nearest: Take the nearest pixel, for labels, instead of interpolating bilinearly.

    Returns:
        A tensor of the same shape and dtype; integers are rounded.
    """
    height, width = image.shape[-2:]
    fine = functional.interpolate(
        coarse[None].to(image.device, torch.float32),
        size=(height, width),
        mode="bicubic",
        align_corners=True,
    )[0]
    rows = mirrored(fine[0] + torch.arange(height, device=image.device)[:, None], height)
    columns = mirrored(fine[1] + torch.arange(width, device=image.device), width)
    if nearest:
        # Halves up.
        index = (rows + 0.5).floor().long(), (columns + 0.5).floor().long()
        return image[..., index[0].clamp(max=height - 1), index[1].clamp(max=width - 1)]
    top, left = rows.floor(), columns.floor()
    down, right = rows - top, columns - left
    top, left = top.long(), left.long()
    bottom, end = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    values = image if image.is_floating_point() else image.float()
    upper = values[..., top, left] * (1 - right) + values[..., top, end] * right
    lower = values[..., bottom, left] * (1 - right) + values[..., bottom, end] * right
    sampled = upper * (1 - down) + lower * down
    return sampled.to(image.dtype) if image.is_floating_point() else sampled.round().to(image.dtype)


def mirrored(position: Tensor, length: int) -> Tensor:
    """Positions, floats or integers, folded into [0, length - 1] by mirroring at both ends."""
    if length == 1:
        return torch.zeros_like(position)
    period = 2 * (length - 1)
    position = position.remainder(period)
    return torch.minimum(position, period - position)
