"""Losses by name, and sums of them, as a recipe names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from segkern.losses.border import border_cross_entropy
from segkern.losses.cross_entropy import segmentation_loss
from segkern.losses.hard_pixels import focal_cross_entropy, ohem_cross_entropy
from segkern.losses.overlap import lovasz_softmax_loss, soft_dice_loss

# Each loss, which of the recipe's own numbers it takes, and its options.
_LOSSES: dict[str, tuple[Callable[..., Tensor], tuple[str, ...], tuple[str, ...]]] = {
    "cross_entropy": (segmentation_loss, ("weight", "reduction", "label_smoothing"), ()),
    "ohem": (ohem_cross_entropy, ("weight", "label_smoothing"), ("threshold", "min_kept")),
    "focal": (focal_cross_entropy, ("weight", "reduction"), ("gamma",)),
    "dice": (soft_dice_loss, (), ("smooth",)),
    "lovasz": (lovasz_softmax_loss, (), ()),
    "border": (border_cross_entropy, ("reduction",), ("w0", "sigma")),
}
LOSSES = tuple(_LOSSES)


def check_loss(loss: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError unless ``loss`` and ``options`` are what `pixel_loss` takes."""
    names = loss.split("+")
    unknown = [name for name in names if name not in _LOSSES]
    if unknown or len(set(names)) < len(names):
        raise ValueError(
            f"loss must be one of {', '.join(LOSSES)}, or several of them with + between, "
            f"got {loss!r}"
        )
    known = [option for name in names for option in _LOSSES[name][2]]
    wrong = sorted(set(options) - set(known))
    if wrong:
        raise ValueError(
            f"loss_options must be among {', '.join(known) or 'none'} for {loss!r}, "
            f"got {', '.join(wrong)}"
        )
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"loss_options: {name} must be a number, got {value!r}")


def pixel_loss(
    logits: Tensor,
    target: Tensor,
    loss: str = "cross_entropy",
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    reduction: str = "pixels",
    label_smoothing: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """The loss of that name.

    Args:
        logits, target: (N, C, H, W) and (N, H, W), see :func:`segmentation_loss`.
        loss: ``"cross_entropy"``, ``"ohem"``, ``"focal"``, ``"dice"``, ``"lovasz"`` or
            ``"border"``; or several with ``+`` between, as ``"cross_entropy+dice"``, which are
            added up.
        weight: class weights, of the first three.
        reduction: of cross entropy, focal and border loss; OHEM averages over what it keeps.
        label_smoothing: of cross entropy and OHEM.
        options: ``threshold`` and ``min_kept`` of OHEM, ``gamma`` of focal loss, ``smooth`` of
            dice, ``w0`` and ``sigma`` of border; their functions' defaults otherwise.

    Returns:
        a scalar, float32 or float64.

    Raises:
        ValueError: an unknown name or option, or what the losses raise.

    Example:
        >>> import torch
        >>> pixel_loss(torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64), "lovasz")
        tensor(0.5000)
    """
    options = dict(options or {})
    check_loss(loss, options)
    own = {"weight": weight, "reduction": reduction, "label_smoothing": label_smoothing}
    total = None
    for name in loss.split("+"):
        function, taken, known = _LOSSES[name]
        given = {key: own[key] for key in taken}
        given |= {key: options[key] for key in known if key in options}
        value = function(logits, target, ignore_index=ignore_index, **given)
        total = value if total is None else total + value
    return total
