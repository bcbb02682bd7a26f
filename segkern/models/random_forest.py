"""Per-pixel random forest on filter responses at several scales, from before deep networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkern.models._forest import Forest, check_forest, import_classic, log_shares
from segkern.models._pixels import draw_pixels, gather_rows, pixels_per_image
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import as_it_is
from segkern.models._sizes import check_image

PAPER = "L. Breiman: Random Forests, Machine Learning 2001"

SIGMAS = (0.5, 16.0)
# What a tile's pixels see: four widths of the largest Gaussian, and the differences after it.
MARGIN = 4 * 16 + 4


@dataclass(frozen=True)
class RandomForestConfig:
    """Options of :class:`RandomForest`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels.
        trees: Trees of the forest.
        depth: Their greatest depth.
        share: Share of the drawn pixels that each tree sees.
        pixels: Pixels drawn of each training image.
        largest: Pixels drawn in all at most; with 77 features a million takes 310 MB.
        sampling: ``"stratified"``, classes as frequent as in the images, or ``"balanced"``.
        tile: Side of the tiles that prediction works in where an image is larger.
        nodes: Nodes of all trees; fitting sets it.
    """

    num_classes: int = 11
    in_channels: int = 3
    trees: int = 50
    depth: int = 10
    share: float = 0.05
    pixels: int = 4000
    largest: int = 1_000_000
    sampling: str = "stratified"
    tile: int = 512
    nodes: int = 0


class RandomForest(nn.Module):
    """Random forest over Gaussians, edges, Hessian eigenvalues, position and CIELab of each pixel.

    Args:
        config: See :class:`RandomForestConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, RGB in 0..1, any size; computed on the CPU.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)`` float64 on the input's device:
          logarithms of the mean share of each class in the leaves, 0 taken for 1e-12.

    Features, in this order: those of ``skimage.feature.multiscale_basic_features`` at six widths
    from 0.5 to 16 pixels, 24 a channel; row and column in 0..1; L, a, b / 100 for three channels.
    77 for RGB.

    No gradients: :meth:`fit` builds it, with scikit-learn; prediction works on the stored trees,
    without it, and gives what scikit-learn gives, in the same order of summation. An unfitted one
    knows nothing: all classes are alike. Deterministic.

    Raises (forward):
        ValueError: If the input has another number of axes or channels.
        MissingExtra: Without scikit-image.

    Deviation: none known; there is no single paper. The forest is Breiman's, the features are those
    of scikit-image's trainable segmentation with position and colour added.
    """

    tiled_only = False

    def __init__(self, config: RandomForestConfig) -> None:
        super().__init__()
        check_forest("random_forest", config)
        self.options = config
        self.in_channels, self.tile = config.in_channels, config.tile
        self.forest = Forest(config.trees, config.nodes, config.num_classes)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("random_forest", image, self.in_channels)
        return {"out": self._window(image, (0, 0), tuple(image.shape[-2:]))}

    def tiles(
        self, image: Tensor, prepare: Callable[[Tensor], Tensor] = as_it_is
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Scores tile by tile, those of the whole image up to rounding; see :meth:`UNet.tiles`."""
        check_image("random_forest", image, self.in_channels, prepared=False)
        height, width = image.shape[-2:]
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                end = (min(top + self.tile, height), min(left + self.tile, width))
                yield top, left, self._window(image, (top, left), end, prepare)

    def fit(
        self, samples: Sequence[tuple[Tensor, Tensor]], *, seed: int = 0, ignore_index: int = 255
    ) -> dict[str, Any]:
        """Grow the forest from labelled images, which are read once, one after the other.

        Args:
            samples: ``(image, labels)``: ``(in_channels, H, W)`` floats as the network takes them
                and (H, W) integers.
            seed: Of the pixels drawn and the trees.
            ignore_index: Label of pixels never drawn.

        Returns:
            What was done: ``pixels`` drawn and ``nodes`` grown.

        Raises:
            ValueError: If no image has a labelled pixel.
            MissingExtra: Without scikit-learn or scikit-image.
        """
        import_classic("random_forest")
        from sklearn.ensemble import RandomForestClassifier

        generator = np.random.default_rng(seed)
        options = self.options
        each = pixels_per_image(len(samples), options.pixels, options.largest)
        labels = []

        def rows() -> Iterator[np.ndarray]:
            for image, mask in (samples[i] for i in range(len(samples))):
                truth = np.asarray(mask)
                chosen = draw_pixels(
                    truth, each, generator, ignore_index=ignore_index, sampling=options.sampling
                )
                labels.append(truth.ravel()[chosen])
                yield pixel_features(image.numpy()).reshape(-1, self.features)[chosen]

        table = gather_rows(rows(), len(samples) * (each + options.num_classes))
        truth = np.concatenate(labels)
        if not len(truth):
            raise ValueError("random_forest: no training image has a labelled pixel")
        grown = RandomForestClassifier(
            n_estimators=options.trees,
            max_depth=options.depth,
            max_samples=max(1, round(options.share * len(truth))),
            random_state=seed,
        ).fit(table, truth)
        self._take(Forest.from_sklearn(grown, options.num_classes), truth)
        return {"pixels": len(truth), "nodes": self.config["nodes"]}

    @property
    def features(self) -> int:
        """Features of a pixel."""
        return 24 * self.in_channels + 2 + (3 if self.in_channels == 3 else 0)

    def _take(self, forest: Forest, truth: np.ndarray) -> None:
        counts = np.bincount(truth, minlength=self.options.num_classes)
        forest.prior.copy_(torch.from_numpy(counts / counts.sum()))
        self.forest = forest.to(self.forest.share.device)
        self.config = {**getattr(self, "config", {}), "nodes": len(forest.feature)}

    def _window(
        self,
        image: Tensor,
        first: tuple[int, int],
        last: tuple[int, int],
        prepare: Callable[[Tensor], Tensor] = as_it_is,
    ) -> Tensor:
        """Scores of rows and columns ``first`` to ``last``."""
        size = tuple(image.shape[-2:])
        starts = [max(f - MARGIN, 0) for f in first]
        ends = [min(e + MARGIN, n) for e, n in zip(last, size)]
        inside = tuple(slice(f - s, e - s) for f, s, e in zip(first, starts, last))
        forest = self.forest.cpu()  # where the features are
        out = []
        window = image[:, :, starts[0] : ends[0], starts[1] : ends[1]]
        for one in prepare(window).detach().float().cpu():
            cut = one.contiguous().numpy()
            found = pixel_features(cut, origin=(starts[0], starts[1]), size=size)[inside]
            if forest.features > found.shape[-1]:
                raise ValueError(
                    f"random_forest: the trees ask for {forest.features} features, there are "
                    f"{found.shape[-1]}"
                )
            rows = torch.from_numpy(np.ascontiguousarray(found.reshape(-1, found.shape[-1])))
            scores = log_shares(forest.probabilities(rows))
            out.append(scores.T.reshape(-1, *found.shape[:2]))
        return torch.stack(out).to(image.device)


def pixel_features(
    image: np.ndarray, *, origin: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None
) -> np.ndarray:
    """Features (H, W, F) float32 of an image (C, H, W) float32 in 0..1.

    Args:
        image: The image, or a window of it.
        origin: First row and column of the window.
        size: Height and width of the whole image; those of ``image`` where it is whole.
    """
    import_classic("random_forest")
    from skimage.color import rgb2lab
    from skimage.feature import multiscale_basic_features

    planes = np.moveaxis(image, 0, -1)
    # Differences need two pixels an axis.
    missing = [(0, max(2 - n, 0)) for n in planes.shape[:2]]
    padded = np.pad(planes, [*missing, (0, 0)], mode="edge")
    # One thread; the argument's name has changed between versions of scikit-image.
    filtered = multiscale_basic_features(
        padded, True, True, True, *SIGMAS, None, 1, channel_axis=-1
    )[: planes.shape[0], : planes.shape[1]]
    height, width = size or planes.shape[:2]
    rows = (np.arange(planes.shape[0]) + origin[0]) / max(height - 1, 1)
    columns = (np.arange(planes.shape[1]) + origin[1]) / max(width - 1, 1)
    parts = [filtered, *(grid[..., None] for grid in np.meshgrid(rows, columns, indexing="ij"))]
    if planes.shape[2] == 3:
        parts.append(rgb2lab(planes) / 100)
    return np.concatenate([part.astype(np.float32) for part in parts], axis=-1)


RECIPE = Recipe(
    optimizer="fit",
    lr=0.0,
    batch_size=1,
    epochs=1,
    input="unit",
    notes=(
        "Fitted at once from pixels drawn of all training images; see the options. Of its kind, "
        "SegNet's paper quotes 53.0 % class average and 69.1 % pixel accuracy on CamVid's test set "
        "for a forest on appearance and structure from motion."
    ),
    source="scikit-image's trainable segmentation; the numbers are ours",
)


@register_model(
    RandomForestConfig,
    parameters=0,
    paper=PAPER,
    recipe=RECIPE,
    head="forest.prior",
)
def random_forest(config: RandomForestConfig) -> RandomForest:
    """Per-pixel random forest of 50 trees, 11 classes."""
    return RandomForest(config)
