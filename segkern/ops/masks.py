"""Masks of instances packed to bits: an eighth of the memory of bool, and exact overlaps."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from segkern import _load

WORD = 32


class PackedMasks(NamedTuple):
    """N masks of H x W pixels at one bit a pixel, with what packing has counted.

    ``bits`` int32 (N, H, ceil(W / 32)), pixel x of a row in bit x % 32 of word x // 32, bits beyond
    the width 0; ``width`` W; ``areas`` int32 (N,) in pixels; ``boxes`` int32 (N, 4), x1, y1, x2, y2
    with the far sides exclusive, all 0 for a mask without pixels; ``maskness`` float32 (N,), the
    mean probability of a mask's pixels where logits were packed, 1 where bool was, and 0 for a mask
    without pixels.
    """

    bits: Tensor
    width: int
    areas: Tensor
    boxes: Tensor
    maskness: Tensor


def pack_masks(masks: Tensor, *, threshold: float = 0.0) -> PackedMasks:
    """Masks at one bit a pixel, with areas, boxes and mean probabilities from the same read.

    Args:
        masks: (N, H, W) with fewer than 2^31 pixels a mask. bool or uint8: a pixel is in the mask
            where it is not 0. float64, float32, float16 or bfloat16: logits, in the mask where they
            exceed the threshold; a NaN is not.
        threshold: of logits, so 0.0 is probability 0.5; not used for bool and uint8.

    Returns:
        :class:`PackedMasks`.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype or rank.
        RuntimeError: masks of 2^31 pixels; no kernels for the device.

    Not differentiable. Deterministic on every device. `maskness` is the mask quality that Wang et
    al., SOLOv2, arXiv:2003.10152, multiply the scores by.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> packed = ops.pack_masks(torch.tensor([[[-1.0, 0.0, 2.0], [-3.0, 1.0, 1.0]]]))
        >>> packed.areas.tolist(), packed.boxes.tolist(), packed.bits.flatten().tolist()
        ([3], [[1, 0, 3, 2]], [4, 6])
    """
    op = "pack_masks"
    check_masks(op, masks, threshold)
    bits, areas, boxes, maskness = torch.ops.segkern.pack_masks.default(
        masks.detach(), None, float(threshold), True
    )
    return PackedMasks(bits, masks.shape[2], areas, boxes, maskness)


def packed_from_bits(bits: Tensor, width: int) -> PackedMasks:
    """Packed masks from bits that were stored, with areas and boxes counted anew.

    Args:
        bits: int32 (N, H, ceil(width / 32)) as in :class:`PackedMasks`. Bits beyond the width are
            cleared, in a copy.
        width: pixels of a row.

    Returns:
        :class:`PackedMasks`, as if the unpacked masks had been packed.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype or rank; a width that does not
            go with the words of a row.
        RuntimeError: no kernels for the device.

    Not differentiable. Deterministic on every device.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> packed = ops.packed_from_bits(torch.tensor([[[4], [6]]], dtype=torch.int32), 3)
        >>> packed.areas.tolist(), packed.boxes.tolist()
        ([3], [[1, 0, 3, 2]])
    """
    op = "packed_from_bits"
    _check_bits(op, bits, width)
    if width % WORD:
        last = torch.full((1,), (1 << width % WORD) - 1, dtype=torch.int32, device=bits.device)
        bits = torch.cat([bits[..., :-1], bits[..., -1:] & last], dim=2)
    areas, boxes = torch.ops.segkern.measure_masks.default(bits)
    return PackedMasks(bits, width, areas, boxes, (areas > 0).float())


def unpack_masks(packed: PackedMasks) -> Tensor:
    """The masks as bool.

    Args:
        packed: what :func:`pack_masks` returns.

    Returns:
        Tensor, bool (N, H, W).

    Raises:
        TypeError, ValueError: no packed masks, or of fields that do not go together.
        RuntimeError: no kernels for the device.

    Deterministic on every device.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> masks = torch.eye(3).bool()[None]
        >>> torch.equal(ops.unpack_masks(ops.pack_masks(masks)), masks)
        True
    """
    op = "unpack_masks"
    check_packed(op, "packed", packed)
    return torch.ops.segkern.unpack_masks.default(packed.bits, packed.width)


def mask_iou(
    a: Tensor | PackedMasks, b: Tensor | PackedMasks, crowd: Tensor | None = None
) -> Tensor:
    """Intersection over union of every pair of masks, from exact counts.

    Args:
        a: M masks, as :func:`pack_masks` takes or returns them.
        b: N masks of the same size on the same device.
        crowd: bool (N,), masks of `b` that are crowds: a pair's union is then the area of the mask
            of `a` alone, as COCO counts.

    Returns:
        Tensor, float32 (M, N); 0 where nothing is shared, also of two masks without pixels.

    Raises:
        TypeError, ValueError: an argument of the wrong form, dtype or rank; masks of two sizes.
        RuntimeError: no kernels for the device.

    Not differentiable. Deterministic on every device: counts are whole numbers, and the quotient is
    rounded once.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> a = torch.tensor([[[1, 1, 1, 0]]]).bool()
        >>> b = torch.tensor([[[0, 1, 1, 1]], [[0, 0, 0, 0]]]).bool()
        >>> ops.mask_iou(a, b)
        tensor([[0.5000, 0.0000]])
        >>> ops.mask_iou(a, b, crowd=torch.tensor([True, False]))
        tensor([[0.6667, 0.0000]])
    """
    op = "mask_iou"
    one, other = as_packed(op, "a", a), as_packed(op, "b", b)
    if one.width != other.width or one.bits.shape[1] != other.bits.shape[1]:
        sizes = [(p.bits.shape[1], p.width) for p in (one, other)]
        raise ValueError(f"{op}: b must have masks of size {sizes[0]} as a has, got {sizes[1]}")
    if crowd is not None:
        check_vector(op, "crowd", crowd, other.bits)
        if crowd.dtype != torch.bool:
            raise TypeError(f"{op}: crowd must be bool, got {crowd.dtype}")
    return torch.ops.segkern.mask_iou.default(
        one.bits, one.areas, one.boxes, other.bits, other.areas, other.boxes, crowd
    )


def as_packed(op: str, name: str, masks: Tensor | PackedMasks) -> PackedMasks:
    """Masks in either form, packed."""
    if isinstance(masks, PackedMasks):
        check_packed(op, name, masks)
        return masks
    check_masks(op, masks, 0.0, name)
    bits, areas, boxes, maskness = torch.ops.segkern.pack_masks.default(
        masks.detach(), None, 0.0, False
    )
    return PackedMasks(bits, masks.shape[2], areas, boxes, maskness)


def check_masks(op: str, masks: Tensor, threshold: float, name: str = "masks") -> None:
    if not isinstance(masks, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor or PackedMasks, got {type(masks).__name__}")
    if not (masks.is_floating_point() or masks.dtype in (torch.bool, torch.uint8)):
        raise TypeError(f"{op}: {name} must be bool, uint8 or floating, got {masks.dtype}")
    if masks.dim() != 3:
        raise ValueError(f"{op}: {name} must be (N, H, W), got {tuple(masks.shape)}")
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)):
        raise TypeError(f"{op}: threshold must be a number, got {threshold!r}")
    if math.isnan(threshold):
        raise ValueError(f"{op}: threshold must be a number, got {threshold}")
    if masks.is_cuda:
        _load.require_cuda(op)


def check_packed(op: str, name: str, packed: PackedMasks) -> None:
    if not isinstance(packed, PackedMasks):
        raise TypeError(f"{op}: {name} must be PackedMasks, got {type(packed).__name__}")
    _check_bits(op, packed.bits, packed.width, f"{name}.")
    count = packed.bits.shape[0]
    for field, shape in (("areas", (count,)), ("boxes", (count, 4))):
        value = getattr(packed, field)
        if not isinstance(value, Tensor) or value.dtype != torch.int32:
            raise TypeError(f"{op}: {name}.{field} must be an int32 Tensor, got {value!r}")
        if tuple(value.shape) != shape:
            raise ValueError(f"{op}: {name}.{field} must be {shape}, got {tuple(value.shape)}")


def _check_bits(op: str, bits: Tensor, width: int, owner: str = "") -> None:
    if not isinstance(bits, Tensor) or bits.dtype != torch.int32:
        got = bits.dtype if isinstance(bits, Tensor) else type(bits).__name__
        raise TypeError(f"{op}: {owner}bits must be an int32 Tensor, got {got}")
    if bits.dim() != 3:
        raise ValueError(f"{op}: {owner}bits must be (N, H, words), got {tuple(bits.shape)}")
    if isinstance(width, bool) or not isinstance(width, (int, torch.SymInt)):
        raise TypeError(f"{op}: {owner}width must be an integer, got {width!r}")
    if width < 0 or (width + WORD - 1) // WORD != bits.shape[2]:
        raise ValueError(
            f"{op}: {owner}width must be one of rows of {bits.shape[2]} words, got {width}"
        )
    if bits.is_cuda:
        _load.require_cuda(op)


def check_vector(op: str, name: str, value: Tensor, beside: Tensor) -> None:
    """A tensor (N,) on the device of N masks or boxes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a Tensor, got {type(value).__name__}")
    if tuple(value.shape) != (beside.shape[0],):
        raise ValueError(f"{op}: {name} must be ({beside.shape[0]},), got {tuple(value.shape)}")
    if value.device != beside.device:
        raise ValueError(f"{op}: {name} must be on {beside.device}, got {value.device}")


@torch.library.register_fake("segkern::pack_masks")
def _pack_fake(masks, rows, threshold, maskness):
    planes, height, width = masks.shape
    count = planes if rows is None else rows.shape[0]
    ints = {"dtype": torch.int32}
    return (
        masks.new_empty((count, height, (width + WORD - 1) // WORD), **ints),
        masks.new_empty((count,), **ints),
        masks.new_empty((count, 4), **ints),
        masks.new_empty((count if maskness else 0,), dtype=torch.float32),
    )


@torch.library.register_fake("segkern::measure_masks")
def _measure_fake(bits):
    return bits.new_empty((bits.shape[0],)), bits.new_empty((bits.shape[0], 4))


@torch.library.register_fake("segkern::unpack_masks")
def _unpack_fake(bits, width):
    return bits.new_empty((bits.shape[0], bits.shape[1], width), dtype=torch.bool)


@torch.library.register_fake("segkern::mask_iou")
def _iou_fake(bits_a, areas_a, boxes_a, bits_b, areas_b, boxes_b, crowd):
    return bits_a.new_empty((bits_a.shape[0], bits_b.shape[0]), dtype=torch.float32)
