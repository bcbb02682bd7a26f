"""A network and its recipe as a LightningModule; the one for labels of pixels."""

from __future__ import annotations

from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segkern import ops
from segkern.engine.errors import EngineError
from segkern.engine.optim import LRFactor, build_optimizer
from segkern.engine.state import RunState
from segkern.losses import pixel_loss
from segkern.metrics import SegmentationMetrics
from segkern.models._preprocess import preprocess


class NetworkModule(lightning.LightningModule):
    """A network trained as its recipe says: optimiser, schedule, the run's state in checkpoints.

    `training_step` gives the loss, or a dict of it as `loss` with its `parts`, detached, by name.
    After a validation `val_metrics` holds its figures by name.
    """

    def __init__(
        self, network: nn.Module, recipe: Any, *, total_steps: int, state: RunState | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.total_steps = total_steps
        self.state = state or RunState()
        self.val_metrics: dict[str, Any] | None = None

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(self.network, self.recipe)
        factor = LRFactor(self.recipe, self.total_steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["segkern"] = self.state.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.state.load_state_dict(checkpoint["segkern"], rank=self.global_rank)


class SegmentationModule(NetworkModule):
    """Trains `network` as `recipe` says and measures it on a validation set.

    A training batch is (images (N, 3, H, W) uint8 RGB, labels (N, H, W) int64 with 255 for ignore);
    a validation batch is a list of such pairs, one per image size. Scaling to the network's input
    is done on the device. Validation counts every pixel of every process in one confusion matrix.

    channels_last: run the network in torch.channels_last; the numbers agree up to rounding.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Any,
        *,
        num_classes: int,
        total_steps: int,
        class_weights: Tensor | None = None,
        ignore_index: int = 255,
        absent: str = "skip",
        channels_last: bool = False,
        state: RunState | None = None,
    ) -> None:
        super().__init__(network, recipe, total_steps=total_steps, state=state)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.absent = absent
        self.channels_last = channels_last
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._metrics: Any = None
        self._val_loss = torch.zeros(2, dtype=torch.float64)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes, H', W') of images (N, 3, H, W), uint8 or 0..255."""
        return self.outputs(images)["out"]

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """Everything that the network gives for images."""
        inputs = preprocess(images, self.recipe.input)
        if self.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return self.network(inputs)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of logits against labels, which are sampled down to a smaller output."""
        return pixel_loss(
            logits.float(),
            labels_at(target, logits.shape[-2:], self.recipe.label_grid),
            self.recipe.loss,
            weight=self.class_weights,
            ignore_index=self.ignore_index,
            reduction=self.recipe.loss_reduction,
            label_smoothing=self.recipe.label_smoothing,
            options=self.recipe.loss_options,
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, target = batch
        return self.training_loss(self.outputs(images), target)

    def training_loss(self, outputs: dict[str, Tensor], target: Tensor) -> Tensor:
        """Sum of the losses of the outputs that the recipe names, those that there are."""
        weights = {name: w for name, w in self.recipe.outputs.items() if name in outputs}
        if not weights:
            raise EngineError(
                f"train: the recipe's loss is on {', '.join(self.recipe.outputs)}, and the network "
                f"gives {', '.join(outputs)}"
            )
        losses = [w * self.loss(outputs[name], target) for name, w in weights.items()]
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def on_validation_epoch_start(self) -> None:
        # Where several processes trained, each has normalised with the statistics of its own
        # images.
        average_buffers(self.network)
        self._metrics = SegmentationMetrics(
            self.num_classes, ignore_index=self.ignore_index, absent=self.absent
        )
        self._val_loss = torch.zeros(2, dtype=torch.float64)

    def validation_step(self, batch: list[tuple[Tensor, Tensor]], batch_idx: int) -> None:
        for images, target in batch:
            logits = self(images)
            loss = self.loss(logits, target)
            self._val_loss += torch.tensor(
                [float(loss) * len(images), len(images)], dtype=torch.float64
            )
            if self.recipe.label_grid == "centre":
                target = labels_at(target, logits.shape[-2:], "centre")
            self._metrics.update(predict_labels(logits, target.shape[-2:]), target)

    def on_validation_epoch_end(self) -> None:
        loss = self._val_loss
        if distributed():
            loss = loss.to(self.device)
            torch.distributed.all_reduce(loss)
            self._metrics.all_reduce()
        result = self._metrics.compute()
        result["loss"] = float(loss[0] / loss[1]) if float(loss[1]) else float("nan")
        self.val_metrics = result


def labels_at(target: Tensor, size: torch.Size | tuple[int, int], grid: str = "nearest") -> Tensor:
    """Labels (N, H, W) int64 at another size, taken where `grid` says.

    "nearest" as torch's interpolate (ENet's first stage), "corners" with corner pixels on corner
    pixels (DeepLab's scores at 1/8), "stride" each s-th pixel from the first (Dilation).
    """
    if tuple(target.shape[-2:]) == tuple(size):
        return target
    if grid != "nearest":
        for axis, wanted in ((-2, size[0]), (-1, size[1])):
            target = target.index_select(axis, _taken(target.shape[axis], wanted, grid, target))
        return target
    # float32 holds every label below 2^24 exactly.
    small = F.interpolate(target[:, None].float(), size=tuple(size), mode="nearest")
    return small[:, 0].to(target.dtype)


def _taken(length: int, wanted: int, grid: str, like: Tensor) -> Tensor:
    """Indices of the labels kept of `length`."""
    index = torch.arange(wanted, device=like.device)
    if grid == "centre":
        return index + (length - wanted) // 2
    if grid == "stride":
        return (index * max(1, round(length / wanted))).clamp(max=length - 1)
    # Rounded to the nearest, halves up, in integers.
    steps = max(wanted - 1, 1)
    return (2 * index * (length - 1) + steps) // (2 * steps)


def predict_labels(logits: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Class (N, H, W) int64 of the largest logit; smaller logits are enlarged bilinearly."""
    return enlarge(logits, size).argmax(dim=1)


def enlarge(logits: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Logits (N, C, H, W) brought to `size` bilinearly, in float32; as they are at that size."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return ops.resize_bilinear(logits.float(), size)


def distributed() -> bool:
    """True inside a run of several processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@torch.no_grad()
def average_buffers(network: nn.Module) -> None:
    """Give every process the mean of all processes' running means and variances."""
    if not distributed():
        return
    world = torch.distributed.get_world_size()
    for buffer in network.buffers():
        if buffer.is_floating_point():
            torch.distributed.all_reduce(buffer)
            buffer /= world
