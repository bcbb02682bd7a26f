"""Schemas, fake kernels, torch.compile, torch.export and autocast of the pooling operators."""

from __future__ import annotations

import pytest
import torch
from comparisons import assert_same_bits, assert_same_integers
from opcases import FORMATS, PoolCase
from pooling import FORMAT_NUMBERS, RAW, convert, lay_out, pool, torchs_indices, window_lists
from torch import Tensor, nn

from segkern import ops

NAMES = (
    "max_pool2d_with_indices",
    "_max_pool2d_backward",
    "max_unpool2d",
    "_max_unpool2d_backward",
    "convert_pool_indices",
)
by_format = pytest.mark.parametrize("index_format", FORMATS)

TILED = PoolCase((2, 3, 7, 9), ceil_mode=True)
OVERLAPPING = PoolCase((2, 3, 7, 9), (3, 3), (2, 2), (1, 1))
UNBATCHED = PoolCase((3, 7, 9), (3, 3), (2, 2), (1, 1))


# ---- opcheck ----------------------------------------------------------------------------------


def arguments(name: str, case: PoolCase, index_format: str, layout: str, device) -> tuple:
    """Arguments of a raw operator, with features that ask for a gradient."""

    def features(shape: tuple[int, ...]) -> Tensor:
        return lay_out(case.noise(shape, torch.float32, device), layout).requires_grad_()

    indices = torchs_indices(case, index_format, device)
    if "expanded" not in layout:  # that would make other numbers, not indices of this pooling
        indices = lay_out(indices, layout)
    window, number = window_lists(case), FORMAT_NUMBERS[index_format]
    if name == "max_pool2d_with_indices":
        return features(case.shape), *window, case.ceil_mode, number
    if name == "_max_unpool2d_backward":
        return features(case.shape), indices, *window, *case.output_size, True
    if name == "convert_pool_indices":
        return indices, *window, *case.input_size, *case.output_size, (number + 1) % 3
    return features(case.output_shape), indices, *window, *case.input_size


@pytest.mark.parametrize(
    "case, layout",
    [(TILED, "contiguous"), (OVERLAPPING, "channels_last"), (UNBATCHED, "contiguous")],
    ids=["tiled", "channels_last", "unbatched"],
)
@by_format
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, index_format, case, layout, device):
    """test_schema, test_autograd_registration, test_faketensor, test_aot_dispatch_dynamic."""
    given = arguments(name, case, index_format, layout, device)
    results = torch.library.opcheck(getattr(RAW, name).default, given)
    assert list(results.values()) == ["SUCCESS"] * 4, results


@by_format
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "expanded", "channels_last_sliced"])
@pytest.mark.parametrize("name", NAMES)
def test_fake_strides(name, layout, index_format, device):
    """Fake kernels know the strides of results, also for inputs that are not dense."""
    for case in (TILED, OVERLAPPING, PoolCase((2, 1, 4, 4)), PoolCase((0, 3, 4, 4))):
        if case.shape[0] == 0 and layout in ("expanded", "channels_last_sliced"):
            continue  # opcheck's own copies fail for these strides without elements
        given = arguments(name, case, index_format, layout, device)
        operator = getattr(RAW, name).default
        torch.library.opcheck(operator, given, test_utils="test_faketensor")


# ---- compile ----------------------------------------------------------------------------------


def route(index_format: str, arguments: tuple, x: Tensor) -> tuple[Tensor, ...]:
    """An encoder and decoder's worth of the operators."""
    y, indices = ops.max_pool2d_with_indices(
        x, *arguments, ceil_mode=True, index_format=index_format
    )
    flat = ops.convert_pool_indices(
        indices, "flat", *arguments, input_size=x.shape[-2:], output_size=y.shape[-2:]
    )
    plane = ops.max_unpool2d(y.square(), indices, *arguments, output_size=x.shape[-2:])
    return y, indices, flat, plane


