"""U-Net's weight map, which makes a network learn the gaps between touching cells."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from segkern.losses.cross_entropy import reduce_pixels, segmentation_loss

# Weights below this share of w0 are left out; float32 would lose them beside w_c.
NEGLIGIBLE = 1e-9


def border_weights(
    instances: Tensor, *, w0: float = 10.0, sigma: float = 5.0, balance: bool = True
) -> Tensor:
    """Weight of every pixel's loss: w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2)).

    d1 and d2 are the Euclidean distances of a background pixel to the nearest pixel of the nearest
    and of the second nearest cell. Cells themselves have w_c alone, and so have images of fewer
    than two cells. :func:`border_cross_entropy` is the loss weighted by it.

    Args:
        instances: ``(H, W)`` or ``(N, H, W)`` integers: 0 is background, every other number a
            cell. Touching cells need a border of background, see :func:`separate_instances`.
        w0: Largest additional weight.
        sigma: Its range in pixels.
        balance: Whether w_c is n / (2 n_c), n_c being the pixels of an image that are background,
            or cells, out of n; the paper does not say how it balances. Otherwise w_c is 1.

    Returns:
        float32 of the shape of ``instances``. Terms below 1e-9 w0 are 0, so distances are looked
        for as far as that. Deterministic. Time grows with H W sigma and not with the cells.

    Raises:
        ValueError: If a shape, a dtype or a number does not fit.

    Paper: arXiv:1505.04597 equation 2.

    Example:
        >>> row = torch.tensor([[1, 0, 2]])
        >>> border_weights(row, balance=False)[0, 1].item()  # 1 + 10 exp(-(1 + 1)^2 / 50)
        10.231163024902344
    """
    _check("border_weights", instances)
    if not 0 <= w0 < math.inf:
        raise ValueError(f"border_weights: w0 must be at least 0, got {w0!r}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"border_weights: sigma must be above 0, got {sigma!r}")
    if instances.dim() == 3:
        maps = [border_weights(one, w0=w0, sigma=sigma, balance=balance) for one in instances]
        return torch.stack(maps) if maps else instances.float()
    reach = math.ceil(sigma * math.sqrt(-2 * math.log(NEGLIGIBLE)))
    near, far = _two_nearest(instances.long(), reach)
    term = w0 * torch.exp(-((near.sqrt() + far.sqrt()) ** 2) / (2 * sigma**2))
    background = instances == 0
    weights = torch.where(background & (term >= NEGLIGIBLE * w0), term, 0.0)
    if not balance:
        return (1 + weights).float()
    total = instances.numel()
    for part in (background, ~background):
        weights += part * (total / (2 * part.sum().clamp(min=1)))
    return weights.float()


def border_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = 255,
    reduction: str = "pixels",
    w0: float = 10.0,
    sigma: float = 5.0,
) -> Tensor:
    """Cross entropy of background and cells, each pixel weighted by :func:`border_weights`.

    Cells are what is connected of class 1, see :func:`connected_components`; labels have to keep
    touching cells apart. With other than two classes there is no one background between cells, and
    this is :func:`segmentation_loss` without weights.

    Args:
        logits, target, ignore_index, reduction: see :func:`segmentation_loss`; ``"weights"`` is
            ``"pixels"`` here, since classes have no weight.
        w0, sigma: see :func:`border_weights`.

    Returns:
        As :func:`segmentation_loss`. Deterministic.

    Paper: arXiv:1505.04597 equations 1 and 2.
    """
    losses = segmentation_loss(logits, target, ignore_index=ignore_index, reduction="none")
    if logits.shape[1] == 2:
        cells = [connected_components(one == 1) for one in target]
        maps = [border_weights(one, w0=w0, sigma=sigma) for one in cells]
        losses = losses * torch.stack(maps).to(losses.dtype) if maps else losses
    return reduce_pixels(losses, target, None, ignore_index, reduction)


def connected_components(mask: Tensor) -> Tensor:
    """Number the parts of a mask that are connected by sides.

    Args:
        mask: ``(H, W)`` bool.

    Returns:
        int64 of the same shape: 0 outside of the mask, elsewhere 1 and the raster index of the
        part's first pixel. Deterministic; the number of passes grows with the logarithm of the
        pixels.

    Raises:
        ValueError: If ``mask`` is not (H, W) or not bool.

    Example:
        >>> connected_components(torch.tensor([[True, False, True], [True, False, False]]))
        tensor([[1, 0, 3],
                [1, 0, 0]])
    """
    if mask.dim() != 2 or mask.dtype != torch.bool:
        raise ValueError(
            f"connected_components: mask must be (H, W) bool, got {mask.dtype} {tuple(mask.shape)}"
        )
    index = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
    across, down = mask[:, 1:] & mask[:, :-1], mask[1:] & mask[:-1]
    one = torch.cat([index[:, :-1][across], index[:-1][down]])
    other = torch.cat([index[:, 1:][across], index[1:][down]])
    parent = index.flatten()
    while one.numel():
        # The first pixels of two parts that touch: the later one joins the earlier.
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        parent = parent.scatter_reduce(0, high, low, "amin")
        while not torch.equal(parent, parent[parent]):
            parent = parent[parent]
        one, other = parent[one], parent[other]
        apart = one != other
        one, other = one[apart], other[apart]
    return torch.where(mask, parent.view(mask.shape) + 1, 0)


def separate_instances(instances: Tensor, width: int = 1) -> Tensor:
    """Turn pixels of a cell within ``width`` pixels of another cell, in any direction, to 0.

    Args:
        instances: ``(H, W)`` or ``(N, H, W)`` integers, 0 for background.
        width: Half the border at least; 1 leaves two pixels between cells that touched.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ValueError: If a shape, a dtype or ``width`` does not fit.

    Example:
        >>> separate_instances(torch.tensor([[1, 1, 2, 2]]))
        tensor([[1, 0, 0, 2]])
    """
    _check("separate_instances", instances)
    if width < 1:
        raise ValueError(f"separate_instances: width must be at least 1, got {width!r}")
    touches = torch.zeros_like(instances, dtype=torch.bool)
    for down in range(-width, width + 1):
        for right in range(-width, width + 1):
            other = _shifted(_shifted(instances, down, -2, 0), right, -1, 0)
            touches |= (other != 0) & (other != instances)
    return instances.masked_fill(touches, 0)


def _two_nearest(instances: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Squared distances, float64, to the two nearest cells not further than ``reach`` per axis.

    Of the cells that a column offers to a row's pixels only its two nearest count, since the way
    along the row is the same for all: so the search runs along columns and then along rows.
    """
    none = torch.full(instances.shape, math.inf, dtype=torch.float64, device=instances.device)
    found = (none.masked_fill(instances != 0, 0.0), instances, none, torch.zeros_like(instances))
    for axis in (-2, -1):
        start = found
        for shift in range(1, min(reach, instances.shape[axis] - 1) + 1):
            for signed in (shift, -shift):
                for distance, label in (start[:2], start[2:]):
                    moved = _shifted(distance, signed, axis, math.inf) + shift**2
                    found = _offer(found, moved, _shifted(label, signed, axis, 0))
    return found[0], found[2]


