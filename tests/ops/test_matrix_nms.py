"""matrix_nms against the definition in float64, the published example, and its promises."""

from __future__ import annotations

import math

import pytest
import torch

from segkern import ops


def columns(*spans, height=4, width=8):
    masks = torch.zeros(len(spans), height, width, dtype=torch.bool)
    for mask, (first, last) in zip(masks, spans, strict=True):
        mask[:, first:last] = True
    return masks


def discs(count, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    draw = torch.rand(4, count, 1, 1, generator=generator)
    ry, rx = (0.05 + 0.4 * draw[2]) * height, (0.05 + 0.4 * draw[3]) * width
    return ((y - draw[0] * height) / ry) ** 2 + ((x - draw[1] * width) / rx) ** 2 < 1


def oracle(masks, labels, scores, linear, sigma, pre, areas=None):
    """Decayed scores by input index, written out pair by pair: {index: score}."""
    live = [k for k, s in enumerate(scores.tolist()) if math.isfinite(s) and s > 0]
    order = sorted(live, key=lambda k: -scores[k].item())[:pre]
    pixels = masks.flatten(1).double()
    sizes = pixels.sum(1) if areas is None else areas.double()
    shared = (pixels @ pixels.T).tolist()

    def u(i, j):
        if labels[i] != labels[j]:
            return 0.0
        union = sizes[i].item() + sizes[j].item() - shared[i][j]
        return shared[i][j] / union if shared[i][j] > 0 else 0.0

    worst = {j: max((u(i, j) for i in order[:n]), default=0.0) for n, j in enumerate(order)}
    result = {}
    for n, j in enumerate(order):
        ratios = [1.0]
        for i in order[:n]:
            if linear:
                ratios.append((1 - u(i, j)) / max(1 - worst[i], 1e-6))
            else:
                ratios.append(math.exp(-sigma * (u(i, j) ** 2 - worst[i] ** 2)))
        result[j] = scores[j].item() * min(ratios)
    return result


def check(got, wanted, post, update_threshold=0.0):
    indices, scores, count = (t.cpu() for t in got)
    kept = [s for s in wanted.values() if s >= update_threshold]
    assert count == min(post, len(kept))
    assert indices.shape == scores.shape == (post,)
    assert (indices[count:] == -1).all()
    assert (scores[count:] == 0).all()
    assert (scores.diff() <= 0).all()
    assert len(set(indices[:count].tolist())) == count
    ours = scores[:count].double()
    torch.testing.assert_close(
        ours,
        torch.tensor([wanted[k] for k in indices[:count].tolist()], dtype=torch.float64),
        rtol=5e-6,
        atol=1e-7,
    )
    best = torch.tensor(sorted(kept, reverse=True)[:count], dtype=torch.float64)
    torch.testing.assert_close(ours, best, rtol=5e-6, atol=1e-7)


def test_published_example(device):
    masks = columns((0, 4), (1, 5), (0, 3), (4, 8), (1, 4)).to(device)
    labels = torch.tensor([3, 3, 3, 3, 7], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], device=device)
    for kernel, decayed in (
        ("gaussian", [0.9, 0.6, 0.5, 0.389402, 0.227257]),
        ("linear", [0.9, 0.6, 0.5, 0.32, 0.175]),
    ):
        indices, got, count = ops.matrix_nms(masks, labels, scores, kernel=kernel, post=7)
        assert indices.tolist() == [0, 3, 4, 1, 2, -1, -1]
        assert count == 5
        torch.testing.assert_close(got.cpu(), torch.tensor([*decayed, 0.0, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["bool", "packed", "logits"])
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
@pytest.mark.parametrize(
    ("count", "classes", "pre", "post"), [(37, 3, 500, 50), (60, 1, 23, 10), (90, 80, 64, 100)]
)
def test_against_the_definition(count, classes, pre, post, kernel, form, device):
    masks = discs(count, 23, 70, seed=count)
    masks[5:7] = masks[4]  # duplicates
    masks[8] = False
    generator = torch.Generator().manual_seed(count)
    labels = torch.randint(0, classes, (count,), generator=generator)
    labels[4:7] = 0
    scores = torch.rand(count, generator=generator)
    wanted = oracle(masks, labels, scores, kernel == "linear", 1.5, pre)
    given = {
        "bool": masks,
        "packed": masks,
        "logits": torch.where(masks, 1.3, -0.4) + torch.rand(masks.shape),
    }[form].to(device)
    if form == "packed":
        given = ops.pack_masks(given)
    arguments = (given, labels.to(device), scores.to(device))
    options = {"kernel": kernel, "sigma": 1.5, "pre": pre, "post": post, "threshold": 1.0}
    check(ops.matrix_nms(*arguments, **options), wanted, post)
    again = ops.matrix_nms(*arguments, **options, update_threshold=0.3)
    check(again, wanted, post, 0.3)


def test_given_areas(device):
    masks = discs(20, 30, 40)
    labels, scores = torch.zeros(20, dtype=torch.int32), torch.rand(20)
    areas = masks.flatten(1).sum(1) * 2 + torch.arange(20)
    wanted = oracle(masks, labels, scores, False, 2.0, 20, areas)
    masks, labels, scores, areas = (t.to(device) for t in (masks, labels, scores, areas))
    for given in (masks, ops.pack_masks(masks)):
        check(ops.matrix_nms(given, labels, scores, post=20, mask_sum=areas), wanted, 20)


def test_scores_that_take_masks_out(device):
    masks = columns((0, 4), (0, 4), (0, 4), (0, 4), (0, 4), (0, 3)).to(device)
    scores = torch.tensor([math.nan, math.inf, -math.inf, -1.0, 0.1, 0.5], device=device)
    labels = torch.tensor([0, 0, 0, 0, 0, 0], device=device)
    indices, decayed, count = ops.matrix_nms(masks, labels, scores, score_threshold=0.1, post=3)
    assert (indices.tolist(), count.item()) == ([5, -1, -1], 1)
    assert decayed.tolist() == [0.5, 0.0, 0.0]


def test_any_label_is_a_class(device):
    masks = columns((0, 4), (0, 4), (0, 4), (0, 4)).to(device)
    labels = torch.tensor([-(2**62), 2**62, -1, -1], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6], device=device)
    indices, decayed, _ = ops.matrix_nms(masks, labels, scores, post=4)
    assert indices.tolist() == [0, 1, 2, 3]
    expected = torch.tensor([0.9, 0.8, 0.7, 0.6 * math.exp(-2)])
    torch.testing.assert_close(decayed.cpu(), expected)


def test_equal_scores_keep_their_order(device):
    masks = columns((0, 2), (2, 4), (4, 6), (6, 8)).to(device)
    labels, scores = torch.zeros(4, dtype=torch.long), torch.full((4,), 0.5)
    got = ops.matrix_nms(masks, labels.to(device), scores.to(device), post=4)
    assert got[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_scores(dtype, device):
    masks = discs(12, 9, 33)
    scores = torch.rand(12).to(dtype)
    wanted = oracle(masks, torch.zeros(12), scores, False, 2.0, 12)
    labels = torch.zeros(12, dtype=torch.uint8, device=device)
    _, got, count = ops.matrix_nms(masks.to(device), labels, scores.to(device), post=None)
    assert got.dtype == dtype
    assert count == 12
    best = torch.tensor(sorted(wanted.values(), reverse=True), dtype=torch.float64)
    rounding = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(got.cpu().double(), best, rtol=rounding, atol=0)


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 1, 1), (2, 0, 4)])
def test_few_pixels_and_none(shape, device):
    masks = torch.ones(shape, dtype=torch.bool, device=device)
    scores = torch.linspace(0.9, 0.5, shape[0], device=device)
    labels = torch.arange(shape[0], device=device)
    indices, decayed, count = ops.matrix_nms(masks, labels, scores, post=5)
    assert count == shape[0]
    assert indices.tolist() == [*range(shape[0])] + [-1] * (5 - shape[0])
    assert torch.equal(decayed[: shape[0]], scores)