def assert_same_route(function, index_format: str, arguments: tuple, x: Tensor) -> None:
    """The function gives what `route` gives, and the same gradient."""
    results, grads = [], []
    for f in (function, lambda x: route(index_format, arguments, x)):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        outputs = f(leaf)
        weights = torch.arange(outputs[-1].numel(), device=x.device).view(outputs[-1].shape)
        (outputs[0].sum() + (outputs[-1] * weights).sum()).backward()
        results.append(outputs)
        grads.append(leaf.grad)
    for got, want in zip(*results):
        compare = assert_same_bits if want.is_floating_point() else assert_same_integers
        compare(got, want, index_format)
        assert got.stride() == want.stride()
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("arguments", [(2,), (3, 2, 1)], ids=["tiled", "overlapping"])
@by_format
def test_compiles_with_dynamic_shapes(index_format, arguments, layout, device):
    """One graph, no break, for sizes even and odd; all wide enough for two words of codes, as
    torch compiles anew for dimensions of one."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x: route(index_format, arguments, x), backend=counter, fullgraph=True, dynamic=True
    )
    for shape in [(2, 3, 40, 70), (3, 4, 45, 61), (2, 5, 33, 50)]:
        x = lay_out(torch.randn(shape, device=device), layout)
        assert_same_route(compiled, index_format, arguments, x)
    assert counter.frame_count == 1


def test_compiles_with_inductor(device):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: route("packed", (2,), x), fullgraph=True, dynamic=True)
    for size in [(10, 14), (9, 11)]:
        assert_same_route(compiled, "packed", (2,), torch.randn(1, 2, *size, device=device))


# ---- export -----------------------------------------------------------------------------------


class Route(nn.Module):
    def __init__(self, index_format: str) -> None:
        super().__init__()
        self.index_format = index_format

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, indices = ops.max_pool2d_with_indices(
            x, 2, ceil_mode=True, index_format=self.index_format
        )
        return ops.max_unpool2d(y, indices, 2, output_size=x.shape[-2:]), indices


class Conversion(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y, indices = ops.max_pool2d_with_indices(x, 2)
        return ops.convert_pool_indices(
            indices, "flat", 2, input_size=x.shape[-2:], output_size=y.shape[-2:]
        )


def exported(module: nn.Module, device: torch.device, strict: bool) -> nn.Module:
    """From width 34 on, where rows of packed codes have two words: one would be a constant."""
    sizes = {2: torch.export.Dim("height", min=4, max=512), 3: torch.export.Dim("width", min=34)}
    x = torch.randn(2, 3, 12, 48, device=device)
    program = torch.export.export(module, (x,), dynamic_shapes=(sizes,), strict=strict)
    names = {str(node.target) for node in program.graph.nodes}
    assert "segkern.max_pool2d_with_indices.default" in names
    return program.module()


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
@by_format
def test_exports_with_dynamic_height_and_width(index_format, strict, device):
    module = exported(Route(index_format), device, strict)
    for size in [(12, 48), (45, 61), (5, 300)]:
        x = torch.randn(2, 3, *size, device=device)
        plane, indices = module(x)
        want, want_indices = Route(index_format)(x)
        assert_same_bits(plane, want)
        assert_same_integers(indices, want_indices)


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_conversion_exports_with_dynamic_height_and_width(strict, device):
    module = exported(Conversion(), device, strict)
    for size in [(12, 48), (45, 61)]:
        x = torch.randn(2, 3, *size, device=device)
        assert_same_integers(module(x), Conversion()(x))


def test_an_exported_program_is_saved_and_loaded(tmp_path, device):
    x = torch.randn(2, 3, 12, 14, device=device)
    program = torch.export.export(Route("packed"), (x,))
    torch.export.save(program, tmp_path / "route.pt2")
    loaded = torch.export.load(tmp_path / "route.pt2").module()
    assert_same_bits(loaded(x)[0], Route("packed")(x)[0])


def test_meta_tensors_have_shapes_and_strides_only(device):
    x = lay_out(torch.empty(2, 3, 45, 61, device="meta"), "channels_last")
    y, indices = ops.max_pool2d_with_indices(x, 2, ceil_mode=True, index_format="packed")
    assert (y.device.type, indices.device.type) == ("meta", "meta")
    assert y.shape == (2, 3, 23, 31)
    assert indices.shape == (2, 3, 23, 2)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert ops.max_unpool2d(y, indices, 2, output_size=(45, 61)).shape == x.shape


def test_fake_kernels_refuse_what_the_kernels_refuse():
    """So that a compiled or exported model fails while it is traced."""
    with pytest.raises(RuntimeError, match="max_pool2d_with_indices: .*small"):
        ops.max_pool2d_with_indices(torch.empty(1, 2, 2, 2, device="meta"), 3)
    with pytest.raises(RuntimeError, match="max_pool2d_with_indices: padding must be"):
        ops.max_pool2d_with_indices(torch.empty(1, 2, 8, 8, device="meta"), 3, padding=2)
    y = torch.empty(1, 2, 4, 4, device="meta")
    with pytest.raises(RuntimeError, match="max_unpool2d: indices"):
        ops.max_unpool2d(y, torch.empty(1, 2, 3, 4, device="meta", dtype=torch.uint8), 2)


# ---- autocast ---------------------------------------------------------------------------------


@by_format
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_keeps_the_dtype(dtype, index_format, device):
    """bfloat16 stays bfloat16, and float32 float32: nothing to gain by casting."""
    case = PoolCase((1, 2, 6, 8))
    for given in (torch.float32, dtype, torch.float64):
        x = case.noise(case.shape, given, device).requires_grad_()
        want, want_indices = pool(case, x, index_format)
        with torch.autocast(device.type, dtype=dtype):
            y, indices = pool(case, x, index_format)
            plane = ops.max_unpool2d(y, indices, 2)
            flat = convert(case, indices, "flat")
        assert y.dtype == plane.dtype == given
        assert flat.dtype == torch.int64
        assert_same_bits(y, want)
        assert_same_integers(indices, want_indices)
        (grad,) = torch.autograd.grad(plane.sum(), x)
        assert grad.dtype == given
        assert int(torch.count_nonzero(grad)) == y.numel()
