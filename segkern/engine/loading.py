"""Trained networks found again: a run folder, a weights file, or built-in weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segkern.engine.checkpoint import BEST, CONFIG
from segkern.engine.crf_settings import CrfSettings, energies_of
from segkern.engine.devices import pick_device
from segkern.engine.errors import EngineError
from segkern.engine.inference import Protocol, class_scores, tiled_labels, works_in_tiles
from segkern.engine.module import enlarge, predict_labels
from segkern.models import WeightsError, create_model, get_weights, list_models, read_card
from segkern.models._preprocess import preprocess


@dataclass
class Trained:
    """A network in eval mode on its device, with the card of its weights.

    path: the weights file. run: the run folder it came from, or None. settings: the run's settings,
    {} without a run. protocol: how it is applied to images.
    """

    network: nn.Module
    card: dict[str, Any]
    source: str
    path: Path
    device: torch.device
    run: Path | None
    settings: dict[str, Any]
    protocol: Protocol = Protocol()

    @property
    def model(self) -> str:
        """Registered name of the network."""
        return self.card["config"]["name"]

    @property
    def class_names(self) -> list[str]:
        return list(self.card["class_names"])

    @property
    def palette(self) -> np.ndarray:
        return np.asarray(self.card["palette"], dtype=np.uint8)

    def fingerprint(self) -> str:
        """SHA-256 of the weights file, which names the weights a result belongs to."""
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()

    @torch.inference_mode()
    def predict(
        self, images: Tensor, *, tta: bool = False, crf: CrfSettings | None = None
    ) -> Tensor:
        """Classes (N, H, W) int64 on the CPU of images (N, 3, H, W) uint8 RGB.

        tta: average with the probabilities of the mirror images, whatever the protocol says. crf:
        refine the probabilities by a dense CRF over the images, at the images' size.
        """
        if crf is not None:
            return self.probabilities(images, tta=tta, crf=crf).argmax(1).cpu()
        if self.protocol.plain and not tta and works_in_tiles(self.network, images):
            return tiled_labels(self.network, images, self._inputs)
        return predict_labels(self._scores(images, tta), images.shape[-2:]).cpu()

    @torch.inference_mode()
    def probabilities(
        self, images: Tensor, *, tta: bool = False, crf: CrfSettings | None = None
    ) -> Tensor:
        """(N, C, H, W) float32 on the network's device, at the images' size; see `predict`."""
        scores = self._scores(images, tta)
        found = enlarge(scores, images.shape[-2:]).float().softmax(1)
        if crf is None:
            return found
        return crf.refine(energies_of(found), images.to(self.device))

    def _scores(self, images: Tensor, tta: bool) -> Tensor:
        """Scores of the images, whose softmax is the probabilities."""
        protocol = dataclasses.replace(self.protocol, flip=True) if tta else self.protocol
        return class_scores(self.network, self._inputs(images), protocol)

    def _inputs(self, images: Tensor) -> Tensor:
        inputs = preprocess(images.to(self.device), self.card["input"])
        return inputs.contiguous(memory_format=torch.channels_last)


def load_trained(
    source: str | Path,
    device: str = "auto",
    *,
    protocol: Protocol | None = None,
    output_stride: int | None = None,
) -> Trained:
    """Load a network for use.

    source: a run folder (its best.safetensors), a .safetensors file with a card, or NAME:TAG for
    built-in weights. protocol: how it is applied to images; None is once, whole. output_stride:
    another than in training, for networks that have the option. Raises EngineError where there is
    nothing to load, WeightsError for weights that do not fit.
    """
    chosen = pick_device(device)
    path = Path(source)
    run, settings = None, {}
    if path.is_dir():
        run = path
        path = run / BEST
        if not path.is_file():
            raise EngineError(
                f"{run} holds no {BEST}: "
                + (
                    "the run has not finished an epoch yet"
                    if (run / CONFIG).is_file()
                    else "it is not the folder of a run"
                )
            )
        if (run / CONFIG).is_file():
            settings = json.loads((run / CONFIG).read_text(encoding="utf-8"))["settings"]
    elif not path.is_file():
        path = _builtin(str(source))
    card = read_card(path)
    missing = [key for key in ("config", "input", "class_names", "palette") if key not in card]
    if missing:
        raise EngineError(
            f"{path} has no card saying how to use it (missing: {', '.join(missing)}); "
            "weights that `segkern train` writes have one"
        )
    config = dict(card["config"])
    if output_stride is not None:
        if "output_stride" not in config:
            raise EngineError(f"{config['name']} has no option output_stride")
        config["output_stride"] = output_stride
    try:
        network = create_model(config.pop("name"), **config, weights=path)
    except (ValueError, TypeError) as error:
        raise EngineError(f"{path}: {error}") from error
    network = network.eval().to(chosen, memory_format=torch.channels_last)
    return Trained(network, card, str(source), path, chosen, run, settings, protocol or Protocol())


def _builtin(source: str) -> Path:
    name, colon, tag = source.partition(":")
    if not colon or name not in list_models():
        raise EngineError(
            f"no such checkpoint: {source}; wanted is a run folder, a .safetensors file or "
            "NAME:TAG for built-in weights"
        )
    tags = get_weights(name)
    if tag not in tags:
        known = ", ".join(tags) or "none"
        raise EngineError(f"{name} has no built-in weights {tag!r}; there are: {known}")
    return Path(tags[tag])


__all__ = ["Trained", "WeightsError", "load_trained", "pick_device"]
