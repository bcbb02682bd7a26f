"""Fitted forests as tensors: the trees of scikit-learn, stored and applied without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkern.models._options import check_choice

# Rows classified at a time; their features stay in the processor's cache.
_CHUNK = 4096


SAMPLINGS = ("stratified", "balanced")


class MissingExtra(ImportError):
    """A package of an optional extra that is not installed."""


def import_classic(network: str) -> None:
    """Raise MissingExtra unless scikit-learn and scikit-image are there."""
    try:
        import skimage  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(
            f"{network}: needs scikit-learn and scikit-image, pip install 'segkern[classic]' "
            f"({error})"
        ) from error


class Forest(nn.Module):
    """Decision trees over rows of float32 features.

    Args:
        trees: Trees.
        nodes: Nodes of all trees together; an unfitted forest has a leaf a tree.
        classes: Classes.

    Buffers: ``feature`` (nodes) int32, -1 at leaves; ``threshold`` (nodes) float32: values up to it
    go ``left``, others ``right``, (nodes) int32, which at a leaf name the leaf; ``roots`` (trees)
    int32; ``share`` (nodes, classes) float64, of each class at the node; ``prior`` (classes)
    float64, of each class among the pixels it was fitted on.

    A file's trees are checked as they are loaded: children come after their parents, so that every
    walk ends, and no index leaves its table.

    Raises (load_state_dict):
        ValueError: If they are no trees.
    """

    def __init__(self, trees: int, nodes: int, classes: int) -> None:
        super().__init__()
        nodes = max(nodes, trees)
        own = torch.arange(nodes, dtype=torch.int32)
        self.register_buffer("feature", torch.full((nodes,), -1, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(nodes))
        self.register_buffer("left", own)
        self.register_buffer("right", own.clone())
        self.register_buffer("roots", own[:trees].clone())
        uniform = torch.full((nodes, classes), 1 / classes, dtype=torch.float64)
        self.register_buffer("share", uniform)
        self.register_buffer("prior", uniform[0].clone())
        self.register_load_state_dict_post_hook(lambda module, _: module.check())

    @classmethod
    def from_sklearn(cls, fitted: Any, classes: int) -> Forest:
        """The trees of a fitted ``RandomForestClassifier`` or ``ExtraTreesClassifier``.

        Its classes are numbers below ``classes``; those it has not seen have share 0.
        """
        parts = [estimator.tree_ for estimator in fitted.estimators_]
        forest = cls(len(parts), sum(tree.node_count for tree in parts), classes)
        seen = np.asarray(fitted.classes_, dtype=np.int64)
        first = 0
        forest.share.zero_()
        for number, tree in enumerate(parts):
            rows = slice(first, first + tree.node_count)
            inner = tree.children_left >= 0
            own = np.arange(tree.node_count)
            left = np.where(inner, tree.children_left, own) + first
            right = np.where(inner, tree.children_right, own) + first
            forest.feature[rows] = torch.from_numpy(np.where(inner, tree.feature, -1)).int()
            forest.threshold[rows] = torch.from_numpy(rounded_down(tree.threshold))
            forest.left[rows] = torch.from_numpy(left).int()
            forest.right[rows] = torch.from_numpy(right).int()
            forest.share[rows, seen] = torch.from_numpy(np.ascontiguousarray(tree.value[:, 0]))
            forest.roots[number] = first
            first += tree.node_count
        return forest

    def set_prior(self, truth: np.ndarray) -> None:
        """Keep how frequent each class is among the labels that the trees were fitted on."""
        counts = np.bincount(truth, minlength=len(self.prior))
        self.prior.copy_(torch.from_numpy(counts / counts.sum()))

    def leaves(self, rows: Tensor) -> Tensor:
        """The leaf (n, trees) int64 that each row (n, features) float32 ends in, in every tree."""
        node = self.roots.long().expand(len(rows), -1)
        while True:
            feature = self.feature[node].long()
            inner = feature >= 0
            if not inner.any():
                return node
            value = rows.gather(1, feature.clamp(min=0))
            goes_left = value <= self.threshold[node]
            node = torch.where(goes_left, self.left[node], self.right[node]).long()

    def probabilities(self, rows: Tensor) -> Tensor:
        """Mean over the trees of their leaves' shares: (n, classes) float64, in a fixed order."""
        parts = []
        for chunk in rows.split(_CHUNK):
            leaves = self.leaves(chunk)
            total = torch.zeros(len(chunk), self.share.shape[1], dtype=torch.float64)
            total = total.to(rows.device)
            for tree in range(leaves.shape[1]):
                total += self.share[leaves[:, tree]]
            parts.append(total / leaves.shape[1])
        return torch.cat(parts) if parts else self.share.new_zeros(0, self.share.shape[1])

    @property
    def features(self) -> int:
        """The number of features that the trees ask for, at least."""
        return int(self.feature.max()) + 1

    def over_used_features(self) -> tuple[np.ndarray, Forest]:
        """Numbers of the features that the trees ask for, and the trees over these alone."""
        used, places = torch.unique(self.feature, return_inverse=True)
        leaves = int(len(used) > 0 and int(used[0]) < 0)
        trees, nodes = len(self.roots), len(self.feature)
        forest = Forest(trees, nodes, self.share.shape[1])
        for name, buffer in self.named_buffers():
            forest.register_buffer(name, buffer)
        forest.register_buffer("feature", (places - leaves).int())
        return used[leaves:].cpu().numpy(), forest

    def check(self) -> None:
        """Raise ValueError unless the buffers are trees."""
        count = len(self.feature)
        own = torch.arange(count, device=self.feature.device)
        inner = self.feature >= 0
        for name in ("left", "right"):
            child = getattr(self, name).long()
            ends = (child == own) | inner
            goes_on = (child > own) | ~inner
            if not bool((ends & goes_on & (child < count)).all()):
                raise ValueError(f"Forest: {name} must name later nodes below {count}, or leaves")
        if not bool(((self.roots >= 0) & (self.roots < count)).all()):
            raise ValueError(f"Forest: roots must be in [0, {count})")
        if not bool(self.share.isfinite().all()) or bool(self.threshold.isnan().any()):
            raise ValueError("Forest: share must be finite and threshold a number")


def check_forest(network: str, config: Any) -> None:
    """Raise ValueError for an option of a forest that is out of range."""
    check_choice(network, "sampling", config.sampling, SAMPLINGS)
    if not 0 < config.share <= 1:
        raise ValueError(f"{network}: share must be above 0 and at most 1, got {config.share!r}")
    for name, value in vars(config).items():
        least = 0 if name.endswith("nodes") else 1
        if name not in ("sampling", "share") and not (isinstance(value, int) and value >= least):
            raise ValueError(f"{network}: {name} must be an int of at least {least}, got {value!r}")


def rounded_down(threshold: np.ndarray) -> np.ndarray:
    """float64 thresholds as the float32 below, which the same float32 values do not exceed."""
    near = threshold.astype(np.float32)
    below = np.nextafter(near, np.float32(-np.inf))
    return np.where(near.astype(np.float64) > threshold, below, near)


def log_shares(shares: Tensor) -> Tensor:
    """Logarithms of probabilities, of 0 that of 1e-12: scores whose softmax they are."""
    return shares.clamp(min=1e-12).log()
