"""The lattice operators against the float64 reference, and their promises."""

from __future__ import annotations

import pytest
import torch

from segkern import ops
from segkern.reference import permutohedral as reference

LATTICE_OPS = torch.ops.segkern


def points(count: int, dims: int, spread: float = 4.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(count, dims, generator=generator)


def assert_same_lattice(lattice: ops.Lattice, features: torch.Tensor) -> None:
    """Vertices and neighbours equal the reference's number for number, weights to float32."""
    for item, rows in enumerate(features.double()):
        wanted = reference.build(rows)
        count = int(lattice.count[item])
        assert count == wanted.keys.shape[0]
        assert torch.equal(lattice.vertex[item].long(), wanted.vertex)
        assert torch.equal(lattice.neighbours[item, :, :count].long(), wanted.neighbours)
        torch.testing.assert_close(lattice.weight[item].double(), wanted.weight, atol=6e-8, rtol=0)
        offsets = lattice.offsets[item, : count + 1]
        assert offsets[0] == 0
        assert bool((offsets[1:] > offsets[:-1]).all())
        # Every corner's slot belongs to its vertex.
        slot, vertex = lattice.slot[item].long(), lattice.vertex[item].long()
        assert bool((offsets[vertex] <= slot).all() & (slot < offsets[vertex + 1]).all())


@pytest.mark.parametrize("dims", range(1, 10))
def test_lattice(dims):
    features = points(300, dims).view(2, 150, dims)
    assert_same_lattice(ops.permutohedral_build(features), features)


@pytest.mark.parametrize(
    "features",
    [
        points(1, 3),
        points(65, 2),
        torch.zeros(70, 4),
        torch.full((5, 5), -123.25),
        points(200, 5, spread=3e3),
        points(80, 5, spread=1e5),
        torch.arange(90.0).view(30, 3) / 3,
    ],
    ids=["one", "block+1", "constant", "negative", "far", "wide keys", "ties"],
)
def test_lattice_of_hard_points(features):
    assert_same_lattice(ops.permutohedral_build(features), features[None])


def test_many_slabs_and_strides():
    planes = torch.rand(1, 3, 70_000, generator=torch.Generator().manual_seed(3)) * 9
    features = planes.transpose(1, 2)
    lattice = ops.permutohedral_build(features)
    assert_same_lattice(lattice, features)
    dense = ops.permutohedral_build(features.contiguous())
    for one, other in zip(lattice[:3], dense[:3], strict=True):
        assert torch.equal(one, other)


def test_no_points():
    lattice = ops.permutohedral_build(torch.empty(2, 0, 3))
    assert lattice.count.tolist() == [0, 0]
    assert ops.permutohedral_filter(torch.empty(2, 4, 0), lattice).shape == (2, 4, 0)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 8, 9, 16, 21, 33, 48, 57, 64, 130])
