"""The kernels of packed masks and of NMS on the CPU, against the CPU kernels and plain counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern import ops

from .arrays import to_array
from .harness import Call, check_orders, load, poisoned, run_sanitized

# More rows than a part, widths around a word, one pixel, several words for each warp.
SIZES = [(3, 9, 70, 4), (2, 5, 32, 0), (1, 1, 1, 0), (2, 3, 33, 1), (1, 40, 300, 0)]
NO_ROWS = np.zeros(0, np.int64)


def draw(count, height, width, dtype):
    logits = torch.randn(count, height, width, generator=torch.Generator().manual_seed(width))
    logits[0, : height // 2] = -1.0
    logits[-1, -1, -1] = float("nan")
    if dtype == torch.uint8:
        return (logits > 0.3).to(dtype) * 5
    return logits.to(dtype)


def results(module, count, height, width):
    words = (width + 31) // 32
    return (
        poisoned(module, (count, height, words), np.int32),
        poisoned(module, count, np.int32),
        poisoned(module, (count, 4), np.int32),
        poisoned(module, count, np.float32),
    )


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
@pytest.mark.parametrize(("count", "height", "width", "part_rows"), SIZES)
def test_pack(count, height, width, part_rows, dtype):
    module = load("masks")
    masks = draw(count, height, width, dtype)
    name = str(dtype).removeprefix("torch.")
    wanted = ops.pack_masks(masks, threshold=0.2)

    def run():
        out = results(module, count, height, width)
        module.pack(name, to_array(masks), NO_ROWS, 0.2, part_rows, *out)
        areas, boxes = (poisoned(module, a.shape, np.int32) for a in out[1:3])
        module.measure(out[0], part_rows, areas, boxes)
        unpacked = poisoned(module, masks.shape, np.bool_)
        module.unpack(out[0], unpacked)
        return [*out, areas, boxes, unpacked]

    bits, areas, boxes, maskness, again, boxes_again, unpacked = check_orders(module, run)
    least = {torch.uint8: 0.0, torch.float64: 0.2}.get(dtype, float(np.float32(0.2)))
    inside = masks.double() > least
    assert np.array_equal(unpacked, inside.numpy())
    assert np.array_equal(bits, wanted.bits.numpy())
    for got in (areas, again):
        assert np.array_equal(got, inside.flatten(1).sum(1).numpy())
    for got in (boxes, boxes_again):
        assert np.array_equal(got, wanted.boxes.numpy())
    np.testing.assert_allclose(maskness, wanted.maskness.numpy(), rtol=2e-6)


def test_rows_that_there_are_not():
    module = load("masks")
    masks = draw(3, 4, 40, torch.float32)
    out = results(module, 4, 4, 40)
    module.pack("float32", masks.numpy(), np.array([2, -1, 3, 0]), 0.0, 0, *out)
    wanted = ops.pack_masks(masks)
    assert np.array_equal(out[0][[0, 3]], wanted.bits.numpy()[[2, 0]])
    assert not any(part[[1, 2]].any() for part in out)


def packed_set(masks):
    packed = ops.pack_masks(masks)
    return [part.numpy() for part in (packed.bits, packed.areas, packed.boxes)]


def shapes(count, height, width, seed=0):
    """Rectangles of any place and size, one of them empty."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks[1:]:
        y, x = (torch.randint(0, n, (2,), generator=generator).sort()[0] for n in (height, width))
        mask[y[0] : y[1] + 1, x[0] : x[1] + 1] = True
    return masks


@pytest.mark.parametrize(
    ("m", "n", "height", "width"), [(11, 18, 7, 70), (1, 1, 1, 1), (9, 3, 40, 33)]
)
def test_iou(m, n, height, width):
    module = load("masks")
    a, b = shapes(m, height, width), shapes(n, height, width, seed=1)
    crowd = torch.arange(n) % 2 == 0

    def run():
        out = poisoned(module, (m, n), np.float32)
        module.iou(packed_set(a), packed_set(b), crowd.numpy(), out)
        return out

    (got,) = check_orders(module, run)
    one, other = a.flatten(1).double(), b.flatten(1).double()
    shared = one @ other.T
    union = torch.where(crowd, one.sum(1)[:, None], one.sum(1)[:, None] + other.sum(1) - shared)
    wanted = torch.where(shared > 0, shared / union, 0.0)
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-6)