def test_thousands_of_masks(device):
    masks = discs(1500, 16, 20)
    labels, scores = torch.zeros(1500, dtype=torch.long), torch.rand(1500)
    arguments = [t.to(device) for t in (masks, labels, scores)]
    indices, decayed, count = ops.matrix_nms(*arguments, pre=None, post=None)
    assert indices.shape == (1500,)
    assert count == 1500
    few = ops.matrix_nms(*arguments, pre=40, post=40)
    check(few, oracle(masks, labels, scores, False, 2.0, 40), 40)


def test_same_bits_in_every_run(device):
    masks = discs(200, 40, 60).to(device)
    labels = torch.randint(0, 2, (200,)).to(device)
    scores = torch.rand(200).to(device)
    first = ops.matrix_nms(masks, labels, scores)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for got, want in zip(ops.matrix_nms(masks, labels, scores), first, strict=True):
                assert torch.equal(got, want)
    finally:
        torch.set_num_threads(threads)


def test_opcheck(device):
    packed = ops.pack_masks(discs(6, 9, 40).to(device))
    labels = torch.tensor([0, 0, 0, 1, 1, 2], device=device)
    scores = torch.rand(6, device=device)
    part = (packed.bits, packed.areas, packed.boxes)
    rows = torch.arange(5, -1, -1, device=device)
    for given in (None, rows):
        torch.library.opcheck(
            torch.ops.segkern._matrix_nms.default, (*part, given, labels, scores, False, 2.0)
        )


