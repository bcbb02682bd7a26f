"""dense_crf with exact Gaussians, and its gradients to widths, features and images."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from segkern import ops
from segkern.ops.dense_crf import NORMALIZATIONS
from segkern.reference import dense_crf as reference
from segkern.reference import permutohedral as lattices

SIZE = (7, 9)
LABELS = 3


def inputs(batch: int = 1, seed: int = 3):
    generator = torch.Generator().manual_seed(seed)
    unary = 2 * torch.rand(batch, LABELS, *SIZE, generator=generator)
    image = 255 * torch.rand(batch, 3, *SIZE, generator=generator)
    return unary, image


def exact_crf(unary, kernels_of, costs, **kw):
    """(N, L, H, W) float64; `kernels_of(item)` gives the kernels of an item."""
    results = []
    for item, energies in enumerate(unary.double()):
        terms = list(zip(kernels_of(item), costs, strict=True))
        q = reference.mean_field(energies.flatten(1).T, terms, **kw)
        results.append(q.T.reshape(energies.shape))
    return torch.stack(results)


def leaves(*tensors, dtype=None):
    return [t.detach().to(dtype or t.dtype).clone().requires_grad_() for t in tensors]


# Widths at which no feature lies on a border of simplices, where one-sided gradients differ.
WIDTHS = torch.tensor([2.13]), torch.tensor([9.1, 8.3]), torch.tensor([37.0, 41.0, 45.0])


def run(unary, image, sxy, bilateral_sxy, srgb, weight, matrix, **kw):
    return ops.dense_crf(
        unary,
        image,
        gaussian={"sxy": sxy, "weight": weight, **kw.pop("gaussian", {})},
        bilateral={"sxy": bilateral_sxy, "srgb": srgb, "weight": 1.0, "compatibility": matrix},
        **kw,
    )


def run_reference(unary, image, sxy, bilateral_sxy, srgb, weight, matrix, *, exact=False, **kw):
    def kernels(item):
        gaussian = reference.image_features(image[item], sxy[0])
        bilateral = reference.image_features(image[item], tuple(bilateral_sxy), list(srgb))
        first = reference.gaussian_matrix(gaussian) if exact else lattices.build(gaussian)
        return first, lattices.build(bilateral)

    kw["mode"] = kw.pop("normalization")
    return exact_crf(unary, kernels, (-weight, matrix), **kw)


@pytest.mark.parametrize("memory", ["recompute", "store"])
@pytest.mark.parametrize("exact", [False, True], ids=["lattice", "exact"])
@pytest.mark.parametrize("mode", NORMALIZATIONS)
def test_gradients(mode, exact, memory):
    unary, image = inputs(batch=2)
    weight, matrix = torch.tensor(0.8), torch.rand(LABELS, LABELS)
    if mode == "none":  # else it saturates
        weight, matrix = 0.02 * weight, 0.3 * matrix
    given = (unary, image, *WIDTHS, weight, matrix)
    own, wanted = leaves(*given), leaves(*given, dtype=torch.float64)
    settings = {"normalization": mode, "iterations": 3}
    gaussian = {"exact": True} if exact else {}
    q = run(*own, **settings, gaussian=gaussian, memory=memory)
    exact_q = run_reference(*wanted, **settings, exact=exact)
    torch.testing.assert_close(q.double(), exact_q, atol=5e-6, rtol=0)
    grad = torch.rand(unary.shape, generator=torch.Generator().manual_seed(1))
    q.backward(grad)
    exact_q.backward(grad.double())
    for one, other in zip(own, wanted, strict=True):
        scale = other.grad.abs().max()
        torch.testing.assert_close(one.grad.double() / scale, other.grad / scale, atol=5e-5, rtol=0)


@pytest.mark.parametrize("mode", NORMALIZATIONS)
def test_reference_gradients_are_finite_differences(mode):
    unary, image = inputs()
    scale = 0.02 if mode == "none" else 1.0
    given = (unary, image, *WIDTHS, torch.tensor(0.8 * scale), scale * torch.eye(LABELS))
    for exact in (False, True):
        assert torch.autograd.gradcheck(
            lambda *tensors, exact=exact: run_reference(
                *tensors, normalization=mode, iterations=2, exact=exact
            ),
            leaves(*given, dtype=torch.float64),
            eps=1e-7,
            atol=1e-6,
            rtol=1e-4,
            fast_mode=True,
        )


@pytest.mark.parametrize("shared", [False, True])
def test_free_features_learn(shared):
    unary, _ = inputs(batch=2)
    generator = torch.Generator().manual_seed(4)
    shape = (63, 4) if shared else (2, 63, 4)
    features = 1.5 * torch.randn(shape, generator=generator)
    own, wanted = leaves(features), leaves(features, dtype=torch.float64)
    q = ops.dense_crf(
        unary,
        gaussian=None,
        bilateral=None,
        extra_terms=[{"features": own[0], "weight": 1.5}],
        iterations=3,
    )
    rows = wanted[0]
    exact_q = exact_crf(
        unary,
        lambda item: [lattices.build(rows if shared else rows[item])],
        [torch.tensor(-1.5).double()],
        iterations=3,
    )
    torch.testing.assert_close(q.double(), exact_q, atol=3e-6, rtol=0)
    (q * unary).sum().backward()
    (exact_q * unary.double()).sum().backward()
    scale = wanted[0].grad.abs().max()
    torch.testing.assert_close(
        own[0].grad.double() / scale, wanted[0].grad / scale, atol=2e-5, rtol=0
    )


def test_terms_apart_and_fused_agree():
    """The same model through both ways, with q0, all forms of cost, the objective, and a batch."""
    unary, image = inputs(batch=3)
    start = torch.softmax(torch.rand(unary.shape), 1)
    width = torch.tensor(2.13, requires_grad=True)
    for compatibility in ("potts", torch.rand(LABELS), torch.rand(LABELS, LABELS)):
        settings = {"compatibility": compatibility, "iterations": 4, "q0": start, "return_kl": True}
        bilateral = {"sxy": 9.0, "srgb": 30.0, "weight": 1.5}
        fused, fused_kl = ops.dense_crf(
            unary, image, gaussian={"sxy": 2.13, "weight": 1.0}, bilateral=bilateral, **settings
        )
        gaussian = {"sxy": width, "weight": 1.0}
        apart, apart_kl = ops.dense_crf(
            unary, image, gaussian=gaussian, bilateral=bilateral, **settings
        )
        assert apart.requires_grad
        torch.testing.assert_close(apart.detach(), fused, atol=2e-6, rtol=0)
        torch.testing.assert_close(apart_kl, fused_kl, atol=0, rtol=2e-6)
        with torch.no_grad():
            again, _ = ops.dense_crf(
                unary, image, gaussian=gaussian, bilateral=bilateral, **settings
            )
        assert torch.equal(again, fused)


@pytest.mark.parametrize("mode", NORMALIZATIONS)
def test_exact_gaussian(mode):
    unary, image = inputs(batch=2)
    weight = 0.05 if mode == "none" else 1.5
    q, kl = ops.dense_crf(
        unary,
        gaussian={"sxy": (2.0, 1.5), "weight": weight, "exact": True},
        bilateral=None,
        normalization=mode,
        iterations=5,
        return_kl=True,
    )
    features = reference.image_features(image[0].double(), (2.0, 1.5))
    kernel = reference.gaussian_matrix(features)
    cost = torch.tensor(-weight).double()
    wanted = exact_crf(unary, lambda item: [kernel], [cost], mode=mode, iterations=5)
    torch.testing.assert_close(q.double(), wanted, atol=3e-6, rtol=0)
    for item in range(2):
        rows = [t[item].flatten(1).T.double() for t in (q, unary)]
        objective = reference.kl_divergence(*rows, [(kernel, cost)], mode=mode)
        torch.testing.assert_close(kl[item], objective, atol=1e-4, rtol=1e-6)
    if mode == "symmetric":
        lattice = ops.dense_crf(
            unary, gaussian={"sxy": (2.0, 1.5), "weight": weight}, bilateral=None, iterations=5
        )
        difference = float((lattice - q).abs().max())
        assert 1e-4 < difference < 0.1  # another model, but near


def test_exact_gaussian_of_volumes():
    generator = torch.Generator().manual_seed(0)
    unary = 2 * torch.rand(1, 3, 3, 4, 5, generator=generator)
    gaussian = {"sxy": (2.0, 1.5, 1.0), "weight": 1.5, "exact": True}
    q = ops.dense_crf(unary, gaussian=gaussian, bilateral=None, iterations=3)
    zs, ys, xs = torch.meshgrid(*(torch.arange(n).double() for n in (3, 4, 5)), indexing="ij")
    features = torch.stack([xs / 2, ys / 1.5, zs], 3).view(-1, 3)
    rows = unary[0].flatten(1).T.double()
    terms = [(reference.gaussian_matrix(features), torch.tensor(-1.5).double())]
    wanted = reference.mean_field(rows, terms, iterations=3).T.view(unary.shape)
    torch.testing.assert_close(q.double(), wanted, atol=2e-6, rtol=0)


class CountBuilds(TorchDispatchMode):
    """Counts the lattices that are built."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.segkern.permutohedral_build.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory", ["recompute", "store"])
