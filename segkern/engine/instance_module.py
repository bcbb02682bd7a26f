"""Networks that return their own losses as a LightningModule, measured by their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from segkern.engine.instances import network_inputs, with_hard_masks
from segkern.engine.module import NetworkModule, average_buffers
from segkern.engine.state import RunState

Target = Mapping[str, Any]


class Figures(Protocol):
    """What measures the results of a validation."""

    def reset(self) -> None:
        """Forget everything."""

    def update(self, targets: Sequence[Target], results: Sequence[Mapping[str, Any]]) -> None:
        """Take the results of some images and their truths."""

    def gather(self) -> None:
        """Put together what all processes have taken."""

    def compute(self) -> dict[str, Any]:
        """The figures by name."""


class InstanceModule(NetworkModule):
    """Trains a network on the sum of the losses it returns, and measures what it finds.

    A batch, of training and of validation, is a list of images (3, H, W) uint8 RGB of any sizes and
    a list of targets, dicts as :class:`segkern.data.InstanceDataset` has them.

    channels_last: run the network in torch.channels_last; the numbers agree up to rounding.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Any,
        *,
        total_steps: int,
        figures: Figures,
        channels_last: bool = False,
        state: RunState | None = None,
    ) -> None:
        super().__init__(network, recipe, total_steps=total_steps, state=state)
        self.figures = figures
        if channels_last:
            self.network.to(memory_format=torch.channels_last)

    def training_step(
        self, batch: tuple[list[Tensor], list[Target]], batch_idx: int
    ) -> dict[str, Any]:
        images, targets = batch
        losses = self.network(network_inputs(images, self.recipe.input, self.device), targets)
        parts = {name: loss.detach() for name, loss in losses.items()}
        return {"loss": torch.stack(list(losses.values())).sum(), "parts": parts}

    def on_validation_epoch_start(self) -> None:
        # Where several processes trained, each has normalised with the statistics of its own
        # images.
        average_buffers(self.network)
        self.figures.reset()

    def validation_step(self, batch: tuple[list[Tensor], list[Target]], batch_idx: int) -> None:
        images, targets = batch
        results = self.network(network_inputs(images, self.recipe.input, self.device))
        self.figures.update(targets, [with_hard_masks(result) for result in results])

    def on_validation_epoch_end(self) -> None:
        self.figures.gather()
        self.val_metrics = self.figures.compute()
