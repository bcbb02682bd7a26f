"""The lattice and mean field on CUDA: the CPU's numbers, the same bits, no waiting, graphs."""

from __future__ import annotations

import pytest
import torch

from segkern import ops
from segkern.ops.dense_crf import mean_field, pairwise_term

SIZE = (41, 53)


def inputs(labels: int, device: torch.device, batch: int = 2) -> tuple[torch.Tensor, ...]:
    """Energies, a gradient, (1, P, 2) positions and (N, P, 5) positions with colours."""
    generator = torch.Generator().manual_seed(labels)
    count = SIZE[0] * SIZE[1]
    unary, grad = 2 * torch.rand(2, batch, labels, count, generator=generator)
    ys, xs = torch.meshgrid(*(torch.arange(float(n)) for n in SIZE), indexing="ij")
    places = torch.stack([xs, ys], 2).view(1, count, 2)
    colours = torch.randint(0, 256, (batch, count, 3), generator=generator).float()
    bilateral = torch.cat([(places / 20).expand(batch, -1, -1), colours / 60], 2)
    return tuple(t.to(device) for t in (unary, grad, places / 3, bilateral))


def costs_of(labels: int, kind: str, device: torch.device) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = {"potts": ((), ()), "vector": ((labels,), ()), "matrix": ((labels, labels), ())}
    return [-torch.rand(s, generator=generator).add(1).to(device) for s in shapes[kind]]


def everything(labels, kind, device, *, memory="recompute", iterations=5, batch=2, items=None):
    """Marginals, objective, gradients to energies and costs; on the CPU."""
    unary, grad, *features = inputs(labels, device, batch)
    if items is not None:
        unary, grad = unary[items], grad[items]
        features = [f if len(f) == 1 else f[items] for f in features]
    unary.requires_grad_()
    costs = [cost.requires_grad_() for cost in costs_of(labels, kind, device)]
    terms = [pairwise_term(f, cost) for f, cost in zip(features, costs)]
    q, kl = mean_field(unary, terms, iterations, memory=memory, return_kl=True)
    q.backward(grad)
    return [t.detach().cpu() for t in (q, kl, unary.grad, *(cost.grad for cost in costs))]