def test_filter(channels, reverse):
    features = points(400, 3, spread=2.0)[None]
    lattice = ops.permutohedral_build(features)
    values = torch.rand(1, channels, 400)
    wanted = reference.permutohedral_filter(
        values[0].T.double(), reference.build(features[0].double()), reverse=reverse
    ).T
    filtered = ops.permutohedral_filter(values, lattice, reverse=reverse)[0]
    torch.testing.assert_close(filtered.double(), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_filter_dtypes_and_spatial_forms(dtype):
    lattice = ops.permutohedral_build(points(30, 2)[None])
    values = torch.rand(2, 3, 5, 6).to(dtype)
    filtered = ops.permutohedral_filter(values, lattice)
    assert filtered.dtype == dtype
    assert filtered.shape == values.shape
    rows = ops.permutohedral_filter(values.float().flatten(2), lattice)
    assert torch.equal(filtered, rows.view(values.shape).to(dtype))


def test_backward_is_the_exact_transpose():
    features = points(200, 4, spread=1.5)
    lattice = ops.permutohedral_build(features)
    values = torch.rand(1, 5, 200, requires_grad=True)
    grad = torch.rand(1, 5, 200)
    ops.permutohedral_filter(values, lattice).backward(grad)
    exact = reference.build(features.double())
    wanted = reference.permutohedral_filter(grad[0].T.double(), exact, reverse=True).T
    torch.testing.assert_close(values.grad[0].double(), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("dims", "channels"), [(1, 2), (2, 5), (3, 70), (5, 3), (8, 1)])
def test_gradient_to_features(dims, channels, reverse):
    features = points(150, dims, spread=1.5)[None].requires_grad_()
    lattice = ops.permutohedral_build(features)
    values, grad = torch.rand(2, 1, channels, 150)
    ops.permutohedral_filter(values, lattice, features=features, reverse=reverse).backward(grad)
    a, b = grad[0].T.double(), values[0].T.double()
    wanted = reference.feature_gradient(
        features[0].detach().double(), *((b, a) if reverse else (a, b))
    )
    scale = wanted.abs().max()
    torch.testing.assert_close(features.grad[0].double() / scale, wanted / scale, atol=3e-6, rtol=0)


def test_gradient_to_shared_features_adds_up():
    features = points(40, 2)
    values = torch.rand(3, 2, 40)
    results = []
    for rows in (values, values.transpose(0, 1).reshape(1, 6, 40)):
        own = features.clone().requires_grad_()
        ops.permutohedral_filter(rows, a_lattice_of(own), features=own).square().sum().backward()
        results.append(own.grad)
    assert results[0].abs().max() > 0
    alone = torch.zeros_like(features)
    for item in range(3):
        own = features.clone().requires_grad_()
        rows = values[item : item + 1]
        ops.permutohedral_filter(rows, a_lattice_of(own), features=own).square().sum().backward()
        alone += own.grad
    torch.testing.assert_close(results[0], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("points_count", [70_001, 150_000])
def test_same_bits_on_any_number_of_threads(points_count):
    features = points(points_count, 3, spread=20.0)[None]
    values = torch.rand(1, 5, points_count)
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            lattice = ops.permutohedral_build(features)
            results.append((*lattice[:3], ops.permutohedral_filter(values, lattice)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert torch.equal(one, two)


def test_items_of_a_batch_are_filtered_apart():
    features = points(180, 3, spread=2.0).view(3, 60, 3)
    values = torch.rand(3, 4, 60)
    together = ops.permutohedral_filter(values, ops.permutohedral_build(features))
    for item in range(3):
        alone = ops.permutohedral_filter(
            values[item : item + 1], ops.permutohedral_build(features[item])
        )
        assert torch.equal(together[item : item + 1], alone)


def test_opcheck():
    features = points(24, 2)[None]
    lattice = ops.permutohedral_build(features)
    # What lies behind the vertices is not specified, so outputs of two runs are not compared.
    torch.library.opcheck(
        LATTICE_OPS.permutohedral_build.default,
        (features,),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    for requires_grad in (False, True):
        values = torch.rand(2, 3, 24, requires_grad=requires_grad)
        torch.library.opcheck(
            LATTICE_OPS.permutohedral_filter.default, (values, None, list(lattice), False)
        )


def test_opcheck_with_features():
    features = points(24, 2)[None].requires_grad_()
    lattice = list(ops.permutohedral_build(features))
    values = torch.rand(2, 3, 24, requires_grad=True)
    torch.library.opcheck(
        LATTICE_OPS.permutohedral_filter.default, (values, features, lattice, True)
    )
    given = [t.detach() for t in (torch.rand(2, 3, 24), values, features)]
    torch.library.opcheck(LATTICE_OPS._permutohedral_feature_grad.default, (*given, lattice, False))


def test_compiles_in_one_graph():
    features, values = points(60, 3)[None], torch.rand(2, 4, 60)

    def run(features, values):
        lattice = ops.permutohedral_build(features)
        return ops.permutohedral_filter(values, lattice, features=features).tanh()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    results = []
    for function in (run, compiled):
        own = [t.clone().requires_grad_() for t in (features, values)]
        out = function(*own)
        out.sum().backward()
        results.append([out.detach(), *(t.grad for t in own)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    other_size = points(41, 3)[None], torch.rand(1, 2, 41)
    torch.testing.assert_close(compiled(*other_size), run(*other_size))

    def of_image(image):
        return ops.permutohedral_build(image=image, sxy=3.0, srgb=10.0).weight

    image = torch.randint(0, 256, (1, 3, 5, 6), dtype=torch.uint8)
    compiled = torch.compile(of_image, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), of_image(image))


def test_autocast_changes_nothing():
    features, values = points(60, 3)[None], torch.rand(2, 4, 60)
    lattice = ops.permutohedral_build(features)
    wanted = ops.permutohedral_filter(values, lattice)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.permutohedral_build(features).weight, lattice.weight)
        filtered = ops.permutohedral_filter(values, lattice)
        half = ops.permutohedral_filter(values.bfloat16(), lattice)
    assert torch.equal(filtered, wanted)
    assert half.dtype == torch.bfloat16


def test_same_bits_over_twenty_runs():
    features, values = points(500, 5)[None], torch.rand(1, 3, 500)
    first = None
    for _ in range(20):
        lattice = ops.permutohedral_build(features)
        filtered = ops.permutohedral_filter(values, lattice)
        count = int(lattice.count)
        run = [*lattice[:3], lattice.neighbours[:, :, :count], lattice.count, filtered]
        first = first or run
        assert all(torch.equal(one, other) for one, other in zip(first, run, strict=True))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.permutohedral_build([1.0]), TypeError, "features must be a Tensor"),
        (lambda: ops.permutohedral_build(torch.zeros(3, 2).long()), TypeError, "floating"),
        (lambda: ops.permutohedral_build(torch.zeros(3)), ValueError, "features must be"),
        (lambda: ops.permutohedral_build(torch.zeros(3, 17)), ValueError, "d <= 16"),
        (
            lambda: ops.permutohedral_build(torch.tensor([[0.0], [float("nan")]])),
            RuntimeError,
            "features must be finite",
        ),
        (
            lambda: ops.permutohedral_build(torch.tensor([[0.0, float("inf")]])),
            RuntimeError,
            "features must be finite",
        ),
        (
            lambda: ops.permutohedral_build(torch.tensor([[0.0], [1e30]])),
            RuntimeError,
            "fewer lattice cells",
        ),
        (
            lambda: ops.permutohedral_build(1e6 * torch.rand(9, 8)),
            RuntimeError,
            "fewer lattice cells",
        ),
        (
            lambda: ops.permutohedral_filter(torch.rand(1, 2, 4), a_lattice(), features=3),
            TypeError,
            "features must be a Tensor",
        ),
        (
            lambda: ops.permutohedral_filter(
                torch.rand(1, 2, 4), a_lattice(), features=torch.rand(4, 3)
            ),
            ValueError,
            "features must be",
        ),
        (lambda: ops.permutohedral_filter("x", a_lattice()), TypeError, "values must be a Tensor"),
        (lambda: ops.permutohedral_filter(torch.rand(1, 2, 3), None), TypeError, "lattice must be"),
        (
            lambda: ops.permutohedral_filter(torch.rand(1, 2, 5), a_lattice()),
            ValueError,
            "values must be",
        ),
        (
            lambda: ops.permutohedral_filter(torch.ones(1, 2, 4).int(), a_lattice()),
            TypeError,
            "values must be floating",
        ),
        (
            lambda: ops.permutohedral_filter(torch.rand(3, 2, 4), a_lattice(2)),
            RuntimeError,
            "lattice must hold",
        ),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def a_lattice_of(features: torch.Tensor) -> ops.Lattice:
    return ops.permutohedral_build(features)


def a_lattice(batch: int = 1) -> ops.Lattice:
    return ops.permutohedral_build(torch.rand(batch, 4, 2))
