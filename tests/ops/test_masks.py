"""Packed masks and mask_iou against plain torch, and their promises."""

from __future__ import annotations

import pytest
import torch

from segkern import ops
from tests.opcases import DTYPES

# Widths around words of 32 pixels, one pixel, rows of many words.
SIZES = [(3, 5, 31), (2, 4, 32), (2, 3, 33), (1, 1, 1), (4, 7, 1100)]


def draw(shape, device, seed=0):
    """Logits with an empty mask, a full one, NaNs and values on the threshold."""
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    logits[0] = -1.0
    logits[-1, 0] = 0.0
    logits[-1, -1, -1] = float("nan")
    return logits.to(device)


def boxes_of(masks):
    boxes = []
    for mask in masks.cpu():
        y, x = mask.nonzero(as_tuple=True)
        found = len(y) > 0
        box = [x.min(), y.min(), x.max() + 1, y.max() + 1] if found else [0] * 4
        boxes.append([int(v) for v in box])
    return boxes


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool, torch.uint8])
@pytest.mark.parametrize("shape", SIZES)
def test_pack(shape, dtype, device):
    logits = draw(shape, device)
    if dtype in (torch.bool, torch.uint8):
        masks = ((logits > 0.5) * 7).to(dtype)
        inside, mean = masks > 0, 1.0
    else:
        masks = logits.to(dtype)
        inside, mean = masks > 0.5, None
    packed = ops.pack_masks(masks, threshold=0.5)
    assert packed.bits.shape == (shape[0], shape[1], (shape[2] + 31) // 32)
    assert torch.equal(ops.unpack_masks(packed), inside)
    areas = inside.flatten(1).sum(1)
    assert torch.equal(packed.areas, areas.int())
    assert packed.boxes.tolist() == boxes_of(inside)
    if mean is None:
        p = masks.double().sigmoid().nan_to_num()
        wanted = (p * inside).flatten(1).sum(1) / areas.clamp(min=1)
    else:
        wanted = (areas > 0).double()
    torch.testing.assert_close(packed.maskness.double(), wanted, rtol=2e-6, atol=0)
    again = ops.packed_from_bits(packed.bits, packed.width)
    for got, want in zip(again[:4], packed[:4], strict=True):
        assert got == want if isinstance(want, int) else torch.equal(got, want)


def test_probabilities_over_the_whole_range(device):
    logits = torch.linspace(-120, 120, 4096, device=device).view(-1, 1, 1)
    packed = ops.pack_masks(logits, threshold=-1000.0)
    assert (packed.areas == 1).all()
    wanted = logits.flatten().double().sigmoid()
    torch.testing.assert_close(packed.maskness.double(), wanted, rtol=1e-6, atol=1e-30)


def test_layouts(device):
    masks = draw((4, 6, 70), device) > 0
    wanted = ops.pack_masks(masks)
    for given in (masks.mT.contiguous().mT, torch.stack([masks, ~masks], 2)[:, :, 0]):
        assert torch.equal(ops.pack_masks(given).bits, wanted.bits)
    rows = torch.tensor([2, 9, 0, -1], device=device)
    bits, areas, boxes, none = torch.ops.segkern.pack_masks.default(masks, rows, 0.0, False)
    assert torch.equal(bits[[0, 2]], wanted.bits[[2, 0]])
    assert not bits[[1, 3]].any()
    assert areas.tolist()[1::2] == [0, 0]
    assert not boxes[1::2].any()
    assert none.numel() == 0


def test_stray_bits_are_cleared(device):
    bits = torch.full((2, 3, 2), -1, dtype=torch.int32, device=device)
    packed = ops.packed_from_bits(bits, 33)
    assert packed.areas.tolist() == [99, 99]
    assert packed.boxes.tolist() == [[0, 0, 33, 3]] * 2
    assert (bits == -1).all()


@pytest.mark.parametrize("width", [5, 70, 1100])
def test_iou(width, device):
    a, b = (draw((n, 9, width), device, seed=n) > 0.8 for n in (5, 9))
    a[1], b[2] = False, False
    a[2, :, width // 3 :] = False  # boxes narrower than rows
    b[3, :, : width // 4] = False
    a[3, 4:] = False
    b[4, :4] = False
    crowd = torch.arange(9, device=device) % 2 == 0
    one, other = a.flatten(1).double(), b.flatten(1).double()
    shared = one @ other.T
    area, areas = one.sum(1)[:, None].expand(5, 9), other.sum(1)
    for flags, union in (
        (None, area + areas - shared),
        (crowd, torch.where(crowd, area, area + areas - shared)),
    ):
        wanted = torch.where(shared > 0, shared / union, 0.0).float()
        assert torch.equal(ops.mask_iou(a, b, flags), wanted)
        assert torch.equal(ops.mask_iou(ops.pack_masks(a), b, flags), wanted)
    assert (ops.mask_iou(a, a).diagonal() == (a.flatten(1).any(1)).float()).all()


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0, 0)])
def test_without_elements(shape, device):
    masks = torch.zeros(shape, dtype=torch.bool, device=device)
    packed = ops.pack_masks(masks)
    assert packed.areas.tolist() == [0] * shape[0]
    assert not packed.boxes.any()
    assert ops.unpack_masks(packed).shape == shape
    assert not ops.mask_iou(masks, masks).any()


