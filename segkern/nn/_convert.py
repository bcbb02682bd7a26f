"""Swapping torch's layers for ours inside a model that somebody else wrote."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from segkern.nn._fold import check_foldable, fold_norms
from segkern.nn.aspp import ASPP
from segkern.nn.atrous import AtrousConv2d
from segkern.nn.pooling import MaxPool2d, MaxUnpool2d
from segkern.nn.upsample import BilinearUpsample

# torch's class -> ours. Each of ours is a subclass of the torch class and has a class method
# `_adopt(module)` that turns an instance of the torch class into one of its own.
COUNTERPARTS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.MaxPool2d: MaxPool2d,
    torch.nn.MaxUnpool2d: MaxUnpool2d,
    torch.nn.Upsample: BilinearUpsample,
    torch.nn.UpsamplingBilinear2d: BilinearUpsample,
}

CONVOLUTIONS = ("atrous", "all", "none")


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
        stem = "torch.nn" if self.old.__module__.startswith("torch.nn") else self.old.__module__
        old = f"{stem}.{self.old.__name__}"
        return f"{self.name or '(the model itself)'}: {old} -> segkern.nn.{self.new.__name__}"


def convert(
    model: torch.nn.Module, *, convolutions: str = "atrous", fold: bool = False
) -> list[Swap]:
    """Swap every layer of ``model`` that has a counterpart in :mod:`segkern.nn`, in place.

    A layer stays the object it was and changes its class, so that whatever else holds it still
    does: hooks and their handles, the training flag, parameters in an optimiser, parents that
    share it, an attribute or a list outside the module tree, and the model itself when it is such
    a layer. Pooling layers keep the bits of their outputs, convolutions, ASPP blocks and bilinear
    upsampling keep them to rounding, and ``state_dict`` keeps its keys.

    An ASPP block is a module with ``convs`` and ``project`` as torchvision's has them: 1x1 and
    dilated 3x3 branches of convolution, batch norm and ReLU, optionally image pooling last, and a
    1x1 projection with batch norm, ReLU and dropout.

    Only layers whose class is exactly torch's are taken: a subclass may compute something else.
    Calls of ``torch.nn.functional`` inside a ``forward`` are not layers and stay. A pooling layer
    with ``return_indices=True`` goes on returning torch's int64 indices
    (``index_format="flat"``), for the code that consumes them; set its ``index_format`` to
    ``"offset"`` afterwards where the consumer is a :class:`MaxUnpool2d` of this package.

    Args:
        model: Any module, on any device, in training or evaluation mode.
        convolutions: ``"atrous"`` swaps convolutions with a rate above 1 or with one channel a
            group, and ASPP blocks; ``"all"`` swaps every ``torch.nn.Conv2d``, which also speeds up
            1x1 convolutions on a CPU; ``"none"`` leaves them.
        fold: Fold each batch norm that directly follows a convolution, and nothing else does, into
            its weight and bias, for inference. The norm becomes a ``torch.nn.Identity`` and leaves
            the ``state_dict``; the convolution gets a bias. Norms inside ASPP blocks stay: they
            are folded on the fly.

    Returns:
        What was swapped, in the order of ``model.named_modules()``; empty if nothing was, as on
        a second call.

    Raises:
        TypeError: If ``model`` is not a :class:`torch.nn.Module`.
        ValueError: If ``convolutions`` is unknown; if ``fold`` is asked of a model in training
            mode, of one that ``torch.fx`` cannot trace, or with statistics that are not finite.
            The model is then as it was.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.MaxPool2d(2))
        >>> [str(swap) for swap in convert(model)]
        ['1: torch.nn.MaxPool2d -> segkern.nn.MaxPool2d']
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"convert: model must be a torch.nn.Module, got {type(model).__name__}")
    if convolutions not in CONVOLUTIONS:
        raise ValueError(
            f"convert: convolutions must be one of {', '.join(map(repr, CONVOLUTIONS))}, "
            f"got {convolutions!r}"
        )
    if fold:
        check_foldable(model)
    swaps = []
    for name, module in list(model.named_modules()):
        old = type(module)
        new = _counterpart(module, convolutions)
        if new is not None:
            new._adopt(module)
            swaps.append(Swap(name, old, new))
    if fold:
        fold_norms(model)
    return swaps


def _counterpart(module: torch.nn.Module, convolutions: str) -> type[torch.nn.Module] | None:
    kind = type(module)
    if convolutions != "none":
        if kind is torch.nn.Conv2d:
            depthwise = 1 < module.groups == module.in_channels
            wanted = convolutions == "all" or depthwise or max(module.dilation) > 1
            return AtrousConv2d if wanted else None
        if kind is not ASPP and ASPP._recognises(module):
            return ASPP
    if kind is torch.nn.Upsample and module.mode != "bilinear":
        return None
    return COUNTERPARTS.get(kind)
