"""Swapping torch's layers for ours inside a model that somebody else wrote."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from segkern.nn.pooling import MaxPool2d, MaxUnpool2d

# torch's class -> ours. Each of ours is a subclass of the torch class and has a class method
# `_adopt(module)` that turns an instance of the torch class into one of its own.
COUNTERPARTS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.MaxPool2d: MaxPool2d,
    torch.nn.MaxUnpool2d: MaxUnpool2d,
}


@dataclass(frozen=True)
class Swap:
    """One layer that :func:`convert` swapped.

    Attributes:
        name: Qualified name of the layer as ``named_modules`` spells it; empty when the model
            itself was the layer. A layer shared by several parents has its first name.
        old: The torch class it was.
        new: The class it is now.
    """

    name: str
    old: type[torch.nn.Module]
    new: type[torch.nn.Module]

    def __str__(self) -> str:
        old = f"torch.nn.{self.old.__name__}"
        return f"{self.name or '(the model itself)'}: {old} -> segkern.nn.{self.new.__name__}"


def convert(model: torch.nn.Module) -> list[Swap]:
    """Swap every layer of ``model`` that has a counterpart in :mod:`segkern.nn`, in place.

    A layer stays the object it was and changes its class, so that whatever else holds it still
    does: hooks and their handles, the training flag, parameters in an optimiser, parents that
    share it, an attribute or a list outside the module tree, and the model itself when it is such
    a layer. Outputs keep their bits and ``state_dict`` its keys.

    Only layers whose class is exactly torch's are taken: a subclass may compute something else.
    Calls of ``torch.nn.functional`` inside a ``forward`` are not layers and stay. A pooling layer
    with ``return_indices=True`` goes on returning torch's int64 indices
    (``index_format="flat"``), for the code that consumes them; set its ``index_format`` to
    ``"offset"`` afterwards where the consumer is a :class:`MaxUnpool2d` of this package.

    Args:
        model: Any module, on any device, in training or evaluation mode.

    Returns:
        What was swapped, in the order of ``model.named_modules()``; empty if nothing was, as on
        a second call.

    Raises:
        TypeError: If ``model`` is not a :class:`torch.nn.Module`.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2))
        >>> [str(swap) for swap in convert(model)]
        ['1: torch.nn.MaxPool2d -> segkern.nn.MaxPool2d']
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    swaps = []
    for name, module in model.named_modules():
        old = type(module)
        new = COUNTERPARTS.get(old)
        if new is not None:
            new._adopt(module)
            swaps.append(Swap(name, old, new))
    return swaps
