"""Checkpoints: written whole or not at all, and found again."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import nn

from segkern import __version__
from segkern.engine.files import write_atomic
from segkern.engine.state import RunState

LAST = "last.ckpt"
BEST = "best.safetensors"
CONFIG = "config.json"
METRICS = "metrics.csv"
LOG = "log.txt"
TENSORBOARD = "tensorboard"
RUN_FILES = (CONFIG, METRICS, LAST, BEST, LOG)

# Of the training data, where the data set is a published one.
LICENCES = {
    "synthetic": "none: drawn by the program",
    "synthetic-instances": "none: drawn by the program",
    "synthetic-panoptic": "none: drawn by the program",
    "camvid": "CC BY-NC 4.0 (CamVid, University of Cambridge, as prepared for the SegNet tutorial)",
    "voc": "that of PASCAL VOC 2012 (images from flickr under its terms of use)",
    "voc-instances": "that of PASCAL VOC 2012 (images from flickr under its terms of use)",
    "cityscapes": "non-commercial: that of Cityscapes",
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file, forces it to disk and swaps it in: the old one is never lost."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        # Through memory: the zip writer of torch turns a full disk into an error without its
        # number.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomic(Path(path), buffer.getbuffer())


def read_state(checkpoint: Path) -> RunState:
    """Position and figures of a run from its last.ckpt, without its tensors being read."""
    state = RunState()
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    state.load_state_dict(content["segkern"])
    return state


def build_card(
    network: nn.Module,
    settings: Any,
    dataset: Any,
    measured: Mapping[str, Any],
    of_task: Mapping[str, Any],
) -> dict[str, Any]:
    """What a weights file says of itself: how to rebuild and feed the network, how good it is.

    `measured` holds the validation figures with epoch and step, `of_task` the fields of the task.
    """
    return {
        "format": 1,
        "segkern": __version__,
        "config": network.config,
        "input": settings.recipe["input"],
        "class_names": list(dataset.class_names),
        "palette": np.asarray(dataset.palette).tolist(),
        "data": _data_name(settings.data),
        "licence": LICENCES.get(settings.data.partition(":")[0], "that of the training data"),
        **of_task,
        "epoch": measured["epoch"],
        "step": measured["step"],
        "seed": settings.seed,
        "recipe": settings.recipe,
    }


def _data_name(spec: str) -> str:
    """The data set without the place it lies at: "camvid", "synthetic:48x64", "folder:leaves"."""
    kind, _, place = spec.partition(":")
    if kind == "folder":
        return f"folder:{Path(place).resolve().name}"
    return spec if kind.startswith("synthetic") else kind
