"""The CUDA kernels of the spatial pyramid on the CPU: reduced map, branches, sums, epilogue."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from .arrays import to_array
from .conv_arrays import close_to, from_memory, in_memory
from .harness import ORDERS, Call, check_orders, load, poisoned, run_sanitized
from .test_simt_dense import rounded

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EMPTY = np.zeros(0, np.float32)


@dataclasses.dataclass(frozen=True)
class Pyramid:
    """Sizes of one pyramid; shape is (N, M, H, W), reduced None without a reduction."""

    shape: tuple[int, int, int, int]
    reduced: int | None
    outputs: tuple[int, ...]
    rates: tuple[tuple[int, int], ...]
    kernel: tuple[int, int] = (3, 3)
    hierarchical: bool = True
    residual: bool = True
    activation: int = 2
    one_slope: bool = False

    @property
    def channels(self) -> int:
        return sum(self.outputs)


def doubling(count: int) -> tuple[tuple[int, int], ...]:
    return tuple((2**k, 2**k) for k in range(count))


# ESPNet's two levels; maps smaller than the halo, of odd sizes, of vectors and not; several steps,
# groups and segments; a first branch of more groups than the others; rates far beyond the map.
CASES = [
    Pyramid((1, 64, 9, 36), 12, (16, 12, 12, 12, 12), doubling(5)),
    Pyramid((2, 20, 5, 7), 4, (4, 4, 4, 4, 4), doubling(5), activation=1),
    Pyramid((1, 128, 3, 8), 25, (28, 25, 25, 25, 25), doubling(5), one_slope=True),
    Pyramid((1, 13, 19, 35), None, (37, 5, 5), ((3, 1), (1, 17), (2**31 - 1, 2)), residual=False),
    Pyramid((2, 7, 1, 1), 3, (3, 2), ((1, 1), (2, 2)), hierarchical=False, activation=0),
    Pyramid((1, 10, 6, 44), 18, (2, 6, 6), ((2, 2), (1, 8), (4, 1)), (1, 5), activation=0),
    Pyramid((1, 8, 11, 5), None, (8, 8, 8, 8), doubling(4), (5, 3), hierarchical=False),
]


def draw(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Normal numbers; of float32 such as TF32 holds, so that operands are not rounded."""
    values = torch.randn(shape)
    return (values * 16).round() / 16 if dtype == torch.float32 else values.to(dtype)


def make(number: int, dtype: torch.dtype, channels_last: bool):
    """(float64 result, arguments of the module's function without out and poison, shape)."""
    case = CASES[number]
    torch.manual_seed(number)
    rng = np.random.default_rng(number)
    batch, depth, *plane = case.shape
    x = draw(*case.shape, dtype=dtype)
    reduce = None
    if case.reduced is not None:
        # Few bits: the reduced map is exact in float32, then rounds once to the type or TF32.
        reduce = torch.randint(-1, 2, (case.reduced, depth, 1, 1)).to(dtype) / 8
    width = case.reduced or depth
    fan = width * case.kernel[0] * case.kernel[1]
    weights = [draw(n, width, *case.kernel, dtype=dtype) for n in case.outputs]
    weights = [weight / 2 ** round(np.log2(fan) / 2) for weight in weights]
    shape = (batch, case.channels, *plane)
    residual = draw(*shape, dtype=dtype)
    scale = rng.random(case.channels, np.float32) + 0.5
    shift = rng.standard_normal(case.channels).astype(np.float32)
    slope = rng.random(1 if case.one_slope else case.channels, np.float32)

    reduced = x.double()
    if reduce is not None:
        reduced = rounded(F.conv2d(reduced, reduce.double()).to(dtype))
    parts = []
    for k, (weight, rate) in enumerate(zip(weights, case.rates, strict=True)):
        rate = [min(rate[i], plane[i]) for i in range(2)]  # no tap of a longer one meets the map
        padding = [case.kernel[i] // 2 * rate[i] for i in range(2)]
        y = F.conv2d(reduced, weight.double(), None, 1, padding, rate)
        parts.append(y + parts[k - 1] if case.hierarchical and k >= 2 else y)
    wanted = torch.cat(parts, 1)
    if case.residual:
        wanted = wanted + residual.double()
    wanted = wanted * torch.from_numpy(scale).double().view(1, -1, 1, 1)
    wanted = wanted + torch.from_numpy(shift).double().view(1, -1, 1, 1)
    if case.activation == 1:
        wanted = wanted.relu()
    elif case.activation == 2:
        wanted = F.prelu(wanted, torch.from_numpy(slope).double())
    arguments = (
        (case.shape, str(dtype).removeprefix("torch."), channels_last),
        in_memory(x, channels_last),
        EMPTY if reduce is None else to_array(reduce),
        [to_array(weight) for weight in weights],
        [rate for both in case.rates for rate in both],
        case.hierarchical,
        in_memory(residual, channels_last) if case.residual else EMPTY,
        (case.activation, scale, shift, slope if case.activation == 2 else EMPTY),
    )
    return wanted, arguments, shape


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("number", range(len(CASES)))
def test_forward(number, dtype, channels_last):
    module = load("esp")
    wanted, arguments, shape = make(number, dtype, channels_last)

    def run():
        out = poisoned(module, in_memory(wanted, channels_last).shape, arguments[1].dtype)
        module.esp(*arguments, out, module.poison_byte())
        return out

    (out,) = check_orders(module, run, ORDERS if number == 1 else ORDERS[1:3])
    close_to(from_memory(out, shape, channels_last, dtype), wanted, dtype)


def test_sanitized():
    calls = []
    for number in (1, 3, 4, 5):
        for channels_last in (False, True):
            for dtype in DTYPES[1:]:
                wanted, arguments, _ = make(number, dtype, channels_last)
                out = np.zeros(in_memory(wanted, channels_last).shape, arguments[1].dtype)
                calls.append(Call("esp", (*arguments, out, 255)))
    for result in run_sanitized("esp", calls):
        assert not isinstance(result, RuntimeError), result


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_not_finite(value):
    """One element that is not finite reaches the pixels that read it and no others."""
    module = load("esp")
    wanted, arguments, shape = make(1, torch.float16, False)
    *map_and, residual, _ = arguments
    map_and[1][0, :, 2 * 7 + 3] = value
    out = np.empty(in_memory(wanted, False).shape, np.float16)
    epilogue = (0, EMPTY, EMPTY, EMPTY)
    module.esp(*map_and, residual, epilogue, out, 0)
    touched = ~np.isfinite(out.reshape(shape)).all(axis=1)
    expected = np.zeros((2, 5, 7), bool)
    for rate in (1, 2, 4):
        for dy in (-rate, 0, rate):
            for dx in (-rate, 0, rate):
                if 0 <= 2 + dy < 5 and 0 <= 3 + dx < 7:
                    expected[0, 2 + dy, 3 + dx] = True
    assert (touched == expected).all()


def test_too_large():
    """More pixels than the kernels count are an error that says so, before anything is launched."""
    module = load("esp")
    weights = [np.ones((4, 8, 3, 3), np.float16)]
    none, epilogue = [EMPTY] * 2, (0, EMPTY, EMPTY, EMPTY)
    map_of = ((1, 8, 2**16, 2**16), "float16", False)
    with pytest.raises(RuntimeError, match="esp_pyramid: input must have fewer pixels"):
        module.esp(map_of, *none, weights, [1, 1], True, EMPTY, epilogue, EMPTY, 0)
