"""Gaussian CRF: a quadratic energy over a grid of cells, minimised by conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Union

import torch
from torch import Tensor

from segkern import _load

Levels = Union[Tensor, Sequence[Tensor]]

#: Numbered as the enum Pairwise in csrc/gaussian_crf/graph.h.
PAIRWISE = ("potts", "general", "reduced")
MAX_LEVELS = 4

#: Numbered as the enum SolveState there.
CONVERGED, INDEFINITE, UNCONVERGED, NOT_FINITE = range(1, 5)


class SolveReport(NamedTuple):
    """How the systems of each item ended.

    Attributes:
        iterations: (N, S) int32, products with the matrix. The S systems of an item are in the
            general model one, in the Potts model the sum over labels and then each label's
            deviation from the mean, in the reduced model the labels.
        states: (N, S) int32: 1 converged, 2 not positive definite, 3 out of iterations, 4 not
            finite.
    """

    iterations: Tensor
    states: Tensor


def gaussian_crf(
    unary: Levels,
    horizontal: Levels,
    vertical: Levels,
    across: Sequence[Tensor] = (),
    *,
    pairwise: str = "potts",
    diagonal: float = 10.0,
    tolerance: float = 1e-5,
    max_iterations: int = 200,
    eta: float = 1.0,
    check: bool | None = None,
    return_report: bool = False,
) -> Tensor | tuple[Tensor, ...] | tuple[Tensor | tuple[Tensor, ...], SolveReport]:
    """Scores that minimise 0.5 x^T (A + diagonal I) x - unary^T x, so (A + diagonal I) x = unary.

    A is symmetric and links each cell to its four neighbours. Its entries are the pairwise values,
    of any sign: a negative value pulls two variables together. In the ``"general"`` model an edge
    has L^2 of them, for every pair of labels. In the ``"potts"`` model it has one, between all
    different labels, and none between equal ones. ``"reduced"`` is the layer released with the
    paper, which leaves out a part of that: with one value an edge it solves
    (I + A / diagonal) x_k = u_k - sum_i u_i / (L - 1) for each label k by itself.

    Args:
        unary: scores (N, L, H, W), floating; or up to four levels of them, finest first, each with
            as many or fewer rows and columns than the one before.
        horizontal: (N, C, H, W - 1), the edges between (y, x) and (y, x + 1), for each level. C is
            1, or L^2 in the general model: channel a * L + b joins label a of the left cell to b
            of the right one.
        vertical: (N, C, H - 1, W), the edges between (y, x) and (y + 1, x), upper cell first.
        across: with several levels, one tensor fewer than levels: (N, C, H, W) of the finer of two
            levels, the edges between its cells and the coarser cells that cover them,
            (y * coarse_H // H, x * coarse_W // W), finer cell first.
        pairwise: ``"potts"``, ``"general"`` or ``"reduced"``.
        diagonal: what is added on the diagonal; must make the matrix positive definite. More than
            (edges of a cell) * f * max|pairwise value| always does, f being L - 1, L and 1 in the
            three models; a cell of a single level has 4 edges.
        tolerance: relative residual |r| / |right-hand side| at which a system is solved.
        max_iterations: of conjugate gradients, for each system.
        eta: factor on the gradients of the pairwise values (the release has it; 1 there).
        check: raise an error where an item is not solved. None is True on the CPU and False on
            CUDA, where an error means to wait for the device. Unchecked, such an item is NaN.
        return_report: also return a :class:`SolveReport`.

    Returns:
        Scores of the form, shapes and dtypes of `unary`; with `return_report` a pair of these and
        the report. An item with a NaN or an infinity (or values whose squares overflow float64) is
        NaN, without an error.

    Raises:
        TypeError, ValueError: an argument of the wrong form.
        RuntimeError: where checked, an item whose matrix is not positive definite (as far as the
            iterations met it), or that did not converge.

    Computed in float64 for float64 `unary`, otherwise in float32 with sums in float64, under
    autocast too. Differentiable once in `unary` and all pairwise values: the gradient is that of
    the exact solution, found by the same solver. Deterministic: an item's result depends neither
    on the others of its batch nor on the number of threads. On CUDA up to 12160 cells of all
    levels (4352 in float64) with one value an edge are solved in one launch; others take two
    launches an iteration, `max_iterations` of them, which end at once when all is solved.
    Chandra and Kokkinos, arXiv:1603.08358. The release stores the negative of its matrix.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> unary = torch.rand(1, 3, 4, 5)
        >>> horizontal, vertical = -torch.rand(1, 1, 4, 4), -torch.rand(1, 1, 3, 5)
        >>> ops.gaussian_crf(unary, horizontal, vertical, diagonal=9.0).shape
        torch.Size([1, 3, 4, 5])
    """
    op = "gaussian_crf"
    several = not isinstance(unary, Tensor)
    unaries = _levels(op, "unary", unary)
    if not unaries or len(unaries) > MAX_LEVELS:
        raise ValueError(f"{op}: unary must have 1 to {MAX_LEVELS} levels, got {len(unaries)}")
    rights, downs = _levels(op, "horizontal", horizontal), _levels(op, "vertical", vertical)
    ups = _levels(op, "across", across)
    if pairwise not in PAIRWISE:
        raise ValueError(
            f"{op}: pairwise must be one of {', '.join(map(repr, PAIRWISE))}, got {pairwise!r}"
        )
    _check_numbers(op, diagonal, tolerance, max_iterations, eta)
    _check_shapes(op, unaries, rights, downs, ups, pairwise)
    if check is None:
        check = not unaries[0].is_cuda
    if unaries[0].is_cuda:
        _load.require_cuda(op)

    precision = torch.float64 if unaries[0].dtype == torch.float64 else torch.float32
    edges = [edge for level in zip(rights, downs) for edge in level]
    for number, edge in enumerate(ups):
        edges.insert(3 * number + 2, edge)
    nodes = [level.to(precision).flatten(2) for level in unaries]
    x, iterations, states = torch.ops.segkern.gaussian_crf.default(
        nodes[0] if len(nodes) == 1 else torch.cat(nodes, 2),
        [edge.to(precision) for edge in edges],
        PAIRWISE.index(pairwise),
        float(diagonal),
        float(tolerance),
        max_iterations,
        float(eta),
        bool(check),
    )
    parts = x.split([level.shape[2] for level in nodes], 2) if len(nodes) > 1 else [x]
    scores = tuple(part.reshape(u.shape).to(u.dtype) for part, u in zip(parts, unaries))
    result = scores if several else scores[0]
    return (result, SolveReport(iterations, states)) if return_report else result


def definite_limit(
    sizes: Sequence[tuple[int, int]], *, pairwise: str, labels: int, diagonal: float
) -> float:
    """The absolute pairwise value below which the matrix is positive definite (Gershgorin).

    Args:
        sizes: (H, W) of each level, finest first.
        pairwise, diagonal: as in :func:`gaussian_crf`.
        labels: L.
    """
    most = 4
    for number, (height, width) in enumerate(sizes):
        edges = 4 + (number + 1 < len(sizes))
        if number:
            finer = sizes[number - 1]
            edges += -(-finer[0] // max(height, 1)) * -(-finer[1] // max(width, 1))
        most = max(most, edges)
    factor = {"potts": max(labels - 1, 1), "general": labels, "reduced": 1}[pairwise]
    return diagonal / (most * factor)


def _levels(op: str, name: str, value: Levels) -> list[Tensor]:
    levels = [value] if isinstance(value, Tensor) else list(value)
    for level in levels:
        if not isinstance(level, Tensor) or not level.is_floating_point():
            got = level.dtype if isinstance(level, Tensor) else type(level).__name__
            raise TypeError(f"{op}: {name} must be a floating Tensor or several, got {got}")
    return levels


def _check_numbers(
    op: str, diagonal: float, tolerance: float, max_iterations: int, eta: float
) -> None:
    if not 0 < diagonal < math.inf:
        raise ValueError(f"{op}: diagonal must be positive and finite, got {diagonal!r}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"{op}: tolerance must be in [0, 1), got {tolerance!r}")
    if isinstance(max_iterations, bool) or not isinstance(max_iterations, int):
        raise TypeError(f"{op}: max_iterations must be an integer, got {max_iterations!r}")
    if not 0 <= max_iterations < 2**31 - 1:
        raise ValueError(f"{op}: max_iterations must be at least 0, got {max_iterations}")
    if not -math.inf < eta < math.inf:
        raise ValueError(f"{op}: eta must be finite, got {eta!r}")


def _check_shapes(
    op: str,
    unaries: list[Tensor],
    rights: list[Tensor],
    downs: list[Tensor],
    ups: list[Tensor],
    pairwise: str,
) -> None:
    first = unaries[0]
    if first.dim() != 4 or first.shape[1] < 1:
        raise ValueError(
            f"{op}: unary must be (N, L, H, W) with at least one label, got {tuple(first.shape)}"
        )
    batch, labels = first.shape[:2]
    if pairwise == "reduced" and labels < 2:
        raise ValueError(f"{op}: unary must have at least 2 labels with 'reduced', got {labels}")
    planes = labels * labels if pairwise == "general" else 1
    for name, given, wanted in (
        ("horizontal", rights, len(unaries)),
        ("vertical", downs, len(unaries)),
        ("across", ups, len(unaries) - 1),
    ):
        if len(given) != wanted:
            raise ValueError(f"{op}: {name} must have {wanted} levels, got {len(given)}")

    def expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{op}: {name} must be {shape}, got {tuple(tensor.shape)}")
        if tensor.device != first.device:
            raise ValueError(f"{op}: {name} must be on {first.device}, got {tensor.device}")

    for number, level in enumerate(unaries):
        if level.dim() != 4:
            raise ValueError(f"{op}: unary must be (N, L, H, W), got {tuple(level.shape)}")
        height, width = level.shape[2:]
        expect("unary", level, (batch, labels, height, width))
        expect("horizontal", rights[number], (batch, planes, height, max(width - 1, 0)))
        expect("vertical", downs[number], (batch, planes, max(height - 1, 0), width))
        if number + 1 < len(unaries):
            expect("across", ups[number], (batch, planes, height, width))
        if number:
            finer = unaries[number - 1].shape[2:]
            if not (height <= finer[0] and width <= finer[1]) or (
                height * width == 0 and finer[0] * finer[1] > 0
            ):
                raise ValueError(
                    f"{op}: unary must have levels from fine to coarse, got {tuple(finer)} and "
                    f"then {(height, width)}"
                )


@torch.library.register_fake("segkern::gaussian_crf")
def _gaussian_crf_fake(unary, edges, pairwise, diagonal, tolerance, max_iterations, eta, check):
    batch, labels = unary.shape[:2]
    systems = (labels + 1, 1, labels)[pairwise]
    counts = [unary.new_empty((batch, systems), dtype=torch.int32) for _ in range(2)]
    return (unary.new_empty(unary.shape), *counts)


@torch.library.register_fake("segkern::_gaussian_crf_backward")
def _gaussian_crf_backward_fake(
    grad, solution, edges, pairwise, diagonal, tolerance, max_iterations, eta, check, want_edges
):
    return (
        grad.new_empty(grad.shape),
        [edge.new_empty(edge.shape) for edge in edges] if want_edges else [],
    )


def _setup_gaussian_crf(ctx, inputs, output):
    _, edges, *ctx.numbers = inputs
    x, iterations, states = output
    ctx.mark_non_differentiable(iterations, states)
    ctx.save_for_backward(x, *edges)


def _backward_gaussian_crf(ctx, grad, _iterations, _states):
    x, *edges = ctx.saved_tensors
    want_edges = any(ctx.needs_input_grad[1])
    grad_unary, grad_edges = torch.ops.segkern._gaussian_crf_backward.default(
        grad, x, edges, *ctx.numbers, want_edges
    )
    return (
        grad_unary,
        grad_edges if want_edges else [None] * len(edges),
        *[None] * len(ctx.numbers),
    )


torch.library.register_autograd(
    "segkern::gaussian_crf", _backward_gaussian_crf, setup_context=_setup_gaussian_crf
)


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("gaussian_crf: second derivatives are not available")


torch.library.register_autograd(
    "segkern::_gaussian_crf_backward",
    _refuse_second_derivative,
    setup_context=lambda ctx, inputs, output: None,
)
