"""dense_crf against the float64 reference in every mode, and its promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern import nn, ops
from segkern.ops.dense_crf import NORMALIZATIONS
from segkern.reference import dense_crf as reference
from segkern.reference import permutohedral as lattices

GAUSSIAN = {"sxy": 2.0, "weight": 1.5}
BILATERAL = {"sxy": 10.0, "srgb": 40.0, "weight": 2.0}


def inputs(labels: int = 5, size: tuple[int, ...] = (9, 11), batch: int = 2, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    unary = 2 * torch.rand(batch, labels, *size, generator=generator)
    image = torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8)
    return unary, image


def reference_crf(unary, image, costs, **kw):
    """(N, L, H, W) float64 over the lattices of float32 features."""
    results = []
    for energies, pixels in zip(unary.double(), image.float(), strict=True):
        gaussian = reference.image_features(pixels, GAUSSIAN["sxy"])
        bilateral = reference.image_features(pixels, BILATERAL["sxy"], BILATERAL["srgb"])
        terms = [
            (lattices.build(features.double()), cost)
            for features, cost in zip((gaussian, bilateral), costs, strict=True)
        ]
        q = reference.mean_field(energies.flatten(1).T, terms, **kw)
        results.append(q.T.reshape(energies.shape))
    return torch.stack(results)


@pytest.mark.parametrize("mode", NORMALIZATIONS)
@pytest.mark.parametrize("labels", [1, 2, 5, 8, 17, 70, 256])
def test_values(labels, mode):
    unary, image = inputs(labels, batch=1)
    costs = [torch.tensor(-1.5, dtype=torch.float64), torch.tensor(-2.0, dtype=torch.float64)]
    q = ops.dense_crf(
        unary, image, gaussian=GAUSSIAN, bilateral=BILATERAL, normalization=mode, iterations=4
    )
    wanted = reference_crf(unary, image, costs, mode=mode, iterations=4)
    if mode == "none":  # saturated by messages of hundreds: float32 cannot tell ties apart
        torch.testing.assert_close(q.double(), wanted, atol=1e-3, rtol=0)
    else:
        torch.testing.assert_close(q.double(), wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize("memory", ["recompute", "store"])
@pytest.mark.parametrize("mode", ["before", "after", "symmetric"])
def test_gradients(mode, memory):
    unary, image = inputs()
    generator = torch.Generator().manual_seed(5)
    weight = torch.rand(5, generator=generator)
    matrix = torch.rand(5, 5, generator=generator)  # not symmetric
    grad = torch.rand(unary.shape, generator=generator)
    own = [t.clone().requires_grad_() for t in (unary, weight, matrix)]
    q = ops.dense_crf(
        own[0],
        image,
        gaussian={"sxy": 2.0, "weight": own[1]},
        bilateral={**BILATERAL, "compatibility": own[2]},
        normalization=mode,
        iterations=3,
        memory=memory,
    )
    q.backward(grad)
    exact = [t.double().requires_grad_() for t in (unary, weight, matrix)]
    costs = (-exact[1], 2.0 * exact[2])
    wanted = reference_crf(exact[0], image, costs, mode=mode, iterations=3)
    wanted.backward(grad.double())
    for one, other in zip(own, exact, strict=True):
        scale = other.grad.abs().max()
        torch.testing.assert_close(one.grad.double() / scale, other.grad / scale, atol=5e-6, rtol=0)


def test_scalar_weights_learn():
    unary, image = inputs(batch=1)
    weight = torch.tensor(2.0, requires_grad=True)
    q = ops.dense_crf(
        unary, image, gaussian=None, bilateral={**BILATERAL, "weight": weight}, iterations=2
    )
    (q[:, 0] ** 2).sum().backward()
    step = 1e-2
    with torch.no_grad():
        ends = [
            (
                ops.dense_crf(
                    unary,
                    image,
                    gaussian=None,
                    bilateral={**BILATERAL, "weight": 2.0 + sign * step},
                    iterations=2,
                )[:, 0].double()
                ** 2
            ).sum()
            for sign in (1, -1)
        ]
    torch.testing.assert_close(
        weight.grad.double(), (ends[0] - ends[1]) / (2 * step), rtol=2e-3, atol=1e-4
    )


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_start_and_its_gradient(iterations):
    unary, image = inputs(batch=1)
    start = torch.softmax(torch.rand(unary.shape), 1).requires_grad_()
    exact = start.detach().double().requires_grad_()
    q = ops.dense_crf(
        unary, image, gaussian=GAUSSIAN, bilateral=BILATERAL, iterations=iterations, q0=start
    )
    wanted = reference_crf(
        unary,
        image,
        [torch.tensor(-1.5).double(), torch.tensor(-2.0).double()],
        iterations=iterations,
        q0=exact[0].flatten(1).T,
    )
    torch.testing.assert_close(q.double(), wanted, atol=2e-6, rtol=0)
    grad = torch.rand(unary.shape)
    q.backward(grad)
    wanted.backward(grad.double())
    torch.testing.assert_close(start.grad.double(), exact.grad, atol=2e-6, rtol=0)


def test_objective():
    unary, image = inputs()
    q, kl = ops.dense_crf(unary, image, gaussian=GAUSSIAN, bilateral=None, return_kl=True)
    assert kl.dtype == torch.float64
    for item in range(2):
        features = reference.image_features(image[item].float(), 2.0).double()
        terms = [(lattices.build(features), torch.tensor(-1.5).double())]
        rows = [t[item].flatten(1).T.double() for t in (q, unary)]
        torch.testing.assert_close(
            kl[item], reference.kl_divergence(*rows, terms), atol=1e-4, rtol=1e-6
        )


def test_batch_equals_single_runs():
    unary, image = inputs(batch=3)
    together = ops.dense_crf(unary, image)
    for item in range(3):
        assert torch.equal(together[item], ops.dense_crf(unary[item], image[item]))


def test_same_bits_on_any_number_of_threads():
    unary, image = inputs(3, (301, 233), batch=1)
    grads, results = [], []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            own = unary.clone().requires_grad_()
            q = ops.dense_crf(own, image, iterations=2)
            (q * unary).sum().backward()
            results.append(q.detach())
            grads.append(own.grad)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])


def test_kinds_of_arrays_and_dtypes():
    unary, image = inputs(batch=1)
    wanted = ops.dense_crf(unary, image)
    array = ops.dense_crf(unary.numpy(), image.numpy())
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, wanted.numpy())
    assert torch.equal(ops.dense_crf(unary, image.float()), wanted)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        q = ops.dense_crf(unary.to(dtype), image)
        assert q.dtype == dtype
        torch.testing.assert_close(q.float(), wanted, atol=2e-2, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.dense_crf(unary, image), wanted)
    strided = unary.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(ops.dense_crf(strided, image), wanted)


def test_volumes_and_extra_terms():
    unary, image = inputs(3, (3, 4, 5), batch=1)
    q = ops.dense_crf(unary, image, gaussian={"sxy": (2.0, 2.0, 1.0), "weight": 1.0})
    assert q.shape == unary.shape
    flat, picture = inputs(3, (4, 5), batch=1)
    positions = reference.image_features(picture[0].float(), 2.0)
    free = ops.dense_crf(
        flat,
        gaussian=None,
        bilateral=None,
        extra_terms=[{"features": positions, "weight": 1.5}],
    )
    assert torch.equal(free, ops.dense_crf(flat, gaussian=GAUSSIAN, bilateral=None))


@pytest.mark.parametrize("kind", ["one pixel", "constant", "noise"])
def test_hard_images(kind):
    size = (1, 1) if kind == "one pixel" else (17, 19)
    unary, image = inputs(4, size, batch=1)
    if kind == "constant":
        image.fill_(200)
    bilateral = {"sxy": 5.0, "srgb": 0.6, "weight": 2.0}
    q = ops.dense_crf(unary, image, bilateral=bilateral)
    torch.testing.assert_close(q.sum(1), torch.ones(1, *size), atol=1e-5, rtol=0)


def test_unusual_energies():
    unary, image = inputs(batch=2)
    unary[0, 1:] = float("inf")  # certain: only label 0 is possible
    q = ops.dense_crf(unary, image)
    assert bool((q[0, 0] == 1).all())
    assert bool((q[0, 1:] == 0).all())
    unary[0, 0, 3, 4] = float("nan")
    q = ops.dense_crf(unary, image)
    assert bool(q[0].isnan().any())
    assert bool(q[1].isfinite().all())


def test_opcheck():
    unary = torch.rand(2, 3, 20, requires_grad=True)
    lattice = list(ops.permutohedral_build(torch.rand(20, 2)))
    scales = [torch.ones(1, 20), torch.rand(1, 20)]
    forward = torch.ops.segkern.dense_crf.default
    for cost in (torch.tensor(-1.0), torch.rand(3), torch.rand(3, 3)):
        cost.requires_grad_()
        for keep in (False, True):
            arguments = (unary, None, lattice, scales, [cost], 2, keep, True)
            torch.library.opcheck(forward, arguments)
    start = torch.rand(2, 3, 20)
    q, history, _ = forward(unary, start, lattice, scales, [cost], 2, True, False)
    torch.library.opcheck(
        torch.ops.segkern._dense_crf_backward.default,
        (
            q.detach(),
            unary.detach(),
            start,
            q.detach(),
            history,
            lattice,
            scales,
            [cost.detach()],
            2,
        ),
    )


def test_second_derivatives_are_refused():
    unary, image = inputs(batch=1)
    unary.requires_grad_()
    q = ops.dense_crf(unary, image, iterations=1)
    (grad,) = torch.autograd.grad((q**2).sum(), unary, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


def test_compiles_in_one_graph():
    unary, image = inputs(batch=1)

    def run(unary, image):
        return ops.dense_crf(unary, image, iterations=2)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(unary, image), run(unary, image))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"unary": torch.ones(1, 2, 9, 11).int()}, TypeError, "unary must be floating"),
        ({"unary": torch.ones(9, 11)}, ValueError, "unary must be"),
        ({"unary": "x"}, TypeError, "unary must be a Tensor"),
        ({"image": torch.zeros(1, 3, 9, 10)}, ValueError, "image must be"),
        ({"image": torch.zeros(2, 3, 9, 11)}, ValueError, "image must be"),
        ({"image": None}, ValueError, "image must be given"),
        ({"gaussian": {"sxy": 0.0, "weight": 1.0}}, ValueError, "sxy must be positive"),
        ({"gaussian": {"sxy": float("nan"), "weight": 1.0}}, ValueError, "sxy must be positive"),
        ({"gaussian": {"sxy": (1.0, 2.0, 3.0), "weight": 1.0}}, ValueError, "sxy must be"),
        ({"gaussian": {"sxy": 1.0}}, ValueError, "gaussian must have"),
        ({"gaussian": {"sxy": 1.0, "weight": 1.0, "srgb": 1}}, ValueError, "gaussian must have"),
        ({"bilateral": {**BILATERAL, "srgb": -1.0}}, ValueError, "srgb must be positive"),
        ({"bilateral": {**BILATERAL, "srgb": (1.0, 2.0)}}, ValueError, "srgb must be"),
        ({"bilateral": 3}, TypeError, "bilateral must be a dict"),
        ({"gaussian": {"sxy": 1.0, "weight": torch.ones(3)}}, ValueError, "weight must be"),
        ({"compatibility": torch.ones(3, 2)}, ValueError, "compatibility must be"),
        ({"compatibility": "ising"}, ValueError, "compatibility must be"),
        ({"normalization": "mean"}, ValueError, "normalization must be"),
        ({"iterations": -1}, ValueError, "iterations must be"),
        ({"iterations": 1.5}, ValueError, "iterations must be"),
        ({"q0": torch.ones(1, 2, 9, 10)}, ValueError, "q0 must be"),
        ({"memory": "disk"}, ValueError, "memory must be"),
    ],
)
def test_wrong_arguments(change, error, message):
    unary, image = inputs(2, batch=1)
    arguments = {"unary": unary, "image": image, **change}
    with pytest.raises(error, match=message):
        ops.dense_crf(arguments.pop("unary"), arguments.pop("image"), **arguments)


def test_layers():
    logits, image = inputs(4, batch=1)
    fixed = nn.DenseCRF(4, iterations=3)
    wanted = ops.dense_crf(-logits.log_softmax(1), image, iterations=3)
    torch.testing.assert_close(fixed(logits, image).exp(), wanted, atol=1e-5, rtol=0)
    assert list(fixed.parameters()) == []
    learned = nn.DenseCRF(4, iterations=3, learnable=True, per_label=True)
    assert set(fixed.state_dict()) == set(learned.state_dict())
    learned(logits, image)[:, 1].sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in learned.parameters())

    smooth = nn.BilateralFilter(sxy=4.0, srgb=30.0)
    ones = smooth(torch.ones(1, 2, 9, 11), image)
    torch.testing.assert_close(ones, torch.ones_like(ones), atol=1e-5, rtol=0)


def test_bilateral_filter_learns_its_widths():
    _, image = inputs(batch=1)
    values = torch.rand(1, 2, 9, 11)
    widths = torch.tensor(3.1, requires_grad=True), torch.full((3,), 47.0, requires_grad=True)
    smooth = nn.BilateralFilter(*widths)
    smooth(values, image).square().sum().backward()
    exact = [w.detach().double().requires_grad_() for w in widths]
    features = reference.image_features(image[0].double(), exact[0], list(exact[1]))
    rows = reference.message(values[0].flatten(1).T.double(), lattices.build(features), "after")
    rows.square().sum().backward()
    for one, other in zip(widths, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=2e-4, atol=1e-6)
