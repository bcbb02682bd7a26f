"""dense_crf on bad and hard input: an error, or right numbers; never a quiet wrong answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from segkern import ops
from segkern.reference import dense_crf as reference
from segkern.reference import permutohedral as lattices
from tests.crf import vectors

GAUSSIAN = {"sxy": 2.0, "weight": 1.5}
BILATERAL = {"sxy": 10.0, "srgb": 40.0, "weight": 2.0}


def inputs(labels: int = 3, size: tuple[int, ...] = (9, 11), batch: int = 1, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    unary = 2 * torch.rand(batch, labels, *size, generator=generator)
    image = torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8)
    return unary, image


def wanted_crf(unary, image, gaussian=GAUSSIAN, bilateral=BILATERAL, iterations=5):
    """One item in float64 over lattices of float32 features."""
    features = [
        reference.image_features(image[0].float(), gaussian["sxy"]),
        reference.image_features(image[0].float(), bilateral["sxy"], bilateral["srgb"]),
    ]
    terms = [
        (lattices.build(rows.double()), torch.tensor(-term["weight"]).double())
        for rows, term in zip(features, (gaussian, bilateral), strict=True)
    ]
    rows = unary[0].flatten(1).T.double()
    return reference.mean_field(rows, terms, iterations=iterations).T.view(unary.shape)


@pytest.mark.parametrize("mode", vectors.MARGINALS)
def test_known_marginals(mode):
    """The published digits, and the float64 reference to 2e-7."""
    unary, image = vectors.unary()[None], vectors.image()[None]
    gaussian = {"sxy": 3.0, "weight": 3.0}
    bilateral = {"sxy": 60.0, "srgb": 20.0, "weight": 5.0}
    q = ops.dense_crf(
        unary,
        image,
        gaussian=gaussian,
        bilateral=bilateral,
        normalization=mode,
        iterations=5,
    )[0]
    printed = torch.tensor(vectors.MARGINALS[mode], dtype=torch.float64)
    torch.testing.assert_close(q.flatten(1).T[list(vectors.PIXELS)], printed, atol=6e-6, rtol=0)
    terms = [
        (lattices.build(reference.image_features(image[0], 3.0)), torch.tensor(-3.0)),
        (lattices.build(reference.image_features(image[0], 60.0, 20.0)), torch.tensor(-5.0)),
    ]
    rows = unary[0].flatten(1).T
    wanted = reference.mean_field(rows, terms, mode=mode, iterations=5).T.view(unary[0].shape)
    torch.testing.assert_close(q, wanted, atol=2e-7, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (17, 19)])
@pytest.mark.parametrize("kind", ["constant", "noise", "steps"])
@pytest.mark.parametrize("labels", [1, 2])
def test_hard_images(size, kind, labels):
    unary, image = inputs(labels, size)
    bilateral = {"sxy": 5.0, "srgb": 0.7 if kind == "noise" else 13.0, "weight": 2.0}
    if kind == "constant":
        image.fill_(200)
    elif kind == "steps":
        image[..., size[-1] // 2 :] = 0
    elif math.prod(size) > 1:  # every pixel has vertices of its own
        lattice = ops.permutohedral_build(image=image, sxy=5.0, srgb=0.7)
        assert int(lattice.count) == 6 * math.prod(size)
    q = ops.dense_crf(unary, image, gaussian=GAUSSIAN, bilateral=bilateral, iterations=5)
    wanted = wanted_crf(unary, image, bilateral=bilateral)
    torch.testing.assert_close(q.double(), wanted, atol=3e-6, rtol=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("exact", [False, True])
def test_energies_that_are_not_finite(value, exact):
    unary, image = inputs(batch=2)
    clean = ops.dense_crf(unary, image, gaussian={**GAUSSIAN, "exact": exact})
    unary[0, 1, 4, 5] = value
    q = ops.dense_crf(unary, image, gaussian={**GAUSSIAN, "exact": exact})
    assert torch.equal(q[1], clean[1])
    if value == math.inf:  # a label that cannot be
        assert bool(q[0].isfinite().all())
        assert float(q[0, 1, 4, 5]) == 0
        torch.testing.assert_close(q[0].sum(0), torch.ones(9, 11), atol=1e-5, rtol=0)
    else:  # NaN, and certainty that is infinite: inf - inf
        assert bool(q[0, :, 4, 5].isnan().all())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite(value):
    unary, image = inputs()
    image = image.float()
    image[0, 1, 2, 3] = value
    with pytest.raises(RuntimeError, match="features must be finite"):
        ops.dense_crf(unary, image)
    features = torch.rand(99, 4)
    features[7, 2] = value
    extra = [{"features": features, "weight": 1.0}]
    with pytest.raises(RuntimeError, match="features must be finite"):
        ops.dense_crf(unary, gaussian=None, bilateral=None, extra_terms=extra)


def test_coordinates_far_outside():
    unary, image = inputs()
    near = torch.rand(99, 5, generator=torch.Generator().manual_seed(0))
    for shift in (1e3, -1e5):  # keys of 64 bits, and of 128
        rows = near + shift
        extra = [{"features": rows, "weight": 1.5}]
        q = ops.dense_crf(unary, gaussian=None, bilateral=None, extra_terms=extra, iterations=3)
        terms = [(lattices.build(rows.double()), torch.tensor(-1.5).double())]
        wanted = reference.mean_field(unary[0].flatten(1).T.double(), terms, iterations=3)
        torch.testing.assert_close(q[0].double(), wanted.T.view(q[0].shape), atol=3e-6, rtol=0)
    with pytest.raises(RuntimeError, match="fewer lattice cells"):
        extra = [{"features": near * 1e30, "weight": 1.5}]
        ops.dense_crf(unary, gaussian=None, bilateral=None, extra_terms=extra)
    with pytest.raises(RuntimeError, match="fewer lattice cells"):
        ops.dense_crf(unary, image, bilateral={"sxy": 1e-30, "srgb": 1e-9, "weight": 1.0})


@pytest.mark.parametrize("dims", [1, 8, 12])
def test_free_features_of_many_dimensions(dims):
    unary, _ = inputs()
    rows = 1.5 * torch.randn(99, dims, generator=torch.Generator().manual_seed(0))
    extra = [{"features": rows, "weight": 1.5}]
    q = ops.dense_crf(unary, gaussian=None, bilateral=None, extra_terms=extra, iterations=3)
    terms = [(lattices.build(rows.double()), torch.tensor(-1.5).double())]
    wanted = reference.mean_field(unary[0].flatten(1).T.double(), terms, iterations=3)
    torch.testing.assert_close(q[0].double(), wanted.T.view(q[0].shape), atol=3e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float16, torch.float64])
def test_image_dtypes(dtype):
    unary, image = inputs()
    wanted = wanted_crf(unary, image)
    q = ops.dense_crf(unary, image.to(dtype), gaussian=GAUSSIAN, bilateral=BILATERAL, iterations=5)
    torch.testing.assert_close(q.double(), wanted, atol=3e-6, rtol=0)


def test_batch_of_sixteen_equals_single_runs():
    unary, image = inputs(4, (23, 31), batch=16)
    together = ops.dense_crf(unary, image)
    shared = ops.dense_crf(unary, image[:1])
    for item in range(16):
        assert torch.equal(together[item], ops.dense_crf(unary[item], image[item]))
        assert torch.equal(shared[item], ops.dense_crf(unary[item], image[0]))


def test_no_terms_and_empty_batches():
    unary, image = inputs()
    q = ops.dense_crf(unary, gaussian=None, bilateral=None)
    torch.testing.assert_close(q, (-unary).softmax(1))
    assert ops.dense_crf(unary[:0], image[:0]).shape == (0, 3, 9, 11)
    assert ops.dense_crf(unary[..., :0], image[..., :0]).shape == (1, 3, 9, 0)


def test_widths_that_are_tensors():
    unary, image = inputs()
    wanted = ops.dense_crf(unary, image, gaussian=GAUSSIAN, bilateral=BILATERAL)
    q = ops.dense_crf(
        unary,
        image,
        gaussian={"sxy": torch.tensor([2.0, 2.0]), "weight": torch.tensor(1.5)},
        bilateral={"sxy": torch.tensor(10), "srgb": torch.tensor([40.0]), "weight": 2},
    )
    assert torch.equal(q, wanted)


WRONG = [
    ({"gaussian": {"sxy": torch.tensor(0.0), "weight": 1.0}}, ValueError, "sxy must be positive"),
    (
        {"gaussian": {"sxy": torch.tensor([1.0, math.nan]), "weight": 1.0}},
        ValueError,
        "sxy must be positive",
    ),
    ({"gaussian": {"sxy": torch.ones(3), "weight": 1.0}}, ValueError, "sxy must be positive"),
    ({"gaussian": {"sxy": -3.0, "weight": 1.0, "exact": True}}, ValueError, "sxy must be"),
    ({"gaussian": {"sxy": "3", "weight": 1.0}}, TypeError, "sxy must be"),
    ({"gaussian": {"sxy": None, "weight": 1.0}}, TypeError, "sxy must be"),
    ({"gaussian": {"sxy": 3.0, "weight": 1.0, "exact": "yes"}}, TypeError, "exact must be"),
    ({"gaussian": {"sxy": 3.0, "weight": None}}, TypeError, "weight must be"),
    ({"gaussian": {"sxy": 3.0, "weight": math.nan}}, ValueError, "weight must be finite"),
    ({"bilateral": {**BILATERAL, "exact": True}}, ValueError, "bilateral must have"),
    ({"bilateral": {**BILATERAL, "srgb": [13.0, 0.0, 13.0]}}, ValueError, "srgb must be positive"),
    ({"compatibility": None}, TypeError, "compatibility must be"),
    ({"compatibility": torch.ones(4)}, ValueError, r"compatibility must be \(3,\) or \(3, 3\)"),
    ({"gaussian": {"sxy": 3.0, "weight": torch.ones(4)}}, ValueError, "weight must be a number"),
    ({"image": torch.zeros(1, 3, 9, 11, dtype=torch.complex64)}, TypeError, "image must be uint8"),
    ({"image": torch.zeros(3, 11, 9)}, ValueError, "image must be"),
    ({"image": torch.zeros(9, 11)}, ValueError, "image must be"),
    ({"image": torch.zeros(1, 1, 3, 9, 11)}, ValueError, "image must be"),
    ({"unary": torch.zeros(1, 0, 9, 11)}, ValueError, "at least one label"),
    ({"unary": torch.zeros(1, 1, 1, 1, 9, 11)}, ValueError, "unary must be"),
    ({"q0": torch.zeros(1, 2, 9, 11)}, ValueError, "q0 must be"),
    ({"iterations": True}, ValueError, "iterations must be"),
    (
        {"extra_terms": [{"features": torch.zeros(98, 2), "weight": 1.0}]},
        ValueError,
        r"extra_terms\[0\] features must be",
    ),
    (
        {"extra_terms": [{"features": torch.zeros(2, 99, 2), "weight": 1.0}]},
        ValueError,
        r"extra_terms\[0\] features must be",
    ),
    ({"extra_terms": [{"features": torch.zeros(99, 17), "weight": 1.0}]}, ValueError, "d <= 16"),
    (
        {"extra_terms": [{"features": torch.zeros(99, 2).int(), "weight": 1.0}]},
        TypeError,
        "features must be floating",
    ),
    ({"extra_terms": [{"features": [1.0], "weight": 1.0}]}, TypeError, "features must be a Tensor"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_wrong_arguments(change, error, message):
    unary, image = inputs()
    arguments = {"unary": unary, "image": image, **change}
    with pytest.raises(error, match=message):
        ops.dense_crf(arguments.pop("unary"), arguments.pop("image"), **arguments)


def test_features_of_images():
    _, image = inputs(size=(4, 6))
    features = ops.image_features(image, sxy=(2.0, 3.0), srgb=5.0)
    wanted = reference.image_features(image[0].double(), (2.0, 3.0), 5.0)
    torch.testing.assert_close(features[0].double(), wanted, rtol=1e-6, atol=0)
    assert torch.equal(ops.image_features(image[0].numpy(), sxy=(2.0, 3.0), srgb=5.0), features)
    positions = ops.image_features(image.expand(2, 3, 4, 6), sxy=(2.0, 3.0))
    assert torch.equal(positions, features[..., :2])
    volume = ops.image_features(image[None], sxy=1.0, srgb=1.0)
    assert volume.shape == (1, 72, 4)
    assert volume[0, -1].tolist() == [5.0, 3.0, 2.0, float(image[0, -1, -1, -1])]
    for wrong, error in ((torch.zeros(4, 6), ValueError), (image.cfloat(), ValueError)):
        with pytest.raises(error, match="image_features: image must be"):
            ops.image_features(wrong, sxy=1.0)


def test_lattice_of_an_image():
    _, image = inputs(batch=2)
    lattice = ops.permutohedral_build(image=image, sxy=10.0, srgb=40.0)
    wanted = ops.permutohedral_build(ops.image_features(image, sxy=10.0, srgb=40.0))
    assert torch.equal(lattice.vertex, wanted.vertex)
    assert torch.equal(lattice.weight, wanted.weight)
    assert ops.permutohedral_build(image=np.zeros((3, 4, 5)), sxy=1.0).vertex.shape == (1, 20, 3)
    for wrong in (
        {},
        {"features": torch.rand(3, 2), "image": image, "sxy": 1.0},
        {"features": torch.rand(3, 2), "sxy": 1.0},
        {"image": image},
    ):
        with pytest.raises(TypeError, match="permutohedral_build: .* must be given"):
            ops.permutohedral_build(**wrong)
