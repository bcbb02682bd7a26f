"""What a public port's files are known by, and the tools of their key maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

StateDict = dict[str, Tensor]

# Batch norm of torch, which ports leave at its default, and of Caffe's segmentation forks.
TORCH_NORM_EPS = 1e-5
CAFFE_NORM_EPS = 1e-9

# In place of 0, which torch refuses: less than a rounding of any variance above 1e-12.
NO_EPS = 1e-20

# Convolutions of each stage of VGG16.
VGG16_DEPTHS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}


@dataclass(frozen=True)
class Port:
    """A public implementation whose files users hold.

    Attributes:
        source: Repository, and what of it.
        marks: Keys that every state dict of the port has and together no other network's.
        convert: From its state dict to ours; ``None`` where the networks differ.
        options: Options of our network under which it is the port's.
        infer: Further options, read from the state dict.
        differs: What differs, where ``convert`` is ``None``.
        input: Scaling of the images that the port's networks were trained on, where it is not our
            recipe's.
    """

    source: str
    marks: tuple[str, ...]
    convert: Callable[[StateDict], StateDict] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    infer: Callable[[StateDict], dict[str, Any]] | None = None
    differs: str = ""
    input: str | None = None


def rename(state_dict: StateDict, pairs: list[tuple[str, str]]) -> StateDict:
    """Move everything under each port's prefix to ours; names without a pair stay and so show up.

    Args:
        state_dict: The port's.
        pairs: ``(port's prefix, our prefix)`` of single layers.
    """
    ours = dict(pairs)
    renamed = {}
    for key, value in state_dict.items():
        prefix, _, parameter = key.rpartition(".")
        renamed[f"{ours[prefix]}.{parameter}" if prefix in ours else key] = value
    return renamed


def change_eps(state_dict: StateDict, theirs: float, ours: float) -> StateDict:
    """Running variances under which batch norm with our eps divides as with theirs."""
    return {
        key: value + (theirs - ours) if key.endswith(".running_var") else value
        for key, value in state_dict.items()
    }


def rename_prefixes(state_dict: StateDict, prefixes: list[tuple[str, str]]) -> StateDict:
    """Move names by the first of the port's prefixes that they begin with; others stay.

    Args:
        state_dict: The port's.
        prefixes: ``(port's prefix, our prefix)``, each up to and with a dot.
    """
    renamed = {}
    for key, value in state_dict.items():
        theirs, own = next((pair for pair in prefixes if key.startswith(pair[0])), ("", ""))
        renamed[own + key.removeprefix(theirs)] = value
    return renamed
