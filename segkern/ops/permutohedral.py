"""The permutohedral lattice: Gaussian filtering over points in up to 16 dimensions."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from segkern import _load
from segkern.ops._arrays import as_tensor, like
from segkern.ops._crf_features import Widths, image_features
from segkern.ops._memory import require_memory

MAX_DIMS = 16


class Lattice(NamedTuple):
    """The lattice of N sets of P points in d dimensions, D = d + 1 corners each.

    All shapes follow from (N, P, d): arrays over vertices have room for the most there can be,
    V = P * D, of which the first ``count`` are used and the rest is unspecified. Vertices are
    sorted by their coordinates, on CUDA by the first corner that touches them, so that the same
    features give the same bits on every run.

    Attributes:
        vertex: (N, P, D) int32, the vertices of each point's simplex.
        weight: (N, P, D) float32, their barycentric weights.
        slot: (N, P, D) int32, how the device's kernels sum corners; see ``csrc/permutohedral``.
        offsets: (N, V + 1) int32, slots ``offsets[v]`` to ``offsets[v + 1]`` make up vertex v.
        neighbours: (N, D, V, 2) int32, vertices before and after along each axis; ``count`` where
            there is none.
        count: (N,) int64, the vertices of each set.
    """

    vertex: Tensor
    weight: Tensor
    slot: Tensor
    offsets: Tensor
    neighbours: Tensor
    count: Tensor

    @property
    def dims(self) -> int:
        """d, the dimensions of the features."""
        return self.vertex.shape[2] - 1


def permutohedral_build(
    features: Any = None,
    *,
    image: Any = None,
    sxy: Widths | None = None,
    srgb: Widths | None = None,
) -> Lattice:
    """The lattice over which :func:`permutohedral_filter` filters: of points, or of an image.

    Args:
        features: (N, P, d) or (P, d) points, floating, 1 <= d <= 16, in units of the Gaussian's
            standard deviation; any strides. They are read in float32. The order of the dimensions
            is part of the definition: another order gives another lattice. A tensor or an array.
        image, sxy, srgb: instead of features, those of an image and widths: the arguments of
            :func:`image_features`.

    Returns:
        The :class:`Lattice`, of tensors; its shapes do not depend on the values of the features.

    Raises:
        TypeError, ValueError: an argument of the wrong form.
        MemoryError: the arrays may need more than is left; raised before any of it is taken.
        RuntimeError: on the CPU, features that are not finite, or that span more lattice cells
            than a 127-bit key can number (widths that are far too small). On CUDA looking would
            stall the stream: there features that are not finite, or too wide for 128-bit keys
            whose fields the device lays out itself, give weights that are NaN. Whatever is legal
            on the CPU fits.

    Deterministic, and independent of the number of threads. On CUDA nothing waits for the device,
    and a build can be captured in a CUDA graph. No gradient flows through the lattice.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> lattice = ops.permutohedral_build(torch.tensor([[4 / 3, 2 / 3]]))
        >>> lattice.vertex.shape, int(lattice.count)
        (torch.Size([1, 1, 3]), 3)
    """
    op = "permutohedral_build"
    if (features is None) == (image is None):
        raise TypeError(f"{op}: features or image must be given, and not both")
    if image is None and (sxy is not None or srgb is not None):
        raise TypeError(f"{op}: sxy and srgb must be given with image, got features")
    if image is not None:
        if sxy is None:
            raise TypeError(f"{op}: sxy must be given with image, got None")
        features = image_features(image, sxy=sxy, srgb=srgb)
    features = as_tensor(op, "features", features)
    if not features.is_floating_point():
        raise TypeError(f"{op}: features must be floating, got {features.dtype}")
    if features.dim() not in (2, 3) or not 1 <= features.shape[-1] <= MAX_DIMS:
        raise ValueError(
            f"{op}: features must be (N, P, d) or (P, d) with 1 <= d <= {MAX_DIMS}, "
            f"got {tuple(features.shape)}"
        )
    if features.is_cuda:
        _load.require_cuda(op)
    if features.dim() == 2:
        features = features[None]
    what = f"the lattice of {tuple(features.shape)} features"
    require_memory(op, what, lattice_bytes(*features.shape), features.device)
    return Lattice(*torch.ops.segkern.permutohedral_build.default(features.detach().float()))


def permutohedral_filter(
    values: Any,
    lattice: Lattice,
    *,
    features: Tensor | None = None,
    reverse: bool = False,
) -> Any:
    """Values filtered with a Gaussian of the lattice's features: about sum_j exp(-|fi - fj|^2/2).

    The result is not normalised, and where features are sparse it is less than the exact sum: to
    average, divide by the filter of ones. The self-message i = j is part of it.

    Args:
        values: (N, C, P) or (N, C, H, W) with H * W = P, any number of spatial dimensions; or
            without N. float64, float32, float16 or bfloat16; summed in float32. A tensor or an
            array.
        lattice: from :func:`permutohedral_build`, for N sets of points, or one that all share.
        features: those that `lattice` was built from, to get their gradient: it is exact for the
            lattice filter away from the borders of simplices, where the filter has kinks, and in
            more than 3 dimensions steps.
        reverse: blurs the axes in the opposite order, which is the exact transpose: the filter is
            not symmetric, because vertices that no point touches do not exist.

    Returns:
        Of the shape, dtype and kind of `values`.

    Raises:
        TypeError, ValueError: an argument of the wrong form.
        RuntimeError: a lattice for other points.

    Differentiable in the values and `features`, once. Deterministic, and independent of the
    number of threads. Adams, Baek and Davis, Computer Graphics Forum 29(2), 2010.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> lattice = ops.permutohedral_build(torch.rand(1, 10, 3))
        >>> ops.permutohedral_filter(torch.ones(1, 2, 10), lattice).shape
        torch.Size([1, 2, 10])
    """
    op = "permutohedral_filter"
    given = values
    values = as_tensor(op, "values", given)
    if not isinstance(lattice, Lattice):
        raise TypeError(f"{op}: lattice must be a Lattice, got {type(lattice).__name__}")
    if not values.is_floating_point():
        raise TypeError(f"{op}: values must be floating, got {values.dtype}")
    points = lattice.vertex.shape[1]
    rows = values
    if values.dim() == 2 and lattice.vertex.shape[0] == 1 and values.shape[1] == points:
        rows = values[None]
    if rows.dim() < 3 or math.prod(rows.shape[2:]) != points:
        raise ValueError(
            f"{op}: values must be (N, C, P) with P = {points} in one or more dimensions, "
            f"got {tuple(values.shape)}"
        )
    if values.is_cuda:
        _load.require_cuda(op)
    if features is not None:
        if not isinstance(features, Tensor):
            raise TypeError(f"{op}: features must be a Tensor, got {type(features).__name__}")
        features = (features[None] if features.dim() == 2 else features).float()
        expected = (*lattice.vertex.shape[:2], lattice.dims)
        if tuple(features.shape) != expected:
            raise ValueError(
                f"{op}: features must be {expected} like the lattice's, got {tuple(features.shape)}"
            )
    rows = rows.flatten(2)
    filtered = torch.ops.segkern.permutohedral_filter.default(
        rows if rows.is_cuda else rows.float(), features, list(lattice), bool(reverse)
    )
    return like(op, "values", given, filtered.to(values.dtype).view(values.shape))


def lattice_bytes(batch: int, points: int, dims: int) -> int:
    """Bytes of the tensors of a lattice that are always written, and of neighbours at the worst."""
    corners = dims + 1
    return batch * points * corners * (12 + 4 + 8 * corners)


@torch.library.register_fake("segkern::permutohedral_build")
def _build_fake(features):
    batch, points, dims = features.shape
    corners = dims + 1
    bound = points * corners
    shapes = [(batch, points, corners)] * 3
    shapes += [(batch, bound + 1), (batch, corners, bound, 2), (batch,)]
    dtypes = [torch.int32, torch.float32, torch.int32, torch.int32, torch.int32, torch.int64]
    return tuple(
        features.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
    )


@torch.library.register_fake("segkern::permutohedral_filter")
def _filter_fake(values, features, lattice, reverse):
    return values.new_empty(values.shape)


@torch.library.register_fake("segkern::_permutohedral_feature_grad")
def _feature_grad_fake(grad, values, features, lattice, reverse):
    return features.new_empty(features.shape)


def _setup_filter(ctx, inputs, output):
    values, features, lattice, reverse = inputs
    wanted = features is not None and ctx.needs_input_grad[1]
    ctx.save_for_backward(*((values, features) if wanted else (None, None)), *lattice)
    ctx.reverse = reverse


def _backward_filter(ctx, grad):
    values, features, *lattice = ctx.saved_tensors
    grad_values = grad_features = None
    if ctx.needs_input_grad[0]:
        grad_values = torch.ops.segkern.permutohedral_filter.default(
            grad, None, lattice, not ctx.reverse
        )
    if features is not None:
        grad_features = torch.ops.segkern._permutohedral_feature_grad.default(
            grad, values, features, lattice, ctx.reverse
        )
    return grad_values, grad_features, [None] * len(lattice), None


torch.library.register_autograd(
    "segkern::permutohedral_filter", _backward_filter, setup_context=_setup_filter
)


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("permutohedral_filter: features have no second derivatives")


torch.library.register_autograd(
    "segkern::_permutohedral_feature_grad",
    _refuse_second_derivative,
    setup_context=lambda ctx, inputs, output: None,
)