@pytest.mark.parametrize("learn", [False, True])
def test_backward_builds_no_lattice(learn, memory):
    unary, image = inputs()
    unary.requires_grad_()
    width = torch.tensor(9.0, requires_grad=learn)
    bilateral = {"sxy": width, "srgb": 30.0, "weight": 1.5}
    with CountBuilds() as builds:
        q = ops.dense_crf(unary, image, bilateral=bilateral, iterations=3, memory=memory)
        assert builds.count == 2
        (q**2).sum().backward()
        assert builds.count == 2
    assert (width.grad is not None) == learn


def test_start_is_neither_changed_nor_returned():
    unary, _ = inputs()
    start = torch.softmax(unary, 1)
    kept = start.clone()
    q = ops.dense_crf(
        unary,
        gaussian={"sxy": 2.0, "weight": 1.0, "exact": True},
        bilateral=None,
        q0=start,
        iterations=0,
    )
    q.zero_()
    assert torch.equal(start, kept)


def test_same_bits_on_any_number_of_threads_and_for_a_batch():
    generator = torch.Generator().manual_seed(0)
    unary = 2 * torch.rand(16, 3, 40, 50, generator=generator)
    image = torch.randint(0, 256, (16, 3, 40, 50), generator=generator, dtype=torch.uint8)
    gaussian = {"sxy": 3.0, "weight": 1.0, "exact": True}
    results, grads = [], []
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            width = torch.tensor(20.0, requires_grad=True)
            bilateral = {"sxy": width, "srgb": 30.0, "weight": 2.0}
            q = ops.dense_crf(unary, image, gaussian=gaussian, bilateral=bilateral, iterations=2)
            (q * unary).sum().backward()
            results.append(q.detach())
            grads.append(width.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=0)
    for item in (0, 7, 15):
        alone = ops.dense_crf(
            unary[item],
            image[item],
            gaussian=gaussian,
            bilateral={"sxy": 20.0, "srgb": 30.0, "weight": 2.0},
            iterations=2,
        )
        with torch.no_grad():
            together = ops.dense_crf(
                unary,
                image,
                gaussian=gaussian,
                bilateral={"sxy": 20.0, "srgb": 30.0, "weight": 2.0},
                iterations=2,
            )[item]
        assert torch.equal(alone, together)