def nms_case(count):
    masks = shapes(count, 9, 40, seed=count)
    masks[1:3] = masks[3:4]  # duplicates
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, 3, (count,), generator=generator).sort()[0]
    scores = torch.rand(count, generator=generator)
    order = torch.argsort(labels.double() - scores / 2, stable=True)
    scores = scores[order]
    scores[-1] = -torch.inf
    rows = torch.randperm(count, generator=generator)
    rows[0] = count  # no such mask
    return masks, rows, labels[order], scores


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("count", [5, 8, 43])
def test_matrix_nms(count, linear):
    module = load("masks")
    masks, rows, labels, scores = nms_case(count)
    parts = packed_set(masks)

    def run():
        out = poisoned(module, count, np.float32)
        module.matrix_nms(parts, rows.numpy(), labels.numpy(), scores.numpy(), linear, 2.0, out)
        return out

    (got,) = check_orders(module, run)
    wanted = torch.ops.segkern._matrix_nms.default(
        *(torch.from_numpy(part) for part in parts), rows, labels, scores, linear, 2.0
    )
    assert got[-1] == -np.inf
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-6, atol=1e-7)


def boxes_case(count, dtype):
    generator = torch.Generator().manual_seed(count)
    corners = torch.randint(0, 40, (2, count, 2), generator=generator).sort(0)[0]
    boxes = torch.cat([corners[0], corners[1] + 1], 1).to(dtype)
    labels = torch.randint(0, 2, (count,), generator=generator)
    live = torch.rand(count, generator=generator) > 0.1
    return boxes, labels, live


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize(
    ("count", "dtype"), [(1, torch.float32), (70, torch.float64), (259, torch.float32)]
)
def test_nms(count, dtype, classes):
    module = load("masks")
    boxes, labels, live = boxes_case(count, dtype)
    given = labels if classes else None
    wanted = torch.ops.segkern._nms.default(boxes, given, live, 0.1)

    def run():
        keep = poisoned(module, count, np.bool_)
        names = labels.numpy() if classes else NO_ROWS
        module.nms(boxes.numpy(), names, live.numpy(), 0.1, keep)
        return keep

    (got,) = check_orders(module, run)
    assert np.array_equal(got, wanted.numpy())


def test_sanitized():
    calls = []
    boxes = [part.numpy() for part in boxes_case(67, torch.float32)]
    calls.append(Call("nms", (*boxes, 0.1, np.zeros(67, np.bool_))))
    for count, height, width, part_rows in SIZES:
        for dtype in (torch.uint8, torch.float16):
            masks = draw(count, height, width, dtype)
            words = (width + 31) // 32
            out = [
                np.zeros(shape, kind)
                for shape, kind in (
                    ((count, height, words), np.int32),
                    (count, np.int32),
                    ((count, 4), np.int32),
                    (count, np.float32),
                )
            ]
            name = str(dtype).removeprefix("torch.")
            calls.append(Call("pack", (name, to_array(masks), NO_ROWS, 0.0, part_rows, *out)))
            calls.append(Call("measure", (out[0], part_rows, *out[1:3])))
            calls.append(Call("unpack", (out[0], np.zeros(masks.shape, np.bool_))))
    masks, rows, labels, scores = nms_case(19)
    parts = packed_set(masks)
    arguments = (rows.numpy(), labels.numpy(), scores.numpy(), True, 2.0, np.zeros(19, np.float32))
    calls.append(Call("matrix_nms", (parts, *arguments)))
    iou = np.zeros((19, 19), np.float32)
    calls.append(Call("iou", (parts, parts, np.zeros(0, np.bool_), iou)))
    assert not any(isinstance(result, RuntimeError) for result in run_sanitized("masks", calls))