def test_compiles_in_one_graph(device):
    compiled = torch.compile(ops.matrix_nms, fullgraph=True, backend="aot_eager")
    for count in (7, 12):
        masks = discs(count, 9, 40).to(device)
        labels = (torch.arange(count) % 3).to(device)
        scores = torch.rand(count).to(device)
        for given in (masks, ops.pack_masks(masks)):
            for got, want in zip(
                compiled(given, labels, scores), ops.matrix_nms(given, labels, scores), strict=True
            ):
                assert torch.equal(got, want)


def test_no_waiting_and_graphs(cuda):
    masks, labels = discs(40, 20, 70).to(cuda), (torch.arange(40) % 3).to(cuda)
    scores = torch.rand(40).to(cuda)
    wanted = ops.matrix_nms(masks, labels, scores)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.matrix_nms(masks, labels, scores)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.matrix_nms(masks, labels, scores)
    graph.replay()
    torch.cuda.synchronize()
    for got, want in zip(captured, wanted, strict=True):
        assert torch.equal(got, want)


def test_wrong_arguments():
    masks, labels, scores = discs(3, 4, 5), torch.zeros(3, dtype=torch.long), torch.rand(3)
    good = {"masks": masks, "labels": labels, "scores": scores}
    for wrong, error, message in (
        ({"masks": masks[0]}, ValueError, r"masks must be \(N, H, W\)"),
        ({"masks": masks.long()}, TypeError, "masks must be bool, uint8 or floating"),
        ({"masks": 3}, TypeError, "masks must be a Tensor or PackedMasks"),
        ({"labels": labels[:2]}, ValueError, r"labels must be \(3,\), got \(2,\)"),
        ({"labels": labels.float()}, TypeError, "labels must be of an integer dtype"),
        ({"scores": torch.rand(3, 4)}, ValueError, r"scores must be \(3,\), got \(3, 4\)"),
        ({"scores": labels}, TypeError, "scores must be floating"),
        ({"mask_sum": labels[:1]}, ValueError, r"mask_sum must be \(3,\)"),
        ({"kernel": "box"}, ValueError, "kernel must be 'gaussian' or 'linear'"),
        ({"sigma": 0.0}, ValueError, "sigma must be finite and above 0"),
        ({"pre": 0}, ValueError, "pre must be at least 1"),
        ({"post": 2.0}, TypeError, "post must be an integer or None"),
        ({"score_threshold": -1.0}, ValueError, "score_threshold must be finite and at least 0"),
        ({"update_threshold": math.nan}, ValueError, "update_threshold must be finite"),
    ):
        with pytest.raises(error, match="matrix_nms: " + message):
            ops.matrix_nms(**{**good, **wrong})
    packed = ops.pack_masks(masks)
    with pytest.raises(RuntimeError, match=r"_matrix_nms: labels must be Long \(3,\)"):
        torch.ops.segkern._matrix_nms.default(
            packed.bits, packed.areas, packed.boxes, None, labels[:2], scores, False, 2.0
        )
