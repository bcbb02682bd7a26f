"""Optimiser, parameter groups and learning-rate schedule of a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from segkern.engine.errors import EngineError
from segkern.nn import CRFAsRNN, DenseCRF


def parameter_groups(
    network: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    bias_lr_mult: float = 1.0,
    bias_decay_mult: float = 1.0,
    norm_decay: bool = True,
    norm_shift_decay: bool = True,
    crf_weights_lr_mult: float = 1.0,
    crf_compatibility_lr_mult: float = 1.0,
) -> list[dict[str, Any]]:
    """Split the trainable parameters of `network` into at most six groups.

    * weights of convolutions and linear layers: `lr`, `weight_decay`;
    * their biases: `lr * bias_lr_mult`, `weight_decay * bias_decay_mult` (Caffe's lr_mult and
      decay_mult);
    * everything else with at most one dimension (scale and shift of normalisation layers, PReLU
      slopes): `lr`, and `weight_decay` only where `norm_decay` is true;
    * of these, where `norm_shift_decay` is false, the shifts in a group that is not decayed;
    * kernel weights and compatibilities of CRF layers, a group each: `lr` times their factor, no
      decay, which would draw them to a CRF that does nothing.

    Groups have the key `name`; empty groups are left out. A parameter shared by two layers is
    listed once.
    """
    norms, shifts, biases, weights = [], [], [], []
    crf_weights, crf_compatibilities = [], []
    seen: set[int] = set()
    for module in network.modules():
        own = list(module.named_parameters(recurse=False))
        has_weight_matrix = any(name == "weight" and p.ndim > 1 for name, p in own)
        for name, parameter in own:
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, (CRFAsRNN, DenseCRF)):
                (crf_compatibilities if name == "compatibility" else crf_weights).append(parameter)
            elif parameter.ndim > 1:
                weights.append(parameter)
            elif name == "bias" and has_weight_matrix:
                biases.append(parameter)
            else:
                (shifts if name == "bias" and not norm_shift_decay else norms).append(parameter)
    groups = [
        {"name": "weight", "params": weights, "lr": lr, "weight_decay": weight_decay},
        {
            "name": "bias",
            "params": biases,
            "lr": lr * bias_lr_mult,
            "weight_decay": weight_decay * bias_decay_mult,
        },
        {
            "name": "norm",
            "params": norms,
            "lr": lr,
            "weight_decay": weight_decay if norm_decay else 0.0,
        },
        {"name": "norm_shift", "params": shifts, "lr": lr, "weight_decay": 0.0},
        {
            "name": "crf_weights",
            "params": crf_weights,
            "lr": lr * crf_weights_lr_mult,
            "weight_decay": 0.0,
        },
        {
            "name": "crf_compatibility",
            "params": crf_compatibilities,
            "lr": lr * crf_compatibility_lr_mult,
            "weight_decay": 0.0,
        },
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(network: nn.Module, recipe: Any) -> torch.optim.Optimizer:
    """Optimiser of `recipe` over `network`; all add L2 to the gradient, as the papers do."""
    groups = parameter_groups(
        network,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        bias_lr_mult=recipe.bias_lr_mult,
        bias_decay_mult=recipe.bias_decay_mult,
        norm_decay=recipe.norm_decay,
        norm_shift_decay=recipe.norm_shift_decay,
        crf_weights_lr_mult=recipe.crf_weights_lr_mult,
        crf_compatibility_lr_mult=recipe.crf_compatibility_lr_mult,
    )
    if not groups:
        raise EngineError("train: the network has no trainable parameters")
    if not recipe.depthwise_decay:
        groups = split_groups(groups, depthwise_weights(network), "depthwise", weight_decay=0.0)
    if recipe.head_lr_mult != 1:
        groups = split_groups(groups, head_parameters(network), "head", lr=recipe.head_lr_mult)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.lr)
    if recipe.optimizer == "rmsprop" and recipe.square_eps is not None:
        return RMSpropWithin(groups, lr=recipe.lr, alpha=recipe.smoothing, eps=recipe.square_eps)
    if recipe.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=recipe.lr, alpha=recipe.smoothing)
    raise EngineError(
        f"train: optimizer must be 'sgd', 'adam' or 'rmsprop', got {recipe.optimizer!r}"
    )


class RMSpropWithin(torch.optim.Optimizer):
    """RMSprop that divides by sqrt(mean square + eps), as Lasagne's; torch's by sqrt(.) + eps.

    Small gradients make steps in proportion to them here, where torch's rule makes them all alike.
    """

    def __init__(self, params: Any, *, lr: float, alpha: float, eps: float) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            owners = [p for p in group["params"] if p.grad is not None]
            if not owners:
                continue
            for p in owners:
                if not self.state[p]:
                    self.state[p]["square_avg"] = torch.zeros_like(p)
            squares = [self.state[p]["square_avg"] for p in owners]
            grads = torch._foreach_add(
                [p.grad for p in owners], owners, alpha=group["weight_decay"]
            )
            torch._foreach_mul_(squares, group["alpha"])
            torch._foreach_addcmul_(squares, grads, grads, value=1 - group["alpha"])
            roots = torch._foreach_add(squares, group["eps"])
            torch._foreach_sqrt_(roots)
            torch._foreach_addcdiv_(owners, grads, roots, value=-group["lr"])
        return loss


def split_groups(
    groups: list[dict[str, Any]], chosen: set[int], name: str, **factors: float
) -> list[dict[str, Any]]:
    """Take the parameters whose id is in `chosen` out of each group into one of their own.

    Its values are those of the group times `factors`, its name that of the group after `name`.
    """
    result = []
    for group in groups:
        inside = [p for p in group["params"] if id(p) in chosen]
        outside = [p for p in group["params"] if id(p) not in chosen]
        if outside:
            result.append({**group, "params": outside})
        if inside:
            changed = {key: group[key] * factor for key, factor in factors.items()}
            result.append({**group, **changed, "name": f"{name}_{group['name']}", "params": inside})
    return result


def depthwise_weights(network: nn.Module) -> set[int]:
    """Ids of the weights of convolutions with one input channel per group."""
    return {
        id(module.weight)
        for module in network.modules()
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels
    }


def head_parameters(network: nn.Module) -> set[int]:
    """Ids of the parameters of the layers that `network.head_names` names."""
    names = tuple(getattr(network, "head_names", ()))
    return {
        id(parameter)
        for name, parameter in network.named_parameters()
        if any(name == head or name.startswith(f"{head}.") for head in names)
    }


class LRFactor:
    """Factor on the learning rate at iteration `step`, 0 for the first.

    constant: 1; step: gamma ** (step // step_size); multistep: gamma ** number of milestones
    passed, fractions of total_steps; poly: (1 - step / total_steps) ** power. During the warm-up
    times a factor that rises linearly from warmup_factor at step 0 to 1 at warmup_steps.
    """

    def __init__(self, recipe: Any, total_steps: int) -> None:
        if recipe.schedule not in ("constant", "step", "multistep", "poly"):
            raise EngineError(
                "train: schedule must be 'constant', 'step', 'multistep' or 'poly', got "
                f"{recipe.schedule!r}"
            )
        if recipe.schedule == "step" and recipe.step_size < 1:
            raise EngineError(
                "train: step_size must be at least 1 iteration with schedule 'step', got "
                f"{recipe.step_size}"
            )
        self.schedule = recipe.schedule
        self.gamma = recipe.gamma
        self.power = recipe.power
        self.step_size = recipe.step_size
        self.total_steps = max(1, total_steps)
        self.milestones = [round(mark * self.total_steps) for mark in recipe.milestones]
        self.warmup_steps = recipe.warmup_steps
        self.warmup_factor = recipe.warmup_factor

    def __call__(self, step: int) -> float:
        factor = self._scheduled(step)
        if step < self.warmup_steps:
            done = step / self.warmup_steps
            factor *= self.warmup_factor + (1.0 - self.warmup_factor) * done
        return factor

    def _scheduled(self, step: int) -> float:
        if self.schedule == "step":
            return float(self.gamma ** (step // self.step_size))
        if self.schedule == "multistep":
            return float(self.gamma ** sum(step >= mark for mark in self.milestones))
        if self.schedule == "poly":
            return float(max(0.0, 1.0 - step / self.total_steps) ** self.power)
        return 1.0
