"""The dense CRF's operators on CUDA: the CPU's numbers, no waiting, capture in a graph."""

from __future__ import annotations

import math

import pytest
import torch

from segkern import ops


@pytest.fixture
def no_waiting(cuda):
    """Any synchronisation of host and device is an error."""
    torch.cuda.synchronize(cuda)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode(before)


def inputs(batch: int = 2):
    generator = torch.Generator().manual_seed(0)
    unary = 2 * torch.rand(batch, 5, 37, 53, generator=generator)
    image = torch.randint(0, 256, (batch, 3, 37, 53), generator=generator, dtype=torch.uint8)
    return unary, image


@pytest.mark.parametrize(
    ("shape", "widths"),
    [
        ((2, 3, 70), (1.5,)),
        ((1, 2, 33, 65), (3.0, 0.7)),
        ((1, 1, 500, 9), (2.0, 90.0)),
        ((1, 2, 4, 5, 6), (1.0, 2.0, 3.0)),
    ],
)
def test_separable_gaussian_and_its_gradients(cuda, shape, widths):
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    results = []
    for device in (torch.device("cpu"), cuda):
        own = [t.to(device).requires_grad_() for t in (values.clone(), torch.tensor(widths))]
        filtered = ops.separable_gaussian(*own)
        filtered.square().sum().backward()
        results.append([t.detach().cpu() for t in (filtered, own[0].grad, own[1].grad)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)


def test_widths_on_the_device_are_not_looked_at(cuda, no_waiting):
    values = torch.ones(1, 1, 8, 8, device=cuda)
    ops.separable_gaussian(values, 2.0)
    for bad in (0.0, -1.0, math.nan, math.inf):
        filtered = ops.separable_gaussian(values, torch.full((2,), bad, device=cuda))
        torch.cuda.set_sync_debug_mode("default")
        assert bool(filtered.isnan().all())
        torch.cuda.set_sync_debug_mode("error")


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("mode", ["before", "after", "symmetric"])
def test_dense_crf(cuda, mode, exact):
    unary, image = inputs()
    settings = {
        "gaussian": {"sxy": 3.0, "weight": 3.0, "exact": exact},
        "normalization": mode,
        "iterations": 5,
    }
    wanted = ops.dense_crf(unary, image, **settings)
    with torch.no_grad():
        q = ops.dense_crf(unary.to(cuda), image.to(cuda), **settings)
    torch.testing.assert_close(q.cpu(), wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("exact", [False, True])
def test_nothing_waits(cuda, exact):
    unary, image = (t.to(cuda) for t in inputs())
    gaussian = {"sxy": 3.0, "weight": 3.0, "exact": exact}
    torch.cuda.synchronize(cuda)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            ops.dense_crf(unary, image, gaussian=gaussian, iterations=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_exact_gaussian_in_a_graph(cuda):
    unary, _ = inputs()
    unary = unary.to(cuda)

    def run():
        with torch.no_grad():
            return ops.dense_crf(
                unary,
                gaussian={"sxy": 3.0, "weight": 3.0, "exact": True},
                bilateral=None,
                iterations=3,
            )

    wanted = run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    unary.add_(0)
    graph.replay()
    assert torch.equal(captured, wanted)


def test_memory_of_the_device(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**20, 2**30))
    features = torch.rand(1, 1, 5, device=cuda).expand(1, 20_000_000, 5)
    with pytest.raises(MemoryError, match="are available on cuda"):
        ops.permutohedral_build(features)
