"""gaussian_crf against dense float64 solves of the assembled matrix, and its promises."""

from __future__ import annotations

import pytest
import torch

from segkern import ops
from segkern.ops.gaussian_crf import (
    CONVERGED,
    INDEFINITE,
    NOT_FINITE,
    PAIRWISE,
    UNCONVERGED,
    definite_limit,
)
from segkern.reference import gaussian_crf as reference

PYRAMIDS = {
    "one level": [(6, 7)],
    "row": [(1, 9)],
    "two levels": [(6, 8), (3, 4)],
    "three ragged levels": [(7, 5), (3, 5), (1, 2)],
    "cell": [(1, 1)],
}


def inputs(sizes, labels=3, pairwise="potts", batch=2, dtype=torch.float64, seed=0, share=0.9):
    """unary, horizontal, vertical, across, with values up to a share of what is definite at 10."""
    generator = torch.Generator().manual_seed(seed)
    planes = labels**2 if pairwise == "general" else 1
    bound = share * definite_limit(sizes, pairwise=pairwise, labels=labels, diagonal=10.0)

    def values(*shape):
        uniform = torch.rand(batch, planes, *shape, generator=generator, dtype=torch.float64)
        return (bound * (2 * uniform - 1)).to(dtype)

    unary = [
        torch.randn(batch, labels, *size, generator=generator, dtype=torch.float64).to(dtype)
        for size in sizes
    ]
    horizontal = [values(h, w - 1) for h, w in sizes]
    vertical = [values(h - 1, w) for h, w in sizes]
    return unary, horizontal, vertical, [values(*size) for size in sizes[:-1]]


def in_order(horizontal, vertical, across):
    edges = [edge for level in zip(horizontal, vertical, strict=True) for edge in level]
    for number, edge in enumerate(across):
        edges.insert(3 * number + 2, edge)
    return edges


def dense(unary, edges, sizes, pairwise, diagonal=10.0):
    """(N, L, P) float64, item by item."""
    return torch.stack(
        [
            reference.gaussian_crf(
                torch.cat([level[n].double().flatten(1) for level in unary], 1).cpu(),
                [edge[n].double().cpu() for edge in edges],
                sizes,
                pairwise=pairwise,
                diagonal=diagonal,
            )
            for n in range(unary[0].shape[0])
        ]
    )


def flat(levels):
    return torch.cat([level.flatten(2) for level in levels], 2)


