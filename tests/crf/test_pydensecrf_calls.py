"""pydensecrf's calls: its example's steps on its pictures, its classes' rules, its helpers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import segkern.crf as dcrf
from segkern.crf import utils

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "crf"


def picture(name: str) -> np.ndarray:
    path = FIXTURES / name
    if not path.is_file():
        pytest.skip(f"needs the pictures {FIXTURES}, which are not here")
    image = pytest.importorskip("PIL.Image", reason="reads PNG files with Pillow")
    with image.open(path) as file:
        return np.asarray(file.convert("RGB"))


@pytest.mark.parametrize("number", [1, 2])
def test_example_pictures(number):
    image, annotation = picture(f"im{number}.png"), picture(f"anno{number}.png").astype(np.uint32)
    packed = annotation[..., 0] + (annotation[..., 1] << 8) + (annotation[..., 2] << 16)
    colours, labels = np.unique(packed, return_inverse=True)
    assert colours[0] == 0
    count = len(colours) - 1
    height, width = packed.shape
    crf = dcrf.DenseCRF(width * height, count)
    crf.setUnaryEnergy(utils.unary_from_labels(labels.ravel(), count, 0.7, zero_unsure=True))
    crf.addPairwiseEnergy(utils.create_pairwise_gaussian((3, 3), (height, width)), compat=3)
    features = utils.create_pairwise_bilateral((80, 80), (13, 13, 13), image, chdim=2)
    crf.addPairwiseEnergy(
        features,
        compat=10,
        kernel=dcrf.DIAG_KERNEL,
        normalization=dcrf.NORMALIZE_SYMMETRIC,
    )
    found = colours[1:][np.argmax(np.array(crf.inference(5)), axis=0)].reshape(height, width)
    out = picture(f"out{number}.png").astype(np.uint32)
    wanted = out[..., 0] + (out[..., 1] << 8) + (out[..., 2] << 16)
    assert int((found != wanted).sum()) == 0

    q, tmp1, tmp2 = crf.startInference()
    before = crf.klDivergence(q)
    for _ in range(5):
        crf.stepInference(q, tmp1, tmp2)
    assert crf.klDivergence(q) < before
    np.testing.assert_array_equal(q.argmax(0), crf.map(5))


def small(labels: int = 3, **kw) -> dcrf.DenseCRF2D:
    rng = np.random.default_rng(0)
    crf = dcrf.DenseCRF2D(7, 5, labels, **kw)
    crf.setUnaryEnergy(rng.random((labels, 35), dtype=np.float32))
    return crf


def rgb() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_two_dimensional_class_orders_features_x_first():
    first, second = small(), small()
    first.addPairwiseBilateral(sxy=(8, 6), srgb=(13, 14, 15), rgbim=rgb(), compat=4)
    features = utils.create_pairwise_bilateral((6, 8), (13, 14, 15), rgb(), chdim=2)
    second.addPairwiseEnergy(np.ascontiguousarray(features[[1, 0, 2, 3, 4]]), compat=4)
    np.testing.assert_array_equal(first.inference(4), second.inference(4))
    assert first.inference(4).dtype == np.float32


def test_compatibility_forms_agree():
    results = []
    for compat in (2.0, np.full(3, -2.0, np.float32), -2.0 * np.eye(3, dtype=np.float32)):
        crf = small()
        crf.addPairwiseGaussian(sxy=2, compat=compat)
        results.append(crf.inference(3))
    np.testing.assert_allclose(results[1], results[0], atol=1e-6)
    np.testing.assert_allclose(results[2], results[0], atol=1e-6)


def test_matrices_are_symmetrised():
    matrix = np.arange(9, dtype=np.float32).reshape(3, 3) / 4
    results = []
    for compat in (matrix, (matrix + matrix.T) / 2):
        crf = small()
        crf.addPairwiseGaussian(sxy=2, compat=compat)
        results.append(crf.inference(3))
    np.testing.assert_array_equal(*results)


def test_kernel_types_change_nothing():
    results = []
    for kernel in (dcrf.CONST_KERNEL, dcrf.DIAG_KERNEL, dcrf.FULL_KERNEL):
        crf = small()
        crf.addPairwiseGaussian(sxy=2, compat=3, kernel=kernel)
        results.append(crf.inference(2))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_without_terms_it_is_a_softmax():
    crf = small()
    q = crf.inference(3)
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-6)
    np.testing.assert_array_equal(q, crf.inference(0))


def test_logistic_unary():
    rng = np.random.default_rng(2)
    weights, features = rng.random((3, 4), np.float32), rng.random((4, 35), np.float32)
    first, second = small(), small()
    first.setUnaryEnergy(weights, features)
    second.setUnary(dcrf.ConstUnary(weights @ features))
    np.testing.assert_array_equal(first.inference(0), second.inference(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.setUnaryEnergy(np.zeros((2, 35), np.float32)), "u must be"),
        (lambda c: c.setUnaryEnergy(np.zeros((3, 35))), "float32"),
        (lambda c: c.setUnaryEnergy(np.zeros((3, 5, 7), np.float32)), "2 dimensions"),
        (lambda c: c.addPairwiseEnergy(np.zeros((2, 34), np.float32), 3), "features must be"),
        (lambda c: c.addPairwiseGaussian(0, 3), "sxy must be positive"),
        (lambda c: c.addPairwiseGaussian(-1.0, 3), "sxy must be positive"),
        (lambda c: c.addPairwiseGaussian((1, 2, 3), 3), "sxy must be"),
        (lambda c: c.addPairwiseGaussian(3, np.zeros(2, np.float32)), "compat must be"),
        (lambda c: c.addPairwiseGaussian(3, 3, normalization=4), "normalization must be"),
        (lambda c: c.addPairwiseGaussian(3, 3, kernel=7), "kernel must be"),
        (lambda c: c.addPairwiseBilateral(3, 3, rgb()[:4], 3), "rgbim must be"),
        (lambda c: c.addPairwiseBilateral(3, 3, rgb().astype(float), 3), "rgbim must be"),
        (lambda c: c.addPairwiseBilateral(3, 0, rgb(), 3), "srgb must be positive"),
        (lambda c: c.addPairwiseGaussian(None, 3), "sxy must be positive"),
        (lambda c: c.addPairwiseGaussian("3", 3), "sxy must be positive"),
        (lambda c: c.addPairwiseGaussian(3, "x"), "compat must be finite numbers"),
        (lambda c: c.addPairwiseGaussian(3, None), "compat must be finite numbers"),
        (lambda c: c.addPairwiseGaussian(3, np.nan), "compat must be finite numbers"),
        (lambda c: c.addPairwiseGaussian(3, np.full(3, np.inf)), "compat must be finite numbers"),
        (lambda c: c.addPairwiseGaussian(3, 3, kernel=None), "kernel must be"),
        (lambda c: c.addPairwiseGaussian(3, 3, normalization="after"), "normalization must be"),
        (lambda c: c.addPairwiseEnergy(np.full((2, 35), np.nan, np.float32), 3), "must be finite"),
        (lambda c: c.setUnaryEnergy(np.zeros((3, 2), np.float32)), "u must be"),
        (
            lambda c: c.setUnaryEnergy(np.zeros((3, 2), np.float32), np.zeros((3, 35), np.float32)),
            "f must be",
        ),
        (lambda c: c.stepInference(*[np.zeros((3, 35))] * 3), "tmp1 must be a float32"),
        (
            lambda c: c.stepInference(c.inference(0), *[np.zeros((3, 34), np.float32)] * 2),
            "tmp1 must be",
        ),
        (lambda c: c.inference(-1), "n must be"),
        (lambda c: c.inference(2.5), "n must be"),
        (lambda c: c.klDivergence(np.zeros((2, 35), np.float32)), "Q must be"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(small())


@pytest.mark.parametrize("arguments", [(0, 3), (4, 0), (2.5, 3), (True, 3), (-1, 2)])
def test_wrong_sizes(arguments):
    with pytest.raises(ValueError, match="must be at least 1"):
        dcrf.DenseCRF(*arguments)
    with pytest.raises(ValueError, match="must be at least 1"):
        dcrf.DenseCRF2D(*arguments, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: utils.unary_from_labels(np.array([0.5]), 2, 0.7), "labels must be integers"),
        (lambda: utils.unary_from_labels(np.array([-1]), 2, 0.7), "labels must be in"),
        (lambda: utils.unary_from_softmax(np.ones(3)), "sm must be"),
        (lambda: utils.unary_from_softmax(np.ones((2, 3)), scale=0.0), "scale must be"),
        (lambda: utils.create_pairwise_gaussian((3, 0), (4, 5)), "sdims must be positive"),
        (lambda: utils.create_pairwise_gaussian((3, 3, 3), (4, 5)), "sdims must have"),
        (lambda: utils.create_pairwise_bilateral((3, 3), (5, -5, 5), rgb(), 2), "schan must be"),
        (lambda: utils.create_pairwise_bilateral((3, 3), (5, 5), rgb(), 2), "schan must be"),
    ],
)
def test_wrong_arguments_of_helpers(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_unary():
    with pytest.raises(ValueError, match="setUnaryEnergy must be called first"):
        dcrf.DenseCRF(4, 2).inference(1)


def test_unary_from_labels():
    energy = utils.unary_from_labels(np.array([[0, 1], [2, 3]]), 3, 0.7)
    assert energy.dtype == np.float32
    assert energy.shape == (3, 4)
    np.testing.assert_allclose(energy[:, 0], np.log(3), rtol=1e-6)
    np.testing.assert_allclose(energy[:, 1], -np.log([0.7, 0.15, 0.15]), rtol=1e-6)
    all_known = utils.unary_from_labels(np.array([0, 2]), 3, 0.5, zero_unsure=False)
    np.testing.assert_allclose(all_known[:, 0], -np.log([0.5, 0.25, 0.25]), rtol=1e-6)
    with pytest.raises(ValueError, match="gt_prob must be between"):
        utils.unary_from_labels(np.array([1]), 2, 1.0)
    with pytest.raises(ValueError, match="labels must be in"):
        utils.unary_from_labels(np.array([4]), 3, 0.5)


def test_unary_from_softmax():
    sm = np.array([[[1.0, 0.25]], [[0.0, 0.75]]], np.float32)
    energy = utils.unary_from_softmax(sm)
    np.testing.assert_allclose(energy, -np.log([[1.0, 0.25], [1e-5, 0.75]]), rtol=1e-5, atol=1e-7)
    mixed = utils.unary_from_softmax(sm, scale=0.5)
    np.testing.assert_allclose(mixed, -np.log([[0.75, 0.375], [0.25, 0.625]]), rtol=1e-6)


def test_grey_images_have_one_channel():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    features = utils.create_pairwise_bilateral((2, 4), 5, grey, chdim=-1)
    assert features.shape == (3, 6)
    np.testing.assert_allclose(features[:, 4], [1 / 2, 1 / 4, 4 / 5])
