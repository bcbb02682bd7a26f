"""What networks of forests share: options, pixels to learn from, scores window by window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkern.models._forest import check_forest, log_shares
from segkern.models._pixels import draw_pixels, pixels_per_image
from segkern.models._resize import as_it_is
from segkern.models._sizes import check_image

Place = tuple[int, int]  # row and column


class ForestNetwork(nn.Module):
    """A classifier of pixels by what lies within ``margin`` of them.

    Subclasses define ``margin`` and :meth:`shares`.

    Args:
        name: Registered name, for error messages.
        config: Its options, all kept in ``options``.
    """

    tiled_only = False
    margin: int

    def __init__(self, name: str, config: Any) -> None:
        super().__init__()
        check_forest(name, config)
        self.name, self.options = name, config
        self.in_channels, self.tile = config.in_channels, config.tile

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image(self.name, image, self.in_channels)
        return {"out": self._window(image, (0, 0), tuple(image.shape[-2:]))}

    def tiles(
        self, image: Tensor, prepare: Callable[[Tensor], Tensor] = as_it_is
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Scores tile by tile, those of the whole image up to rounding; see :meth:`UNet.tiles`."""
        check_image(self.name, image, self.in_channels, prepared=False)
        height, width = image.shape[-2:]
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                end = (min(top + self.tile, height), min(left + self.tile, width))
                yield top, left, self._window(image, (top, left), end, prepare)

    def shares(
        self, window: np.ndarray, inside: tuple[slice, slice], origin: Place, size: Place
    ) -> Tensor:
        """Share of each class at the pixels of a window that are asked for, (h, w, classes).

        Args:
            window: (C, H, W) float32.
            inside: Rows and columns of it that are asked for.
            origin: Its first row and column in the whole image.
            size: Height and width of the whole image.
        """
        raise NotImplementedError

    def draw(
        self,
        samples: Sequence[tuple[Tensor, Tensor]],
        generator: np.random.Generator,
        ignore_index: int,
    ) -> Iterator[tuple[Tensor, np.ndarray, np.ndarray]]:
        """Each image, and flat positions and labels of the pixels to learn from in it."""
        options = self.options
        each = pixels_per_image(len(samples), options.pixels, options.largest)
        for image, mask in (samples[i] for i in range(len(samples))):
            truth = np.asarray(mask)
            at = draw_pixels(
                truth, each, generator, ignore_index=ignore_index, sampling=options.sampling
            )
            yield image, at, truth.ravel()[at]

    def record(self, **options: int) -> None:
        """Note options that fitting sets, so that the fitted network can be built again."""
        self.config = {**getattr(self, "config", {}), **options}

    def _window(
        self,
        image: Tensor,
        first: Place,
        last: Place,
        prepare: Callable[[Tensor], Tensor] = as_it_is,
    ) -> Tensor:
        """Scores of rows and columns ``first`` to ``last``."""
        size = tuple(image.shape[-2:])
        origin = tuple(max(f - self.margin, 0) for f in first)
        ends = [min(e + self.margin, n) for e, n in zip(last, size)]
        inside = tuple(slice(f - s, e - s) for f, s, e in zip(first, origin, last))
        window = image[:, :, origin[0] : ends[0], origin[1] : ends[1]]
        out = []
        for one in prepare(window).detach().float().cpu():
            found = self.shares(one.contiguous().numpy(), inside, origin, size)
            out.append(log_shares(found).permute(2, 0, 1).contiguous())
        return torch.stack(out).to(image.device)