@pytest.mark.parametrize("pairwise", PAIRWISE)
@pytest.mark.parametrize("name", PYRAMIDS)
def test_values_and_gradients(name, pairwise, device):
    """The solution, and the gradients in everything that autograd finds through the dense solve."""
    sizes = PYRAMIDS[name]
    leaves = [
        [t.to(device).requires_grad_() for t in part] for part in inputs(sizes, pairwise=pairwise)
    ]
    unary, edges = leaves[0], in_order(*leaves[1:])
    result = flat(ops.gaussian_crf(*leaves, pairwise=pairwise, tolerance=1e-14))
    wanted = dense(unary, edges, sizes, pairwise)
    assert (result.cpu() - wanted).abs().max() < 1e-12
    grad = torch.randn(wanted.shape, dtype=torch.float64)
    own = torch.autograd.grad(result, [*unary, *edges], grad.to(device))
    exact = torch.autograd.grad(wanted, [*unary, *edges], grad, allow_unused=True)
    for one, other in zip(own, exact, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 1e-12 if one.numel() else True


@pytest.mark.parametrize("pairwise", ["potts", "reduced"])
def test_large_map_in_float32(pairwise, device):
    """More cells than the smaller of the one-launch kernels on CUDA takes."""
    sizes = [(40, 110)]
    parts = inputs(sizes, 3, pairwise, 1, torch.float32)
    moved = [[t.to(device) for t in part] for part in parts]
    x = ops.gaussian_crf(*moved, pairwise=pairwise, tolerance=1e-6)[0].cpu().double().flatten(2)
    lifted = [[t.double() for t in part] for part in parts]
    wanted = ops.gaussian_crf(*lifted, pairwise=pairwise, tolerance=1e-13)[0].flatten(2)
    # The condition number, at most 1.9 / 0.1, times the tolerance.
    torch.testing.assert_close(x, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0)
    # The float64 solution solves the system: a residual, as a dense matrix would take 1.5 GB.
    p, q = (torch.cat(ends) for ends in zip(*reference.edge_nodes(sizes), strict=True))
    value = torch.cat([part[0][0].flatten().double() for part in parts[1:3]])
    other = wanted.sum(1, keepdim=True) - wanted if pairwise == "potts" else wanted / 10
    product = 10 * wanted if pairwise == "potts" else wanted.clone()
    product.index_add_(2, p, value * other[..., q]).index_add_(2, q, value * other[..., p])
    unary = parts[0][0].double().flatten(2)
    right = unary if pairwise == "potts" else unary - unary.sum(1, keepdim=True) / 2
    torch.testing.assert_close(product, right, atol=1e-11, rtol=0)


def test_potts_by_small_systems_equals_the_full_solve():
    """L + 1 systems of size P against one of size L P: the same to rounding."""
    sizes = [(5, 6)]
    parts = inputs(sizes, labels=4, batch=1)
    x = ops.gaussian_crf(*parts, tolerance=1e-15)[0]
    wanted = dense(parts[0], in_order(*parts[1:]), sizes, "potts").view_as(x)
    assert (x - wanted).abs().max() < 2e-15
    assert x.abs().max() > 0.1


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_gradients_by_finite_differences(pairwise):
    sizes = [(3, 4), (2, 2)]
    leaves = [t.requires_grad_() for part in inputs(sizes, pairwise=pairwise) for t in part]

    def solve(*flat_inputs):
        parts = iter(flat_inputs)
        split = [[next(parts) for _ in range(count)] for count in (2, 2, 2, 1)]
        return ops.gaussian_crf(*split, pairwise=pairwise, tolerance=1e-15)

    assert torch.autograd.gradcheck(solve, leaves, fast_mode=True)


def test_eta_scales_the_gradients_of_the_edges_only():
    parts = [[t.requires_grad_() for t in part] for part in inputs([(4, 5)])]
    leaves = [parts[0][0], parts[1][0], parts[2][0]]
    plain, scaled = (
        torch.autograd.grad(ops.gaussian_crf(*parts, eta=eta)[0].square().sum(), leaves)
        for eta in (1.0, 0.25)
    )
    assert torch.equal(plain[0], scaled[0])
    torch.testing.assert_close(0.25 * plain[1], scaled[1])
    torch.testing.assert_close(0.25 * plain[2], scaled[2])


@pytest.mark.parametrize(
    ("values", "tolerance", "wanted"),
    [
        ("random", 1e-3, (7, 6, 4)),
        ("random", 1e-6, (13, 11, 7)),
        ("minus one", 1e-3, (26, 10, 5)),
        ("minus one", 1e-6, (52, 20, 9)),
    ],
)
def test_iterations(values, tolerance, wanted, device):
    """On a 30 x 30 grid, by the smaller and smaller condition numbers of three diagonals."""
    generator = torch.Generator().manual_seed(1)
    for diagonal, count in zip((4.1, 5.0, 10.0), wanted, strict=True):
        unary = torch.randn(1, 1, 30, 30, generator=generator, dtype=torch.float64)
        edges = [-torch.ones(1, 1, 30, 29).double(), -torch.ones(1, 1, 29, 30).double()]
        if values == "random":
            edges = [-torch.rand(e.shape, generator=generator).double() for e in edges]
        _, report = ops.gaussian_crf(
            *(t.to(device) for t in (unary, *edges)),
            pairwise="general",
            diagonal=diagonal,
            tolerance=tolerance,
            return_report=True,
        )
        # The count of the badly conditioned one varies with the right-hand side.
        slack = 2 if count > 20 else 1
        assert abs(int(report.iterations) - count) <= slack, (diagonal, report)
        assert int(report.states) == CONVERGED


def test_relative_residual_is_that_of_the_whole_system():
    sizes = [(8, 8)]
    parts = inputs(sizes, labels=5, batch=1)
    x = ops.gaussian_crf(*parts, tolerance=1e-4)[0].flatten()
    matrix = reference.potts_matrix([part[0][0] for part in parts[1:3]], sizes, 5)
    unary = parts[0][0].flatten()
    residual = unary - matrix @ x - 10 * x
    assert 1e-7 < residual.norm() / unary.norm() <= 1e-4


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_items_do_not_know_of_each_other(pairwise, device):
    leaves = [
        [t.to(device).requires_grad_() for t in part]
        for part in inputs([(9, 8), (4, 4)], 4, pairwise, 3, torch.float32)
    ]
    together = ops.gaussian_crf(*leaves, pairwise=pairwise)
    grads = torch.autograd.grad(
        sum(t.square().sum() for t in together), [t for part in leaves for t in part]
    )
    for n in range(3):
        own = [[t[n : n + 1].detach().requires_grad_() for t in part] for part in leaves]
        alone = ops.gaussian_crf(*own, pairwise=pairwise)
        for one, other in zip(together, alone, strict=True):
            assert torch.equal(one[n], other[0])
        own_grads = torch.autograd.grad(
            sum(t.square().sum() for t in alone), [t for part in own for t in part]
        )
        for one, other in zip(grads, own_grads, strict=True):
            assert torch.equal(one[n], other[0])


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_same_bits_on_any_number_of_threads(pairwise):
    parts = inputs([(61, 47), (20, 20)], 5, pairwise, 2, torch.float32)
    leaves = [[t.requires_grad_() for t in part] for part in parts]
    threads = torch.get_num_threads()
    runs = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            x = ops.gaussian_crf(*leaves, pairwise=pairwise)
            total = sum(t.square().sum() for t in x)
            runs.append([*x, *torch.autograd.grad(total, [t for p in leaves for t in p])])
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            assert torch.equal(one, other)


def indefinite(pairwise, device="cpu"):
    """A batch of two in which item 1 is not positive definite."""
    parts = inputs([(5, 6)], 3, pairwise, 2, torch.float32)
    parts[1][0][1] *= 20
    return [[t.to(device) for t in part] for part in parts]


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_not_positive_definite(pairwise, device):
    parts = indefinite(pairwise, device)
    with pytest.raises(
        RuntimeError,
        match="gaussian_crf: the matrix of item 1 must be positive "
        r"definite, .*raise diagonal \(now 10\): more than \d+ times",
    ):
        ops.gaussian_crf(*parts, pairwise=pairwise, check=True)
    x, report = ops.gaussian_crf(*parts, pairwise=pairwise, check=False, return_report=True)
    assert bool(x[0][1].isnan().all())
    assert bool(x[0][0].isfinite().all())
    assert bool((report.states[0] == CONVERGED).all())
    assert INDEFINITE in report.states[1]


def test_the_diagonal_that_the_error_names_suffices():
    for pairwise in PAIRWISE:
        parts = indefinite(pairwise)
        with pytest.raises(RuntimeError) as error:
            ops.gaussian_crf(*parts, pairwise=pairwise)
        enough = float(str(error.value).split("here ")[1])
        x = ops.gaussian_crf(*parts, pairwise=pairwise, diagonal=1.001 * enough)
        assert bool(x[0].isfinite().all())


def test_out_of_iterations(device):
    parts = [[t.to(device) for t in part] for part in inputs([(9, 9)], dtype=torch.float32)]
    with pytest.raises(RuntimeError, match="item 0 did not converge .* within 2 iterations"):
        ops.gaussian_crf(*parts, max_iterations=2, check=True)
    x, report = ops.gaussian_crf(*parts, max_iterations=2, check=False, return_report=True)
    assert bool(x[0].isnan().all())
    assert bool((report.states == UNCONVERGED).all())
    assert bool((report.iterations == 2).all())


def test_backward_is_checked_too():
    parts = indefinite("potts")
    parts[0][0][1] = 0  # nothing to solve for in the forward
    unary = parts[0][0].requires_grad_()
    x = ops.gaussian_crf(*parts)[0]
    with pytest.raises(RuntimeError, match="positive definite"):
        x.sum().backward()
    assert unary.grad is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["unary", "horizontal", "across"])
