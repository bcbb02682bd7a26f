"""Arrays of other libraries in, the same kind out, without importing those libraries."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from segkern import ops


class Foreign:
    """An array of a library that is not NumPy or torch: all that can be done with it is DLPack."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def __dlpack__(self, **kw):
        return self._tensor.__dlpack__(**kw)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


@pytest.fixture
def library(monkeypatch):
    """A module `foreign` with the class and, as CuPy has it, `from_dlpack`."""
    module = types.ModuleType("foreign")
    module.ndarray = type("ndarray", (Foreign,), {"__module__": "foreign._core.core"})
    module.from_dlpack = lambda array: module.ndarray(torch.from_dlpack(array))
    monkeypatch.setitem(sys.modules, "foreign", module)
    return module


def inputs():
    generator = torch.Generator().manual_seed(0)
    unary = 2 * torch.rand(1, 3, 6, 7, generator=generator)
    return unary, torch.randint(0, 256, (1, 3, 6, 7), generator=generator, dtype=torch.uint8)


def test_dense_crf_gives_back_the_kind_of_the_unary(library):
    unary, image = inputs()
    wanted, wanted_kl = ops.dense_crf(unary, image, return_kl=True)
    for given_image in (library.ndarray(image), image, image.numpy()):
        q, kl = ops.dense_crf(library.ndarray(unary), given_image, return_kl=True)
        assert type(q) is type(kl) is library.ndarray
        assert torch.equal(q._tensor, wanted)
        assert torch.equal(kl._tensor, wanted_kl)
    q = ops.dense_crf(unary, library.ndarray(image), q0=library.ndarray(unary.softmax(1)))
    assert type(q) is torch.Tensor
    q = ops.dense_crf(
        unary.numpy(),
        image,
        gaussian={"sxy": np.float32(3), "weight": np.float64(3)},
        bilateral={"sxy": np.array([80.0, 80.0]), "srgb": [13, 13, 13], "weight": np.array(10.0)},
        compatibility=1 - np.eye(3),
    )
    assert isinstance(q, np.ndarray)
    same = ops.dense_crf(unary, image, compatibility=1 - torch.eye(3))
    np.testing.assert_array_equal(q, same.numpy())


def test_results_with_gradients_come_back_without():
    unary, image = inputs()
    weight = torch.tensor(3.0, requires_grad=True)
    q = ops.dense_crf(unary.numpy(), image, gaussian={"sxy": 3.0, "weight": weight})
    assert isinstance(q, np.ndarray)


def test_the_lattice_operators(library):
    features, values = torch.rand(1, 30, 3), torch.rand(1, 2, 30)
    lattice = ops.permutohedral_build(features)
    wanted = ops.permutohedral_filter(values, lattice)
    for kind in (library.ndarray, torch.Tensor.numpy):
        other = ops.permutohedral_build(kind(features))
        assert torch.equal(other.vertex, lattice.vertex)
        filtered = ops.permutohedral_filter(kind(values), lattice)
        assert type(filtered) is type(kind(values))
    assert torch.equal(torch.from_numpy(filtered), wanted)
    planes = values.numpy().reshape(1, 2, 5, 6)
    filtered = ops.separable_gaussian(planes, 1.5)
    np.testing.assert_array_equal(filtered, ops.separable_gaussian(torch.tensor(planes), 1.5))


def test_numpy_arrays_of_any_layout():
    unary, image = inputs()
    wanted = ops.dense_crf(unary, image).numpy()
    fortran = np.asfortranarray(unary.numpy())
    np.testing.assert_array_equal(ops.dense_crf(fortran, image.numpy()), wanted)
    backwards = np.ascontiguousarray(unary.numpy()[..., ::-1])[..., ::-1]
    np.testing.assert_array_equal(ops.dense_crf(backwards, image.numpy()), wanted)
    locked = unary.numpy().copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(ops.dense_crf(locked, image.numpy()), wanted)


def test_arrays_that_cannot_be_taken_or_given_back(library):
    unary, image = inputs()
    with pytest.raises(TypeError, match="dense_crf: unary must be of a dtype"):
        ops.dense_crf(unary.numpy().astype(">f4"), image)
    with pytest.raises(TypeError, match="dense_crf: unary must be a Tensor or an array, got list"):
        ops.dense_crf(unary.tolist(), image)
    del library.from_dlpack
    with pytest.raises(TypeError, match="unary must be .* foreign has no from_dlpack"):
        ops.dense_crf(library.ndarray(unary), image)


def test_cupy_arrays():
    cupy = pytest.importorskip("cupy", reason="needs CuPy")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    unary, image = inputs()
    q = ops.dense_crf(cupy.asarray(unary.numpy()), cupy.asarray(image.numpy()))
    assert isinstance(q, cupy.ndarray)
    wanted = ops.dense_crf(unary.cuda(), image.cuda())
    np.testing.assert_array_equal(q.get(), wanted.cpu().numpy())
