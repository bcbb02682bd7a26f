"""Counting pixels by true and predicted class."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion_matrix(
    pred: Tensor, target: Tensor, num_classes: int, *, ignore_index: int = 255
) -> Tensor:
    """Pixels of class i predicted as class j.

    Counted where the tensors are; one small table comes to the host, where labels out of range
    show, so on CUDA one synchronisation a call.

    Args:
        pred: any shape, integers in [0, num_classes), at ignored pixels too.
        target: the same shape, integers in [0, num_classes) or ``ignore_index``.
        num_classes: C.
        ignore_index: label of the pixels left out; it may be one of the classes.

    Returns:
        (C, C) int64 on the CPU, rows the true class and columns the predicted one.

    Raises:
        ValueError: shapes or dtypes that do not fit, or a class out of range.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 255]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    _check(pred, target)
    classes = num_classes
    # One more row for ignored pixels, one more row and column for what is out of range.
    bad = classes + 1
    rows = torch.where((target < 0) | (target >= classes), bad, target.long())
    rows = rows.masked_fill(target == ignore_index, classes)
    columns = torch.where((pred < 0) | (pred >= classes), bad, pred.long())
    pairs = (rows * (classes + 2) + columns).flatten()
    table = torch.bincount(pairs, minlength=(classes + 2) ** 2).view(classes + 2, classes + 2).cpu()
    if table[:, bad].any():
        raise ValueError(_out_of_range("pred", pred, classes, None))
    if table[bad].any():
        raise ValueError(_out_of_range("target", target, classes, ignore_index))
    return table[:classes, :classes].clone()


def _check(pred: Tensor, target: Tensor) -> None:
    for name, tensor in (("pred", pred), ("target", target)):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise ValueError(f"confusion_matrix: {name} must hold integers, got {tensor.dtype}")
    if pred.shape != target.shape:
        raise ValueError(
            f"confusion_matrix: pred must have the shape of target, got {tuple(pred.shape)} and "
            f"{tuple(target.shape)}"
        )
    if pred.device != target.device:
        raise ValueError(
            f"confusion_matrix: pred must be on {target.device} like target, got {pred.device}"
        )


def _out_of_range(name: str, labels: Tensor, classes: int, ignore_index: int | None) -> str:
    allowed = f"[0, {classes})" + ("" if ignore_index is None else f" or {ignore_index}")
    values, numbers = labels.unique(return_counts=True)
    found = {
        value: number
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True)
        if not 0 <= value < classes and value != ignore_index
    }
    return (
        f"confusion_matrix: {name} must be in {allowed}, got {sorted(found)[:8]} "
        f"in {sum(found.values())} pixels"
    )
