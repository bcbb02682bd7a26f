"""Semantic texton forests: trees on pairs of pixels, then trees on rectangles of textons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkern.models._forest import Forest, check_forest, import_classic, log_shares
from segkern.models._options import check_choice
from segkern.models._pixels import draw_pixels, gather_rows, pixels_per_image
from segkern.models._recipe import Recipe
from segkern.models._registry import register_model
from segkern.models._resize import as_it_is
from segkern.models._sizes import check_image

PAPER = (
    "J. Shotton, M. Johnson, R. Cipolla: Semantic Texton Forests for Image Categorization and "
    "Segmentation, CVPR 2008"
)

# Pixels of a pair lie so far from the one they speak for.
PATCH = 10
RAW, SUM, DIFFERENCE, ABSOLUTE = range(4)
# Rows whose pair tests are computed at a time.
_STRIP = 16


@dataclass(frozen=True)
class TextonForestConfig:
    """Options of :class:`TextonForest`.

    Attributes:
        num_classes: Output channels.
        in_channels: Input channels; three are taken for RGB and turned to CIELab.
        stages: 2, or 1 for the texton forest alone.
        trees: Trees of each forest.
        depth: Greatest depth of the texton forest.
        bag_depth: Of the forest on rectangles.
        tests: Tests on pairs of pixels that are drawn.
        bag_tests: Tests on rectangles that are drawn.
        reach: Rectangles lie so far around a pixel.
        share: Share of the drawn pixels that each tree sees.
        pixels: Pixels drawn of each training image.
        largest: Pixels drawn in all at most; 200 000 at 500 tests take 400 MB.
        sampling: ``"stratified"``, classes as frequent as in the images, or ``"balanced"``.
        tile: Side of the tiles that prediction works in where an image is larger.
        nodes, bag_nodes: Nodes of all trees; fitting sets them.
    """

    num_classes: int = 11
    in_channels: int = 3
    stages: int = 2
    trees: int = 5
    depth: int = 10
    bag_depth: int = 15
    tests: int = 500
    bag_tests: int = 400
    reach: int = 60
    share: float = 0.25
    pixels: int = 2000
    largest: int = 200_000
    sampling: str = "stratified"
    tile: int = 256
    nodes: int = 0
    bag_nodes: int = 0


class TextonForest(nn.Module):
    """Texton forest, and the segmentation forest on bags of its textons and priors.

    Args:
        config: See :class:`TextonForestConfig`.

    Shape:
        - Input: ``(N, in_channels, H, W)``, RGB in 0..1, any size; computed on the CPU.
        - Output: a dict with ``"out"``, ``(N, num_classes, H, W)`` float64 on the input's device:
          logarithms of the mean share of each class in the leaves, 0 taken for 1e-12.

    The first trees ask for the value of a pixel up to 10 pixels away, or for sum, difference or
    absolute difference of two, each in a channel of its own, in CIELab, mirrored at the border. The
    second ask which share of a rectangle around the pixel passes a node of the first, or how likely
    a class is in it on average after the first. Both are extremely randomised trees, classes
    weighted by the inverse of their frequency.

    No gradients: :meth:`fit` builds it, with scikit-learn; prediction works on the stored trees,
    without it, and gives what scikit-learn gives. An unfitted one knows nothing. Deterministic.

    Raises (forward):
        ValueError: If the input has another number of axes or channels.
        MissingExtra: Without scikit-image.

    Paper: CVPR 2008.

    Deviations: the drawn tests are shared by all nodes (500 and 400), each of which chooses among
    the square root of them, with a random threshold; the paper draws anew at every node. Pixels are
    drawn by count, not on a grid. The image-level prior is left out.
    """

    tiled_only = False

    def __init__(self, config: TextonForestConfig) -> None:
        super().__init__()
        check_forest("texton_forest", config)
        check_choice("texton_forest", "stages", config.stages, (1, 2))
        self.options = config
        self.in_channels, self.tile = config.in_channels, config.tile
        self.textons = Forest(config.trees, config.nodes, config.num_classes)
        # kind, row, column, channel, row, column, channel
        self.register_buffer("pairs", torch.zeros(config.tests, 7, dtype=torch.int32))
        if config.stages == 2:
            self.bags = Forest(config.trees, config.bag_nodes, config.num_classes)
            # node, or -1 - class; first row and column, last row and column, from the pixel on
            self.register_buffer("rectangles", torch.zeros(config.bag_tests, 5, dtype=torch.int32))
        self.register_load_state_dict_post_hook(lambda module, _: module._check_tests())

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        check_image("texton_forest", image, self.in_channels)
        return {"out": self._window(image, (0, 0), tuple(image.shape[-2:]))}

    def tiles(
        self, image: Tensor, prepare: Callable[[Tensor], Tensor] = as_it_is
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Scores tile by tile, those of the whole image; see :meth:`UNet.tiles`."""
        check_image("texton_forest", image, self.in_channels, prepared=False)
        height, width = image.shape[-2:]
        for top in range(0, height, self.tile):
            for left in range(0, width, self.tile):
                end = (min(top + self.tile, height), min(left + self.tile, width))
                yield top, left, self._window(image, (top, left), end, prepare)

    def fit(
        self, samples: Sequence[tuple[Tensor, Tensor]], *, seed: int = 0, ignore_index: int = 255
    ) -> dict[str, Any]:
        """Grow both forests from labelled images, which are read once for each.

        Arguments, result and errors as :meth:`RandomForest.fit`.
        """
        import_classic("texton_forest")
        generator = np.random.default_rng(seed)
        options = self.options
        channels = self.in_channels
        self.pairs.copy_(torch.from_numpy(draw_pairs(options.tests, channels, generator)))
        chosen = self._draw(samples, generator, ignore_index)
        positions, truth = [one for one, _ in chosen], np.concatenate([y for _, y in chosen])
        if not len(truth):
            raise ValueError("texton_forest: no training image has a labelled pixel")
        every = np.arange(options.tests)
        tests = self.pairs.numpy()
        rows = (
            pair_features(to_lab(samples[i][0].numpy()), tests, every, at)
            for i, at in enumerate(positions)
        )
        table = gather_rows(rows, len(truth))
        self.textons = self._grow(table, truth, options.depth, seed)
        counts = np.bincount(truth, minlength=options.num_classes)
        self.textons.prior.copy_(torch.from_numpy(counts / counts.sum()))
        self.config = {**getattr(self, "config", {}), "nodes": len(self.textons.feature)}
        del table
        if options.stages == 2:
            drawn = draw_rectangles(
                options.bag_tests,
                options.reach,
                len(self.textons.feature),
                options.num_classes,
                generator,
            )
            self.rectangles.copy_(torch.from_numpy(drawn))
            every = np.arange(options.bag_tests)
            rows = (
                self._bag_features(*self._textons(to_lab(samples[i][0].numpy())), every, at)
                for i, at in enumerate(positions)
            )
            table = gather_rows(rows, len(truth))
            self.bags = self._grow(table, truth, options.bag_depth, seed + 1)
            self.config = {**getattr(self, "config", {}), "bag_nodes": len(self.bags.feature)}
        return {
            "pixels": len(truth),
            "nodes": self.config["nodes"] + self.config.get("bag_nodes", 0),
        }

    def _draw(
        self,
        samples: Sequence[tuple[Tensor, Tensor]],
        generator: np.random.Generator,
        ignore_index: int,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Flat positions and labels of the pixels drawn of each image."""
        options, chosen = self.options, []
        each = pixels_per_image(len(samples), options.pixels, options.largest)
        for _, mask in (samples[i] for i in range(len(samples))):
            truth = np.asarray(mask)
            at = draw_pixels(
                truth, each, generator, ignore_index=ignore_index, sampling=options.sampling
            )
            chosen.append((at, truth.ravel()[at]))
        return chosen

    def _grow(self, table: np.ndarray, truth: np.ndarray, depth: int, seed: int) -> Forest:
        from sklearn.ensemble import ExtraTreesClassifier

        options = self.options
        grown = ExtraTreesClassifier(
            n_estimators=options.trees,
            max_depth=depth,
            class_weight="balanced",
            bootstrap=True,
            max_samples=max(1, round(options.share * len(truth))),
            random_state=seed,
        ).fit(table, truth)
        return Forest.from_sklearn(grown, options.num_classes)

    def _window(
        self,
        image: Tensor,
        first: tuple[int, int],
        last: tuple[int, int],
        prepare: Callable[[Tensor], Tensor] = as_it_is,
    ) -> Tensor:
        """Scores of rows and columns ``first`` to ``last``."""
        margin = PATCH + (self.options.reach if self.options.stages == 2 else 0)
        starts = [max(f - margin, 0) for f in first]
        ends = [min(e + margin, n) for e, n in zip(last, image.shape[-2:])]
        inside = tuple(slice(f - s, e - s) for f, s, e in zip(first, starts, last))
        out = []
        window = image[:, :, starts[0] : ends[0], starts[1] : ends[1]]
        for one in prepare(window).detach().float().cpu():
            cut = one.contiguous().numpy()
            leaves, shares = self._textons(to_lab(cut))
            found = shares[inside]
            if self.options.stages == 2:
                at = np.arange(leaves.shape[0] * leaves.shape[1]).reshape(leaves.shape[:2])
                used, forest = self.bags.cpu().over_used_features()
                rows = self._bag_features(leaves, shares, used, at[inside].ravel())
                found = forest.probabilities(torch.from_numpy(rows)).view(*found.shape)
            out.append(log_shares(found).permute(2, 0, 1))
        return torch.stack(out).to(image.device)

    def _textons(self, planes: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Leaves (H, W, trees) int64 and shares (H, W, classes) of the first forest."""
        height, width = planes.shape[1:]
        leaves = np.empty((height, width, self.options.trees), dtype=np.int64)
        shares = torch.empty(height, width, self.options.num_classes, dtype=torch.float64)
        pairs = self.pairs.cpu().numpy()
        used, forest = self.textons.cpu().over_used_features()
        for top in range(0, height, _STRIP):
            bottom = min(top + _STRIP, height)
            at = np.arange(top * width, bottom * width)
            rows = torch.from_numpy(pair_features(planes, pairs, used, at))
            found = forest.leaves(rows).view(bottom - top, width, -1)
            leaves[top:bottom] = found.numpy()
            shares[top:bottom] = forest.probabilities(rows).view(bottom - top, width, -1)
        return leaves, shares

    def _bag_features(
        self, leaves: np.ndarray, shares: Tensor, used: np.ndarray, at: np.ndarray
    ) -> np.ndarray:
        """Mean of what each used test looks at in its rectangle: (len(at), len(used)) float32."""
        height, width = leaves.shape[:2]
        end = subtree_ends(self.textons)
        roots = self.textons.roots.cpu().numpy()
        rows, columns = np.divmod(at, width)
        table = np.empty((len(at), len(used)), dtype=np.float32)
        integral = np.zeros((height + 1, width + 1))
        tests = self.rectangles.cpu().numpy()[used]
        last = None
        # One plane at a time, and each only once.
        for place in np.argsort(tests[:, 0], kind="stable"):
            what, top, left, bottom, right = tests[place].tolist()
            if what != last:
                if what < 0:
                    plane = shares[..., -1 - what].numpy()
                else:
                    own = leaves[..., np.searchsorted(roots, what, side="right") - 1]
                    plane = (own >= what) & (own < end[what])
                np.cumsum(np.cumsum(plane, axis=0, dtype=np.float64), axis=1, out=integral[1:, 1:])
                last = what
            r0, r1 = (np.clip(rows + edge, 0, height) for edge in (top, bottom))
            c0, c1 = (np.clip(columns + edge, 0, width) for edge in (left, right))
            inside = integral[r1, c1] - integral[r0, c1] - integral[r1, c0] + integral[r0, c0]
            table[:, place] = inside / np.maximum((r1 - r0) * (c1 - c0), 1)
        return table

    def _check_tests(self) -> None:
        """Raise ValueError where a file's tests leave their tables."""
        pairs = self.pairs
        bad = (pairs[:, 0] < RAW) | (pairs[:, 0] > ABSOLUTE)
        bad |= (pairs[:, [1, 2, 4, 5]].abs() > PATCH).any(1)
        bad |= ((pairs[:, [3, 6]] < 0) | (pairs[:, [3, 6]] >= self.in_channels)).any(1)
        if bool(bad.any()) or self.textons.features > len(pairs):
            raise ValueError("texton_forest: pairs must be tests within the patch and the channels")
        if self.options.stages == 2:
            what, reach = self.rectangles[:, 0], self.options.reach
            bad = (what < -self.options.num_classes) | (what >= len(self.textons.feature))
            bad |= (self.rectangles[:, 1:].abs() > reach).any(1)
            if bool(bad.any()) or self.bags.features > len(self.rectangles):
                raise ValueError("texton_forest: rectangles must name nodes or classes, in reach")


def to_lab(image: np.ndarray) -> np.ndarray:
    """CIELab (3, H, W) float32 of RGB in 0..1; other numbers of channels as they are."""
    if image.shape[0] != 3:
        return image
    import_classic("texton_forest")
    from skimage.color import rgb2lab

    lab = rgb2lab(np.moveaxis(image, 0, -1))
    return np.ascontiguousarray(np.moveaxis(lab, -1, 0), dtype=np.float32)


def draw_pairs(count: int, channels: int, generator: np.random.Generator) -> np.ndarray:
    """Tests on pairs of pixels (count, 7) int32: kind, then row, column, channel of both."""
    tests = np.empty((count, 7), dtype=np.int32)
    tests[:, 0] = generator.integers(4, size=count)
    for place in (1, 2, 4, 5):
        tests[:, place] = generator.integers(-PATCH, PATCH + 1, size=count)
    for place in (3, 6):
        tests[:, place] = generator.integers(channels, size=count)
    return tests


def draw_rectangles(
    count: int, reach: int, nodes: int, classes: int, generator: np.random.Generator
) -> np.ndarray:
    """Tests on rectangles (count, 5) int32, half of them on nodes and half on classes."""
    tests = np.empty((count, 5), dtype=np.int32)
    on_class = generator.random(count) < 0.5
    tests[:, 0] = np.where(
        on_class,
        -1 - generator.integers(classes, size=count),
        generator.integers(nodes, size=count),
    )
    for first, last in ((1, 3), (2, 4)):
        edges = np.sort(generator.integers(-reach, reach + 1, size=(count, 2)), axis=1)
        tests[:, first] = np.minimum(edges[:, 0], reach - 1)
        tests[:, last] = np.maximum(edges[:, 1], tests[:, first] + 1)
    return tests


def pair_features(
    planes: np.ndarray, tests: np.ndarray, used: np.ndarray, at: np.ndarray
) -> np.ndarray:
    """Values (len(at), len(used)) float32 of the used tests at flat positions of the image."""
    height, width = planes.shape[1:]
    rows, columns = np.divmod(at, width)
    table = np.empty((len(at), len(used)), dtype=np.float32)
    for place, (kind, r1, c1, p1, r2, c2, p2) in enumerate(tests[used].tolist()):
        first = planes[p1, mirrored(rows + r1, height), mirrored(columns + c1, width)]
        if kind == RAW:
            table[:, place] = first
            continue
        second = planes[p2, mirrored(rows + r2, height), mirrored(columns + c2, width)]
        if kind == SUM:
            table[:, place] = first + second
        else:
            difference = first - second
            table[:, place] = np.abs(difference) if kind == ABSOLUTE else difference
    return table


def mirrored(index: np.ndarray, length: int) -> np.ndarray:
    """Indices brought into 0 .. length - 1 by mirroring, the border pixel not repeated."""
    period = max(2 * (length - 1), 1)
    inside = index % period
    return np.minimum(inside, 2 * (length - 1) - inside) if length > 1 else np.zeros_like(index)


def subtree_ends(forest: Forest) -> np.ndarray:
    """One past the last node below each node; nodes of a subtree follow one another."""
    left, right = forest.left.cpu().numpy(), forest.right.cpu().numpy()
    end = np.arange(len(left)) + 1
    for node in range(len(left) - 1, -1, -1):
        end[node] = max(end[node], end[left[node]], end[right[node]])
    return end


RECIPE = Recipe(
    optimizer="fit",
    lr=0.0,
    batch_size=1,
    epochs=1,
    input="unit",
    notes="Fitted at once from pixels drawn of all training images; see the options.",
    source="CVPR 2008, with scikit-learn's extremely randomised trees",
)


@register_model(
    TextonForestConfig,
    parameters=0,
    paper=PAPER,
    recipe=RECIPE,
    head="textons.prior",
    reported={
        "MSRC-21 pixel accuracy, with image-level prior": 72.0,
        "MSRC-21 class average accuracy, with image-level prior": 67.0,
    },
)
def texton_forest(config: TextonForestConfig) -> TextonForest:
    """Semantic texton forests, 5 trees each, 11 classes."""
    return TextonForest(config)
