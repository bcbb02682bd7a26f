"""Networks small enough to train in a test, with the calls that real ones have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from segkern.models import Recipe, _registry, register_model

RECIPE = Recipe(
    lr=0.05, batch_size=2, epochs=2, loss="network", flip=True, warmup_steps=2, clip_norm=5.0,
    schedule="multistep", milestones=(0.5,),
)  # fmt: skip

# Two training steps an epoch of 4 images.
TINY = {"limit_train": 4, "limit_val": 3, "device": "cpu"}


@dataclass(frozen=True)
class InstanceConfig:
    """Options of the tiny networks."""

    num_classes: int = 5
    in_channels: int = 3
    width: int = 4


@dataclass(frozen=True)
class PanopticConfig(InstanceConfig):
    """Those of the panoptic one."""

    num_stuff: int = 4


class TinyInstances(nn.Module):
    """A map of classes at half size; each class that is found is one object.

    answers: what it gives for images whose `key` is there, instead of what it has learnt.
    """

    answers: ClassVar[dict[int, dict[str, Any]]] = {}

    def __init__(self, config: InstanceConfig) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(config.in_channels, config.width, 3, 2, 1),
            nn.BatchNorm2d(config.width),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Conv2d(config.width, config.num_classes, 1)
        self.stuff = nn.Conv2d(config.width, getattr(config, "num_stuff", 0) + 1, 1)
        self.num_stuff = getattr(config, "num_stuff", 0)

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        assert all(image.dtype == torch.float32 and image.max() <= 1 for image in images)
        maps = [self.dropout(self.body(image[None])) for image in images]
        if self.training:
            return self.losses(maps, targets)
        return [self.result(one, image) for one, image in zip(maps, images, strict=True)]

    def losses(self, maps: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        losses = []
        for one, target in zip(maps, targets, strict=True):
            assert not target["iscrowd"].any()
            truth = (target["masks"].long() * target["labels"][:, None, None]).amax(0)[None]
            logits = functional.interpolate(self.head(one), truth.shape[-2:])
            losses.append(functional.cross_entropy(logits, truth))
        mean = torch.stack(losses).mean()
        return {"loss_class": 0.75 * mean, "loss_mask": 0.25 * mean}

    def result(self, one: Tensor, image: Tensor) -> dict[str, Any]:
        if key(image) in self.answers:
            return self.answers[key(image)]
        soft = functional.interpolate(self.head(one).softmax(1), image.shape[-2:])[0, 1:]
        # Which class is best is unsure after so few steps; a quarter is enough to be found.
        masks = soft / (2 * soft.amax(0, keepdim=True))
        masks = torch.where(masks >= 0.5, masks, masks / 2)
        scores, order = soft.flatten(1).amax(1).sort(descending=True)
        boxes = torch.tensor([[0.0, 0.0, image.shape[-1], image.shape[-2]]] * len(order))
        return {
            "boxes": boxes, "labels": order + 1, "scores": scores, "masks": masks[order, None],
        }  # fmt: skip


def key(image: Tensor) -> int:
    """A number that tells images (3, H, W) in 0..1 apart."""
    return round(float(image.double().sum() * 255))


class TinyPanoptic(TinyInstances):
    """The same, and a class of background for the rest."""

    def result(self, one: Tensor, image: Tensor) -> dict[str, Any]:
        found = super().result(one, image)
        stuff = functional.interpolate(self.stuff(one)[:, 1:], image.shape[-2:])[0].argmax(0)
        things = (found["masks"][0, 0] >= 0.5) & (torch.arange(stuff.shape[1]) < 10)
        ids = torch.where(things, 1, stuff + 2)
        segments = [
            {"id": 1, "label": int(found["labels"][0]), "isthing": True,
             "score": float(found["scores"][0])},
            *({"id": k + 2, "label": k + 1, "isthing": False, "score": None}
              for k in range(self.num_stuff)),
        ]  # fmt: skip
        segments = [{**s, "area": int((ids == s["id"]).sum())} for s in segments]
        return {**found, "panoptic": ids, "segments": [s for s in segments if s["area"]]}


@contextmanager
def registered() -> Iterator[None]:
    """Both networks, as `tiny_instances` and `tiny_panoptic`, in the list of networks."""
    networks: list[tuple[str, type, Callable[..., nn.Module], str]] = [
        ("tiny_instances", InstanceConfig, TinyInstances, "instance"),
        ("tiny_panoptic", PanopticConfig, TinyPanoptic, "panoptic"),
    ]
    for name, config, builder, task in networks:
        register_model(
            config, parameters=1, paper="A. One: Tiny, 2000", recipe=RECIPE, head="head.bias",
            name=name, task=task,
        )(builder)  # fmt: skip
    try:
        yield
    finally:
        for name, *_ in networks:
            del _registry._ENTRIES[name]
