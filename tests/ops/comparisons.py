"""How results are compared: to the bit, or by the error that plain torch makes at the dtype."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def assert_same_bits(got: Tensor, want: Tensor, what: str = "") -> None:
    """Equal dtypes, shapes and bits: zeros keep their sign; any NaN will do for a NaN."""
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, not {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {got.shape}, not {want.shape}"
    got, want = got.detach().cpu().contiguous(), want.detach().cpu().contiguous()
    nan = want.isnan()
    integer = _BITS[want.element_size()]
    differ = (got.view(integer) != want.view(integer)) & ~(nan & got.isnan())
    _assert_none(differ, got, want, what)


def assert_same_integers(got: Tensor, want: Tensor, what: str = "") -> None:
    """Equal dtypes, shapes and numbers."""
    assert got.dtype == want.dtype, f"{what}: dtype {got.dtype}, not {want.dtype}"
    assert got.shape == want.shape, f"{what}: shape {got.shape}, not {want.shape}"
    got, want = got.cpu(), want.cpu()
    _assert_none(got != want, got, want, what)


def _assert_none(differ: Tensor, got: Tensor, want: Tensor, what: str) -> None:
    count = int(differ.sum())
    if count:
        first = tuple(differ.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {count} of {differ.numel()} elements differ, the first at {first}: "
            f"{got[first].item()}, not {want[first].item()}"
        )


def assert_memory_format(got: Tensor, layout: str, what: str = "") -> None:
    """Channels-last where the input's layout is one of those, else contiguous."""
    if got.numel() == 0:
        return  # torch calls every tensor without elements contiguous
    last = got.dim() == 4 and "channels_last" in layout
    memory_format = torch.channels_last if last else torch.contiguous_format
    strides = f"strides {got.stride()} of {tuple(got.shape)}"
    assert got.is_contiguous(memory_format=memory_format), f"{what} {layout}: {strides}"


def assert_error_as_torchs(
    got: Tensor, torchs: Tensor, exact: Tensor, *, k: float, what: str = ""
) -> None:
    """The largest error is at most `k` times that of plain torch at this dtype, plus one rounding
    of the largest number; the direction and the mean agree with the exact result.

    Args:
        got, torchs: results of ours and of torch, of one dtype.
        exact: the float64 result for the same (rounded) inputs.
        k: factor on torch's error.
    """
    assert got.dtype == torchs.dtype, f"{what}: dtype {got.dtype}, not {torchs.dtype}"
    assert got.shape == exact.shape, f"{what}: shape {got.shape}, not {exact.shape}"
    if got.numel() == 0:
        return
    rounding = torch.finfo(got.dtype).eps / 2
    got, torchs, exact = (t.detach().cpu().double() for t in (got, torchs, exact))
    largest = exact.abs().max()
    allowed = k * (torchs - exact).abs().max() + rounding * largest
    error = (got - exact).abs().max()
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"
    if largest == 0:
        return
    cosine = torch.nn.functional.cosine_similarity(got.flatten(), exact.flatten(), dim=0)
    # Independent roundings of relative size `rounding` turn the vector by no more than that.
    assert 1 - cosine <= (k * rounding) ** 2 + 1e-12, f"{what}: cosine {cosine:.12f}"
    bias = (got - exact).mean().abs()
    spread = k * rounding * exact.square().mean().sqrt() / got.numel() ** 0.5
    # Four standard deviations of the mean of as many independent roundings.
    assert bias <= 4 * spread + 1e-15 * largest, f"{what}: mean error {bias:.3g}, {spread:.3g}"