def _offer(
    found: tuple[Tensor, Tensor, Tensor, Tensor], distance: Tensor, label: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two nearest of different labels among those found and one more."""
    near, first, far, second = found
    nearer = distance < near
    same = label == first
    # A nearer pixel of another cell moves the nearest to second place.
    pushes = nearer & ~same
    replaces = ~nearer & ~same & (distance < far)
    far = torch.where(pushes, near, torch.where(replaces, distance, far))
    second = torch.where(pushes, first, torch.where(replaces, label, second))
    near = torch.where(nearer, distance, near)
    first = torch.where(nearer, label, first)
    return near, first, far, second


def _shifted(values: Tensor, shift: int, axis: int, fill: float) -> Tensor:
    """``values`` moved by ``shift`` along ``axis``, filled where nothing comes from."""
    length = values.shape[axis]
    kept = max(length - abs(shift), 0)
    start = 0 if shift > 0 else length - kept
    pad = [0, 0, 0, 0]
    side = 0 if axis == -1 else 2
    pad[side + (0 if shift > 0 else 1)] = length - kept
    return functional.pad(values.narrow(axis, start, kept), pad, value=fill)


def _check(name: str, instances: Tensor) -> None:
    if instances.dim() not in (2, 3):
        raise ValueError(
            f"{name}: instances must be (H, W) or (N, H, W), got {tuple(instances.shape)}"
        )
    if instances.is_floating_point() or instances.is_complex() or instances.dtype == torch.bool:
        raise ValueError(f"{name}: instances must hold integers, got {instances.dtype}")