def test_not_finite_inputs_make_their_item_nan(where, value, device):
    parts = [[t.to(device) for t in part] for part in inputs([(6, 8), (3, 4)])]
    given = {"unary": parts[0][1], "horizontal": parts[1][0], "across": parts[3][0]}[where]
    given[1, 0, 1, 2] = value
    x, report = ops.gaussian_crf(*parts, check=True, return_report=True)
    for level in x:
        assert bool(level[1].isnan().all())
        assert bool(level[0].isfinite().all())
    assert NOT_FINITE in report.states[1]


def test_not_finite_gradient_gives_nan():
    parts = inputs([(4, 5)])
    leaves = [parts[0][0].requires_grad_(), parts[1][0].requires_grad_()]
    x = ops.gaussian_crf(*parts)[0]
    grad = torch.ones_like(x)
    grad[1, 0, 0, 0] = float("inf")
    for own in torch.autograd.grad(x, leaves, grad):
        assert bool(own[1].isnan().all())
        assert bool(own[0].isfinite().all())


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (1, 1), (1, 4), (4, 1)])
@pytest.mark.parametrize("batch", [0, 2])
def test_small_sizes(batch, size, device):
    height, width = size
    unary = torch.rand(batch, 3, height, width, device=device, requires_grad=True)
    right = torch.rand(batch, 1, height, max(width - 1, 0), device=device, requires_grad=True)
    down = torch.rand(batch, 1, max(height - 1, 0), width, device=device, requires_grad=True)
    x, report = ops.gaussian_crf(unary, right, down, return_report=True)
    assert x.shape == unary.shape
    assert report.iterations.shape == (batch, 4)
    x.sum().backward()
    assert unary.grad.shape == unary.shape
    assert right.grad.shape == right.shape
    if size == (1, 1):
        torch.testing.assert_close(x, unary / 10)


