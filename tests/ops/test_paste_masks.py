"""paste_masks against torch's grid_sample in float64, and its promises."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from segkern import ops


def by_grid_sample(masks, boxes, height, width):
    """The values by interpolation with zeros around each mask."""
    y = torch.arange(height, dtype=torch.float64) + 0.5
    x = torch.arange(width, dtype=torch.float64) + 0.5
    x1, y1, x2, y2 = boxes.double()[:, :, None].unbind(1)
    down = (y - y1) / (y2 - y1) * 2 - 1
    across = (x - x1) / (x2 - x1) * 2 - 1
    shape = (len(boxes), height, width)
    grid = torch.stack([across[:, None].expand(shape), down[:, :, None].expand(shape)], 3)
    return F.grid_sample(masks.double()[:, None], grid, align_corners=False)[:, 0]


def case(count=9, height=37, width=41, side=(28, 28)):
    corner = torch.rand(count, 2) * torch.tensor([width, height]) - 8
    boxes = torch.cat([corner, corner + torch.rand(count, 2) * 40 + 0.5], 1)
    return torch.rand(count, *side), boxes, (height, width)


@pytest.mark.parametrize("side", [(28, 28), (3, 5), (1, 1)])
@pytest.mark.parametrize("limit", [1, 37 * 41 * 4 * 4, 2**28])
def test_values(limit, side, device):
    masks, boxes, size = case(side=side)
    wanted = by_grid_sample(masks, boxes, *size)
    given = (masks.to(device), boxes.to(device), size)
    values = ops.paste_masks(*given, threshold=None, memory_limit=limit)
    torch.testing.assert_close(values.cpu().double(), wanted, rtol=0, atol=2e-5)
    found = ops.paste_masks(*given, memory_limit=limit).cpu()
    assert found.dtype == torch.bool
    sure = (wanted - 0.5).abs() > 1e-4
    assert torch.equal(found[sure], (wanted >= 0.5)[sure])
    assert found.any()


def test_values_do_not_depend_on_the_limit():
    masks, boxes, size = case()
    whole = ops.paste_masks(masks, boxes, size, threshold=None)
    assert torch.equal(whole, ops.paste_masks(masks, boxes, size, threshold=None, memory_limit=1))


def test_peak_memory_keeps_to_the_limit(cuda):
    masks, boxes, _ = case(count=64)
    masks, boxes, size = masks.to(cuda), boxes.to(cuda), (512, 512)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    limit = 8 * 512 * 512 * 4
    out = ops.paste_masks(masks, boxes, size, memory_limit=limit)
    # Twice the result (its parts and their union), and one chunk of values and of comparisons.
    assert torch.cuda.max_memory_allocated() - before <= 2 * out.nbytes + 2 * limit + 2**20


def test_gradient_without_a_threshold():
    masks, boxes, size = case(count=2, side=(3, 4))
    masks = masks.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: ops.paste_masks(m, boxes, (9, 8), threshold=None, memory_limit=1), masks
    )
    assert not ops.paste_masks(masks, boxes, size).requires_grad


def test_hard_boxes(device):
    nan, inf = math.nan, math.inf
    rows = [[1, 1, 1, 5], [4, 4, 2, 2], [nan, 0, 3, 3], [0, 0, inf, 4], [90, 90, 99, 99]]
    boxes = torch.tensor(rows, dtype=torch.float32, device=device)
    masks = torch.ones(len(rows), 7, 7, device=device)
    assert not ops.paste_masks(masks, boxes, (6, 7)).any()
    assert ops.paste_masks(masks[:0], boxes[:0], (6, 7)).shape == (0, 6, 7)
    assert ops.paste_masks(masks[:2], boxes[:2], (0, 7)).shape == (2, 0, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    masks, boxes, size = case()
    masks = masks.to(dtype)
    assert ops.paste_masks(masks, boxes, size, threshold=None).dtype == dtype
    wanted = ops.paste_masks(masks.float(), boxes, size)
    assert (ops.paste_masks(masks[:, None], boxes, size) ^ wanted).float().mean() < 1e-3


def test_compiles_in_one_graph():
    masks, boxes, size = case()
    compiled = torch.compile(
        lambda m, b: ops.paste_masks(m, b, size), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(masks, boxes), ops.paste_masks(masks, boxes, size))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"masks": 3}, TypeError, "masks must be a Tensor"),
        ({"masks": torch.ones(2, 3)}, ValueError, "masks must have 3 axes"),
        ({"masks": torch.ones(2, 3, 3).bool()}, TypeError, "masks must be floating"),
        ({"boxes": torch.ones(3, 4)}, ValueError, "boxes must be"),
        ({"image_size": 4}, ValueError, "image_size must be two sizes"),
        ({"image_size": (4, -1)}, ValueError, "image_size must be two sizes"),
        ({"memory_limit": 0}, ValueError, "memory_limit must be"),
    ],
)
def test_wrong_arguments(change, error, message):
    arguments = {"masks": torch.ones(2, 3, 3), "boxes": torch.ones(2, 4), "image_size": (4, 5)}
    with pytest.raises(error, match=f"paste_masks: {message}"):
        ops.paste_masks(**{**arguments, **change})
