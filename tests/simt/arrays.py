"""Tensors as the arrays that kernels take, and back."""

from __future__ import annotations

import numpy as np
import torch


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's elements in order; bfloat16, which NumPy lacks, as uint16 bits."""
    tensor = tensor.contiguous()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def to_tensor(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The tensor of `dtype` whose elements `array` holds."""
    return torch.from_numpy(array).view(dtype)


def to_double(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """As `to_tensor`, in float64; `array` may also be of another type than uint16."""
    tensor = torch.from_numpy(array)
    return (tensor.view(dtype) if array.dtype == np.uint16 else tensor).double()
