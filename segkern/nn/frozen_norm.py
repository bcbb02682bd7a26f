"""Batch norm that training leaves alone."""

from __future__ import annotations

import torch


class FrozenBatchNorm2d(torch.nn.BatchNorm2d):
    """Batch norm with its running statistics in training too, and without gradients of its own.

    The ``state_dict`` is that of :class:`torch.nn.BatchNorm2d`. ``train()`` leaves it in evaluation
    mode, so that its scale and shift can be folded into a convolution at any time.

    Example:
        >>> import torch
        >>> norm = FrozenBatchNorm2d(4).train()
        >>> norm.training, norm.weight.requires_grad
        (False, False)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1) -> None:
        super().__init__(num_features, eps, momentum)
        self.train(False)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        return super().train(False)


def freeze_batch_norm(model: torch.nn.Module) -> int:
    """Turn every :class:`torch.nn.BatchNorm2d` of ``model`` into a frozen one, in place.

    The layers stay the objects they were, with their parameters and statistics; only layers whose
    class is exactly torch's are taken.

    Returns:
        How many there were.

    Example:
        >>> import torch
        >>> freeze_batch_norm(torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.ReLU()))
        1
    """
    frozen = 0
    for module in model.modules():
        if type(module) is torch.nn.BatchNorm2d:
            module.__class__ = FrozenBatchNorm2d
            module.train(False)
            module.requires_grad_(False)
            frozen += 1
    return frozen