def test_one_label_needs_no_definite_edges():
    """Between different labels there is nothing where there is one."""
    edges = 100 * torch.rand(1, 1, 4, 4), 100 * torch.rand(1, 1, 3, 5)
    unary = torch.rand(1, 1, 4, 5)
    torch.testing.assert_close(ops.gaussian_crf(unary, *edges), unary / 10)


def test_dtypes_and_layouts(device):
    parts = inputs([(6, 5)], dtype=torch.float32)
    unary, right, down = (part[0].to(device) for part in parts[:3])
    wanted = ops.gaussian_crf(unary, right, down)
    for dtype in (torch.float16, torch.bfloat16):
        x = ops.gaussian_crf(unary.to(dtype), right.to(dtype), down.to(dtype))
        assert x.dtype == dtype
        rounded = ops.gaussian_crf(*(t.to(dtype).float() for t in (unary, right, down)))
        assert torch.equal(x, rounded.to(dtype))
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(ops.gaussian_crf(unary, right, down), wanted)
    strided = unary.to(memory_format=torch.channels_last)
    assert torch.equal(ops.gaussian_crf(strided, right.mT.contiguous().mT, down), wanted)
    same = down[:1].expand(2, -1, -1, -1)
    assert torch.equal(
        ops.gaussian_crf(unary, right, same), ops.gaussian_crf(unary, right, same.contiguous())
    )


@pytest.mark.parametrize("pairwise", range(3))
def test_opcheck(pairwise, device):
    parts = inputs([(4, 5), (2, 2)], 3, PAIRWISE[pairwise])
    edges = [t.to(device).requires_grad_() for t in in_order(*parts[1:])]
    unary = flat(parts[0]).to(device).requires_grad_()
    numbers = (pairwise, 10.0, 1e-10, 100, 1.0, False)
    torch.library.opcheck(torch.ops.segkern.gaussian_crf.default, (unary, edges, *numbers))
    plain = [edge.detach() for edge in edges]
    for want in (False, True):
        torch.library.opcheck(
            torch.ops.segkern._gaussian_crf_backward.default,
            (unary.detach(), unary.detach(), plain, *numbers, want),
        )


