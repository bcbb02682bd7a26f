"""First and second derivatives of every pooling operator, by finite differences in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from opcases import FORMATS, PoolCase
from pooling import (
    RAW,
    lay_out,
    pool,
    raw_pool_backward,
    raw_unpool_backward,
    torchs_indices,
    window_lists,
)
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

CASES = [
    PoolCase((2, 2, 4, 6), notes="tiled"),
    PoolCase((1, 3, 5, 5), ceil_mode=True, notes="tiled, clipped"),
    PoolCase((1, 2, 5, 6), (3, 2), (3, 2), ceil_mode=True, notes="tiled, rectangular"),
    PoolCase((1, 2, 6, 5), (3, 3), (2, 2), (1, 1), notes="overlapping"),
    PoolCase((1, 2, 5, 5), (2, 2), (1, 1), (1, 1), (2, 2), notes="dilated"),
    PoolCase((2, 5, 6), (3, 3), (1, 1), (1, 1), notes="unbatched"),
]


def windows(case: PoolCase, device: torch.device) -> Tensor:
    return case.noise(case.output_shape, torch.float64, device)


def planes(case: PoolCase, device: torch.device) -> Tensor:
    """Distances between numbers well above the step of the finite differences."""
    count = torch.Size(case.shape).numel()
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(count, generator=generator).double()
    return (order / count - 0.5).view(case.shape).to(device)


def pooled(case: PoolCase, index_format: str, x: Tensor, indices: Tensor) -> Tensor:
    return pool(case, x, index_format)[0]


def unpooled(case: PoolCase, index_format: str, y: Tensor, indices: Tensor) -> Tensor:
    return RAW.max_unpool2d.default(y, indices, *window_lists(case), *case.input_size)


def pool_backward(case: PoolCase, index_format: str, grad: Tensor, indices: Tensor) -> Tensor:
    return raw_pool_backward(case, grad, indices)


def unpool_backward(
    winners_only: bool, case: PoolCase, index_format: str, grad: Tensor, indices: Tensor
) -> Tensor:
    return raw_unpool_backward(case, grad, indices, winners_only=winners_only)


# Each operator as a function of its features, and the shape of those.
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "max_pool2d_with_indices": (pooled, planes),
    "max_unpool2d": (unpooled, windows),
    "_max_pool2d_backward": (pool_backward, windows),
    "_max_unpool2d_backward-winners": (functools.partial(unpool_backward, True), planes),
    "_max_unpool2d_backward-all": (functools.partial(unpool_backward, False), planes),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("index_format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives(name, case, index_format, layout, device):
    function, features = FUNCTIONS[name]
    x = lay_out(features(case, device), layout).requires_grad_()
    indices = lay_out(torchs_indices(case, index_format, device), layout)

    def of_features(x: Tensor) -> Tensor:
        return function(case, index_format, x, indices)

    assert gradcheck(of_features, (x,), check_undefined_grad=False)
    assert gradgradcheck(of_features, (x,), check_undefined_grad=False)


def test_derivatives_of_duplicates_anywhere(device):
    """Flat indices that name positions several times, in other windows: only the last counts."""
    case = PoolCase((1, 2, 6, 6))
    generator = torch.Generator().manual_seed(2)
    flat = torch.randint(9, case.output_shape, generator=generator).to(device)
    y = windows(case, device).requires_grad_()
    assert gradcheck(lambda y: unpooled(case, "flat", y, flat), (y,))
    assert gradgradcheck(lambda y: unpooled(case, "flat", y, flat), (y,))


def test_derivatives_of_a_third_order(device):
    """The operators are each other's derivatives, so every order is there."""
    case = PoolCase((1, 1, 4, 4), (3, 3), (2, 2), (1, 1))
    x = planes(case, device).requires_grad_()
    g = torch.ones((), dtype=torch.float64, device=device, requires_grad=True)
    y, _ = pool(case, x, "packed")
    (first,) = torch.autograd.grad((y.square() * y * g).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * first).sum(), x, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), x)
    x2 = x.detach().clone().requires_grad_()
    y2, _ = case.pool(x2)
    (first2,) = torch.autograd.grad((y2.square() * y2).sum(), x2, create_graph=True)
    (second2,) = torch.autograd.grad((first2 * first2).sum(), x2, create_graph=True)
    (third2,) = torch.autograd.grad(second2.sum(), x2)
    torch.testing.assert_close((first, second, third), (first2, second2, third2))
    assert torch.count_nonzero(third)


def test_unused_outputs_and_inputs(device):
    """No gradient is asked of the indices, and none comes where the values are not used."""
    x = torch.randn(1, 2, 4, 4, device=device, requires_grad=True)
    y, indices = pool(PoolCase((1, 2, 4, 4)), x, "offset")
    assert indices.grad_fn is None
    with pytest.raises(RuntimeError):
        indices.requires_grad_()
    z = torch.randn(2, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(z.sum() + 0 * y.sum(), x)
    assert torch.count_nonzero(grad) == 0
