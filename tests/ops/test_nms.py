"""nms and batched_nms against the definition in float64, torchvision, and their promises."""

from __future__ import annotations

import math

import pytest
import torch

from segkern import ops


def draw(count, seed=0, size=64):
    """Boxes on whole coordinates, exact in float16; scores with ties."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, size, (2, count, 2), generator=generator).sort(0)[0]
    boxes = torch.cat([corners[0], corners[1] + 1], 1).double()
    scores = torch.randint(0, 50, (count,), generator=generator).double() / 64
    labels = torch.randint(-1, 3, (count,), generator=generator)
    return boxes, scores, labels


def oracle(boxes, scores, labels, threshold):
    order = sorted(range(len(boxes)), key=lambda k: -scores[k].item())
    kept = []
    for k in order:
        x1, y1, x2, y2 = boxes[k].tolist()
        for other in kept:
            a1, b1, a2, b2 = boxes[other].tolist()
            shared = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
            union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - shared
            if labels[k] == labels[other] and shared / union > threshold:
                break
        else:
            kept.append(k)
    return kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("count", "threshold"), [(1, 0.5), (33, 0.3), (200, 0.05), (150, 0.7)])
def test_against_the_definition(count, threshold, dtype, device):
    boxes, scores, labels = draw(count, seed=count)
    given = [t.to(device, dtype) for t in (boxes, scores)]
    for classes, run in (
        (torch.zeros(count), lambda: ops.nms(*given, threshold)),
        (labels, lambda: ops.batched_nms(*given, labels.to(device), threshold)),
    ):
        wanted = oracle(boxes, scores, classes, threshold)
        indices, number = run()
        assert number == len(wanted)
        assert indices.tolist() == wanted + [-1] * (count - len(wanted))


def test_as_torchvision(device):
    torchvision = pytest.importorskip("torchvision")
    boxes = torch.rand(400, 4).cumsum(1) * 50
    scores = torch.rand(400)
    labels = torch.randint(0, 4, (400,))
    for threshold in (0.2, 0.6):
        indices, count = ops.nms(boxes.to(device), scores.to(device), threshold)
        wanted = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(indices[:count].cpu(), wanted)
        indices, count = ops.batched_nms(
            boxes.to(device), scores.to(device), labels.to(device), threshold
        )
        wanted = torchvision.ops.batched_nms(boxes, scores, labels, threshold)
        assert torch.equal(indices[:count].cpu(), wanted)


def test_classes_in_float16(device):
    """Offsets of thousands of pixels a class would merge these boxes' corners."""
    boxes = torch.tensor([[0, 0, 9, 9], [9.0, 0, 18, 9]]).half().repeat(80, 1).to(device)
    labels = torch.arange(80, device=device).repeat_interleave(2)
    scores = torch.linspace(1, 0.1, 160, device=device)
    _, count = ops.batched_nms(boxes, scores, labels, 0.0)
    assert count == 160


def test_strict_threshold(device):
    boxes = torch.tensor([[0.0, 0, 2, 1], [0, 0, 1, 1]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert ops.nms(boxes, scores, 0.5)[1] == 2
    assert ops.nms(boxes, scores, 0.49)[1] == 1


def test_what_is_not_finite(device):
    nan, inf = math.nan, math.inf
    boxes = torch.tensor([[0.0, 0, 4, 4]] * 5 + [[nan, 0, 4, 4], [0, 0, inf, 4]], device=device)
    scores = torch.tensor([nan, inf, -inf, 0.5, 0.4, 0.3, 0.2], device=device)
    indices, count = ops.nms(boxes, scores, 0.5)
    assert indices[:count].tolist() == [3, 5, 6]


def test_sizes(device):
    boxes, scores, labels = (t.to(device) for t in draw(50))
    whole, count = ops.batched_nms(boxes, scores, labels, 0.5)
    few, number = ops.batched_nms(boxes, scores, labels, 0.5, post=3)
    assert torch.equal(few, whole[:3])
    assert number == 3
    many, number = ops.batched_nms(boxes, scores, labels, 0.5, post=70)
    assert torch.equal(many[:50], whole)
    assert (many[50:] == -1).all()
    assert number == count
    none, number = ops.nms(boxes[:0], scores[:0], 0.5, post=2)
    assert none.tolist() == [-1, -1]
    assert number == 0


def test_opcheck_and_compile(device):
    boxes, scores, labels = (t.to(device) for t in draw(40))
    live = torch.ones(40, dtype=torch.bool, device=device)
    torch.library.opcheck(torch.ops.segkern._nms.default, (boxes, labels, live, 0.5))
    torch.library.opcheck(torch.ops.segkern._nms.default, (boxes.float(), None, live, 0.5))
    compiled = torch.compile(ops.batched_nms, fullgraph=True, backend="aot_eager")
    for got, want in zip(
        compiled(boxes, scores, labels, 0.5),
        ops.batched_nms(boxes, scores, labels, 0.5),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_no_waiting_and_graphs(cuda):
    boxes, scores, labels = (t.to(cuda) for t in draw(300))
    wanted = ops.batched_nms(boxes, scores, labels, 0.5)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.batched_nms(boxes, scores, labels, 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.batched_nms(boxes, scores, labels, 0.5)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, wanted, strict=True):
        assert torch.equal(got, want)


def test_wrong_arguments():
    boxes, scores, labels = draw(5)
    good = {"boxes": boxes, "scores": scores, "labels": labels, "iou_threshold": 0.5}
    for wrong, error, message in (
        ({"boxes": [1.0]}, TypeError, "boxes must be a Tensor"),
        ({"boxes": boxes.long()}, TypeError, "boxes must be floating"),
        ({"boxes": boxes[:, :3]}, ValueError, r"boxes must be \(N, 4\)"),
        ({"scores": scores[:2]}, ValueError, r"scores must be \(5,\), got \(2,\)"),
        ({"scores": labels}, TypeError, "scores must be floating"),
        ({"labels": scores}, TypeError, "labels must be of an integer dtype"),
        ({"iou_threshold": 1.5}, ValueError, "iou_threshold must be from 0 to 1"),
        ({"iou_threshold": math.nan}, ValueError, "iou_threshold must be from 0 to 1"),
        ({"post": 0}, ValueError, "post must be at least 1"),
    ):
        with pytest.raises(error, match="batched_nms: " + message):
            ops.batched_nms(**{**good, **wrong})
    with pytest.raises(RuntimeError, match=r"_nms: live must be Bool \(5,\)"):
        torch.ops.segkern._nms.default(boxes, labels, labels, 0.5)