def test_autocast_computes_in_float32():
    unary, image = inputs()
    width = torch.tensor(2.0, requires_grad=True)
    settings = {
        "gaussian": {"sxy": width, "weight": 1.0},
        "bilateral": {"sxy": 9.0, "srgb": 30.0, "weight": 1.5},
        "compatibility": torch.rand(LABELS, LABELS),
        "iterations": 3,
    }
    wanted = ops.dense_crf(unary, image, **settings)
    (wanted_grad,) = torch.autograd.grad(wanted[:, 0].sum(), width)
    with torch.autocast("cpu", torch.bfloat16):
        q = ops.dense_crf(unary, image, **settings)
    (grad,) = torch.autograd.grad(q[:, 0].sum(), width)
    assert torch.equal(q, wanted)
    assert torch.equal(grad, wanted_grad)


def test_gradients_of_a_compiled_graph():
    unary, image = inputs()

    def run(unary, image, sxy, weight):
        gaussian = {"sxy": sxy, "weight": weight}
        return ops.dense_crf(unary, image, gaussian=gaussian, iterations=2)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    grads = []
    for function in (compiled, run):
        own = leaves(unary, image, torch.tensor(2.13), torch.tensor(1.2))
        q = function(*own)
        (q[:, 0] ** 2).sum().backward()
        grads.append([q.detach(), *(t.grad for t in own)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


class Refine(torch.nn.Module):
    """A network's last stage that learns the widths of both terms."""

    def __init__(self, exact: bool) -> None:
        super().__init__()
        self.exact = exact
        self.sxy = torch.nn.Parameter(torch.tensor(2.13))
        self.srgb = torch.nn.Parameter(torch.full((3,), 30.0))
        self.costs = torch.nn.Parameter(1 - torch.eye(LABELS))

    def forward(self, unary, image):
        return ops.dense_crf(
            unary,
            image,
            gaussian={"sxy": self.sxy, "weight": 3.0, "exact": self.exact},
            bilateral={"sxy": 9.0, "srgb": self.srgb, "weight": 2.0},
            compatibility=self.costs,
            iterations=2,
        )


@pytest.mark.parametrize("exact", [False, True])
def test_exports_with_dynamic_sizes(exact):
    refine = Refine(exact).eval()
    names = {0: torch.export.Dim("n", min=2), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    exported = torch.export.export(refine, inputs(batch=2), dynamic_shapes=(names, names)).module()
    unary, image = torch.rand(3, LABELS, 5, 12), 255 * torch.rand(3, 3, 5, 12)
    assert torch.equal(exported(unary, image), refine(unary, image))


def test_one_compiled_graph_for_all_sizes():
    refine = Refine(exact=True)
    compiled = torch.compile(refine, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((7, 9), (5, 12)):
        unary, image = torch.rand(2, LABELS, *size), 255 * torch.rand(2, 3, *size)
        torch.testing.assert_close(compiled(unary, image), refine(unary, image))


def test_many_terms_with_costs_of_each_form():
    unary, image = inputs()
    generator = torch.Generator().manual_seed(9)
    vector, matrix = torch.rand(LABELS, generator=generator), torch.rand(3, 3, generator=generator)
    per_label, rows = torch.tensor([0.5, 1.0, 1.5]), torch.randn(63, 4, generator=generator)
    q = ops.dense_crf(
        unary,
        image,
        gaussian={"sxy": 2.13, "weight": 0.7},
        bilateral={"sxy": 9.1, "srgb": 37.0, "weight": 0.5, "compatibility": "potts"},
        extra_terms=[
            {"features": rows, "weight": per_label, "compatibility": matrix},
            {"features": 2 * rows, "weight": per_label, "compatibility": "potts"},
            {"features": rows[:, :1], "weight": 2.0},
        ],
        compatibility=vector,
        iterations=4,
    )
    item = image[0]
    kernels = [
        lattices.build(features.double())
        for features in (
            reference.image_features(item, 2.13),
            reference.image_features(item, 9.1, 37.0),
            *(rows, 2 * rows, rows[:, :1]),
        )
    ]
    costs = [
        0.7 * vector.double(),
        torch.tensor(-0.5).double(),
        matrix.double() * per_label.double(),  # by the label that sends
        -per_label.double(),
        2 * vector.double(),
    ]
    wanted = exact_crf(unary, lambda _: kernels, costs, iterations=4)
    torch.testing.assert_close(q.double(), wanted, atol=3e-6, rtol=0)


def test_second_derivatives_are_refused():
    unary, image = inputs()
    width = torch.tensor(2.0, requires_grad=True)
    q = ops.dense_crf(unary, image, gaussian={"sxy": width, "weight": 1.0}, iterations=1)
    with pytest.raises(RuntimeError, match="second derivatives"):
        (grad,) = torch.autograd.grad((q**2).sum(), width, create_graph=True)
        grad.backward()