def test_second_derivatives_are_refused():
    parts = inputs([(3, 4)])
    unary = parts[0][0].requires_grad_()
    x = ops.gaussian_crf(*parts)[0]
    (grad,) = torch.autograd.grad(x.square().sum(), unary, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


def test_compiles_in_one_graph():
    parts = [part[0].requires_grad_() for part in inputs([(5, 6)], dtype=torch.float32)[:3]]

    def run(unary, right, down):
        return ops.gaussian_crf(unary, right, down).square().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    own = torch.autograd.grad(compiled(*parts), parts)
    for one, other in zip(own, torch.autograd.grad(run(*parts), parts), strict=True):
        torch.testing.assert_close(one, other)


def test_cuda_graph(cuda):
    """No copy to the host in either pass, one launch or many."""
    for pairwise in PAIRWISE:
        parts = inputs([(9, 8)], 3, pairwise, 2, torch.float32)
        leaves = [part[0].to(cuda).requires_grad_() for part in parts[:3]]

        def step(leaves=leaves, pairwise=pairwise):
            x = ops.gaussian_crf(*leaves, pairwise=pairwise, max_iterations=30)
            return torch.autograd.grad(x.square().sum(), leaves)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            wanted = step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        graph.replay()
        for one, other in zip(captured, wanted, strict=True):
            assert torch.equal(one, other)


GOOD = {
    "unary": torch.rand(2, 3, 4, 5),
    "horizontal": torch.rand(2, 1, 4, 4),
    "vertical": torch.rand(2, 1, 3, 5),
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"unary": torch.ones(2, 3, 4, 5).int()}, TypeError, "unary must be a floating Tensor"),
        ({"unary": "x"}, TypeError, "unary must be a floating Tensor"),
        ({"unary": []}, ValueError, "unary must have 1 to 4 levels, got 0"),
        ({"unary": torch.ones(3, 4, 5)}, ValueError, "unary must be"),
        ({"unary": torch.ones(2, 0, 4, 5)}, ValueError, "at least one label"),
        ({"horizontal": torch.ones(2, 1, 4, 5)}, ValueError, "horizontal must be"),
        ({"horizontal": torch.ones(1, 1, 4, 4)}, ValueError, "horizontal must be"),
        ({"vertical": torch.ones(2, 9, 3, 5)}, ValueError, "vertical must be"),
        ({"vertical": torch.ones(2, 1, 3, 5).int()}, TypeError, "vertical must be"),
        ({"across": [torch.ones(2, 1, 4, 5)]}, ValueError, "across must have 0 levels, got 1"),
        ({"pairwise": "ising"}, ValueError, "pairwise must be one of"),
        ({"pairwise": "general"}, ValueError, r"horizontal must be \(2, 9, 4, 4\)"),
        ({"diagonal": 0.0}, ValueError, "diagonal must be positive"),
        ({"diagonal": float("nan")}, ValueError, "diagonal must be positive"),
        ({"tolerance": -1e-3}, ValueError, "tolerance must be"),
        ({"tolerance": 1.0}, ValueError, "tolerance must be"),
        ({"max_iterations": -1}, ValueError, "max_iterations must be"),
        ({"max_iterations": 1.5}, TypeError, "max_iterations must be"),
        ({"eta": float("inf")}, ValueError, "eta must be finite"),
    ],
)
def test_wrong_arguments(change, error, message):
    with pytest.raises(error, match=f"gaussian_crf: .*{message}"):
        ops.gaussian_crf(**{**GOOD, **change})


def test_wrong_levels():
    unary, right, down, across = inputs([(4, 4), (2, 2)])
    with pytest.raises(ValueError, match="horizontal must have 2 levels, got 1"):
        ops.gaussian_crf(unary, right[:1], down, across)
    with pytest.raises(ValueError, match="across must have 1 levels, got 0"):
        ops.gaussian_crf(unary, right, down)
    with pytest.raises(ValueError, match="levels from fine to coarse"):
        ops.gaussian_crf(unary[::-1], right[::-1], down[::-1], [across[0][..., :2, :2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.rand(2, 3, 21)}, "unary must have the 20 cells"),
        ({0: torch.rand(2, 3, 4, 5)}, "unary must be float32 or float64"),
        ({0: torch.rand(2, 3, 20).half()}, "unary must be float32 or float64"),
        ({1: [torch.rand(2, 1, 4, 4)]}, "edges must be right and down"),
        ({1: [torch.rand(2, 1, 4, 4), torch.rand(2, 1, 3, 5).double()]}, "vertical of level 0"),
        ({1: [torch.rand(2, 4, 4), torch.rand(2, 3, 5)]}, "edges must have 4 dimensions"),
        ({2: 5}, "pairwise must be 0, 1 or 2"),
        ({3: -1.0}, "diagonal must be positive"),
        ({4: 2.0}, "tolerance must be"),
        ({5: -1}, "max_iterations must be"),
    ],
)
def test_wrong_arguments_of_the_native_operator(change, message):
    edges = [GOOD["horizontal"], GOOD["vertical"]]
    arguments = [GOOD["unary"].flatten(2), edges, 0, 10.0, 1e-5, 10, 1.0, True]
    torch.ops.segkern.gaussian_crf(*arguments)
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(RuntimeError, match=f"gaussian_crf: .*{message}"):
        torch.ops.segkern.gaussian_crf(*arguments)
