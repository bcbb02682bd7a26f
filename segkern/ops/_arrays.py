"""Tensors, NumPy arrays, CuPy arrays and others as arguments, and results of the same kind."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(op: str, name: str, value: Any) -> Tensor:
    """A tensor over the memory of a tensor, a NumPy array, or an array with DLPack.

    Arrays without DLPack that have CUDA's array interface are taken too. An array that comes from
    no library with a ``from_dlpack`` is refused here, before any work, as :func:`like` could not
    give one back.
    """
    if isinstance(value, Tensor):
        return value
    try:
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value).reshape(value.shape)
            return torch.from_numpy(array if array.flags.writeable else array.copy())
        if hasattr(value, "__dlpack__"):
            _importer(op, name, value)
            return torch.from_dlpack(value)
        if hasattr(value, "__cuda_array_interface__"):
            _importer(op, name, value)
            return torch.as_tensor(value, device="cuda")
    except (BufferError, TypeError, ValueError) as error:
        message = f"{op}: {name} must be of a dtype and device that torch has: {error}"
        raise TypeError(message) from error
    raise TypeError(f"{op}: {name} must be a Tensor or an array, got {type(value).__name__}")


def constants(values: Sequence[float], device: torch.device | None) -> Tensor:
    """A float32 tensor of a few numbers; filled on the device, as a copy would wait for it."""
    if device is None or device.type == "cpu":
        return torch.tensor(values, dtype=torch.float32)
    numbers = [torch.full((1,), value, dtype=torch.float32, device=device) for value in values]
    return torch.cat(numbers)


def like(op: str, name: str, original: Any, result: Tensor) -> Any:
    """`result` as the kind of array that `original` is, over the same memory."""
    if isinstance(original, Tensor):
        return result
    result = result.detach()
    if isinstance(original, np.ndarray):
        return result.numpy()
    return _importer(op, name, original)(result)


def _importer(op: str, name: str, value: Any) -> Callable[[Any], Any]:
    """``from_dlpack`` of the library that an array's class comes from."""
    library = type(value).__module__.partition(".")[0]
    importer = getattr(importlib.import_module(library), "from_dlpack", None)
    if importer is None:
        raise TypeError(f"{library} has no from_dlpack to give {name} back as")
    return importer
