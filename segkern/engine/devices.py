"""The device that a command runs on."""

from __future__ import annotations

import torch

from segkern import _load
from segkern.engine.errors import EngineError


def pick_device(device: str) -> torch.device:
    """The torch device of "auto", "cpu", "cuda" or "cuda:N"; EngineError if there is none."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise EngineError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise EngineError(
            f"device {device} is not available: torch sees {torch.cuda.device_count()} GPUs"
        )
    if chosen.type not in ("cpu", "cuda"):
        raise EngineError(f"device must be auto, cpu, cuda or cuda:N, got {device!r}")
    return chosen


def crf_device(device: str) -> torch.device:
    """That of `pick_device`; EngineError where it is a GPU and the dense CRF cannot run there."""
    chosen = pick_device(device)
    if chosen.type == "cuda":
        try:
            _load.require_cuda("crf")
        except RuntimeError as error:
            raise EngineError(f"{error}; --device cpu works without") from error
    return chosen