@pytest.mark.parametrize("memory", ["recompute", "store"])
@pytest.mark.parametrize("kind", ["potts", "vector", "matrix"])
@pytest.mark.parametrize("labels", [2, 21, 70, 256])
def test_the_cpus_numbers(cuda, labels, kind, memory):
    if labels == 256 and kind == "matrix":
        kind = "vector"  # costs of that size saturate the marginals
    wanted = everything(labels, kind, torch.device("cpu"), memory=memory)
    result = everything(labels, kind, cuda, memory=memory)
    torch.testing.assert_close(result[0], wanted[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(result[1], wanted[1], atol=1e-3, rtol=1e-6)
    for one, other in zip(result[2:], wanted[2:]):
        scale = other.abs().max()
        torch.testing.assert_close(one / scale, other / scale, atol=3e-5, rtol=0)


@pytest.mark.parametrize("kind", ["potts", "matrix"])
def test_the_same_bits_in_twenty_runs(cuda, kind):
    wanted = everything(21, kind, cuda)
    for _ in range(19):
        for one, other in zip(everything(21, kind, cuda), wanted):
            assert torch.equal(one, other)


def test_a_batch_of_sixteen_equals_sixteen_runs(cuda):
    together = everything(21, "potts", cuda, batch=16)
    for item in range(16):
        alone = everything(21, "potts", cuda, batch=16, items=slice(item, item + 1))
        for n in range(3):  # gradients to costs are sums over the batch
            assert torch.equal(alone[n][0], together[n][item])


def test_more_terms_than_a_launch_takes(cuda):
    results = []
    for device in (torch.device("cpu"), cuda):
        unary, _, places, bilateral = inputs(5, device)
        terms = [
            pairwise_term(f / width, torch.full((), -0.5, device=device))
            for width in (1.0, 2.0, 3.0)
            for f in (places, bilateral)
        ]
        results.append(mean_field(unary, terms, 4)[0].cpu())
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dims", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("spread", [2.0, "wide"])
def test_lattices_and_feature_gradients(cuda, dims, spread):
    """Also where vertices have keys of more than 64 bits."""
    wide = {1: 1e6, 2: 1e7, 3: 3e7, 5: 2e5, 8: 400.0, 16: 0.3}
    generator = torch.Generator().manual_seed(dims)
    features = torch.randn(2, 300, dims, generator=generator)
    features *= wide[dims] if spread == "wide" else min(spread, wide[dims])
    features[:, 150:] = features[:, :150] + 0.01  # vertices with several corners
    values, grad = torch.rand(2, 2, 70, 300, generator=generator)
    results = []
    for device in (torch.device("cpu"), cuda):
        own = [t.to(device).requires_grad_() for t in (values, features)]
        lattice = ops.permutohedral_build(own[1])
        ops.permutohedral_filter(own[0], lattice, features=own[1]).backward(grad.to(device))
        again = ops.permutohedral_filter(own[0].detach(), lattice)
        results.append([t.cpu() for t in (lattice.count, lattice.weight, again)])
        results[-1] += [t.grad.cpu() for t in own]
    for one, other in zip(*results):
        scale = other.abs().max()
        torch.testing.assert_close(other / scale, one / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_features_that_the_cpu_refuses_give_nan(cuda, value):
    features = torch.rand(100, 3)
    features[7, 1] = value
    with pytest.raises(RuntimeError, match="features must"):
        ops.permutohedral_build(features)
    lattice = ops.permutohedral_build(features.to(cuda))
    values = torch.ones(1, 2, 100, device=cuda)
    assert bool(ops.permutohedral_filter(values, lattice).isnan().all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_values_of_every_type(cuda, dtype):
    lattice = ops.permutohedral_build(torch.rand(1, 200, 4, device=cuda))
    values = torch.rand(1, 5, 200, device=cuda).to(dtype).requires_grad_()
    filtered = ops.permutohedral_filter(values, lattice)
    assert filtered.dtype == dtype
    wanted = ops.permutohedral_filter(values.detach().float(), lattice)
    assert torch.equal(filtered, wanted.to(dtype))
    filtered.backward(torch.ones_like(filtered))
    assert values.grad.dtype == dtype


def train_step(unary, grad, features, costs):
    """Lattices built, marginals, objective, and all gradients, without a look at the device."""
    unary = unary.detach().requires_grad_()
    costs = [cost.detach().requires_grad_() for cost in costs]
    terms = [pairwise_term(f, cost) for f, cost in zip(features, costs)]
    q, kl = mean_field(unary, terms, 3, return_kl=True)
    return [q.detach(), kl, *torch.autograd.grad(q, [unary, *costs], grad)]


def test_nothing_waits_for_the_device(cuda):
    unary, grad, *features = inputs(21, cuda)
    costs = costs_of(21, "matrix", cuda)
    train_step(unary, grad, features, costs)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_step(unary, grad, features, costs)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_captured_in_a_graph(cuda):
    unary, grad, *features = inputs(21, cuda)
    costs = costs_of(21, "matrix", cuda)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        train_step(unary, grad, features, costs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = train_step(unary, grad, features, costs)
    for _ in range(2):
        unary.copy_(torch.rand_like(unary))
        features[1].copy_(features[1].roll(1, 1) * 1.1)  # other vertices, another number of them
        graph.replay()
        torch.cuda.synchronize()
        for one, other in zip(captured, train_step(unary, grad, features, costs)):
            assert torch.equal(one, other)


def test_too_many_labels(cuda):
    with pytest.raises(RuntimeError, match="unary on CUDA must have at most 256 labels, got 257"):
        mean_field(torch.rand(1, 257, 9, device=cuda), [], 1)