def test_opcheck(device):
    raw = torch.ops.segkern
    masks = draw((3, 4, 40), device)
    rows = torch.tensor([1, 0], device=device)
    for arguments in ((masks, None, 0.0, True), (masks > 0, rows, 0.0, False)):
        torch.library.opcheck(raw.pack_masks.default, arguments)
    p = ops.pack_masks(masks)
    torch.library.opcheck(raw.measure_masks.default, (p.bits,))
    torch.library.opcheck(raw.unpack_masks.default, (p.bits, p.width))
    crowd = torch.tensor([True, False, True], device=device)
    part = (p.bits, p.areas, p.boxes)
    torch.library.opcheck(raw.mask_iou.default, (*part, *part, crowd))


def test_wrong_arguments():
    masks = torch.zeros(2, 3, 4, dtype=torch.bool)
    with pytest.raises(TypeError, match="pack_masks: masks must be bool, uint8 or floating"):
        ops.pack_masks(masks.int())
    with pytest.raises(ValueError, match=r"pack_masks: masks must be \(N, H, W\)"):
        ops.pack_masks(masks[0])
    with pytest.raises(ValueError, match="pack_masks: threshold must be a number, got nan"):
        ops.pack_masks(masks, threshold=float("nan"))
    with pytest.raises(ValueError, match=r"mask_iou: b must have masks of size \(3, 4\)"):
        ops.mask_iou(masks, masks[:, :, :3])
    with pytest.raises(ValueError, match=r"mask_iou: crowd must be \(2,\)"):
        ops.mask_iou(masks, masks, torch.tensor([True]))
    with pytest.raises(TypeError, match="mask_iou: crowd must be bool"):
        ops.mask_iou(masks, masks, torch.tensor([1, 0]))
    packed = ops.pack_masks(masks)
    with pytest.raises(ValueError, match="unpack_masks: packed.width must be one of rows of 1"):
        ops.unpack_masks(packed._replace(width=33))
    with pytest.raises(ValueError, match=r"unpack_masks: packed.areas must be \(2,\)"):
        ops.unpack_masks(packed._replace(areas=packed.areas[:1]))
    with pytest.raises(TypeError, match="packed_from_bits: bits must be an int32 Tensor"):
        ops.packed_from_bits(packed.bits.long(), 4)
    raw, part = torch.ops.segkern, (packed.bits, packed.areas, packed.boxes)
    with pytest.raises(RuntimeError, match=r"mask_iou: boxes must be Int \(2, 4\)"):
        raw.mask_iou(*part[:2], packed.boxes[:1], *part, None)
    with pytest.raises(RuntimeError, match="fewer than 2.31 pixels"):
        ops.pack_masks(torch.zeros(1, 1, 1, dtype=torch.bool).expand(1, 2**16, 2**16))


def test_boxes_that_lie_cannot_read_outside():
    packed = ops.pack_masks(torch.ones(2, 3, 40, dtype=torch.bool))
    wild = torch.tensor([[-(2**31), -5, 2**31 - 1, 900]] * 2, dtype=torch.int32)
    part = (packed.bits, packed.areas, wild)
    assert (torch.ops.segkern.mask_iou.default(*part, *part, None) == 1).all()


def test_memory_of_large_masks():
    masks = torch.zeros(1, 3000, 4000, dtype=torch.bool).expand(2, -1, -1)
    packed = ops.pack_masks(masks)
    assert sum(t.nbytes for t in packed if isinstance(t, torch.Tensor)) < 2 * 1.51e6
