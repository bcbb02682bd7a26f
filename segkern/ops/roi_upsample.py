"""Writing boxes back to a feature map: RoIUpsample, the inverse of RoIAlign."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format

from segkern import _load
from segkern.ops._boxes import Boxes, box_rows, check_floating, number, sampling

#: RoiWeights of csrc/roi/roi.h, by mode and divide_by_count.
_MODES = {("pinv", False): 1, ("pinv", True): 2, ("norm", False): 3, ("gather", False): 4}
#: RoiReduction of csrc/roi/roi_ops.h.
_SUM, _MEAN, _MAX = range(3)
_REDUCTIONS = {"sum": _SUM, "mean": _MEAN, "max": _MAX}


def roi_upsample(
    input: Tensor,
    rois: Boxes,
    output_size: Sequence[int],
    *,
    spatial_scale: float = 1.0,
    mode: str = "gather",
    reduction: str = "mean",
    sampling_ratio: int = 0,
    aligned: bool | None = None,
    divide_by_count: bool = False,
) -> Tensor:
    """Adds boxes of features to the map they lie on, 0 where there are none: RoIUpsample.

    Args:
        input: (K, C, h, w), the bins of each box; float64, float32, float16 or bfloat16. Half types
            are summed in float32.
        rois: (K, 5) rows of image, x1, y1, x2, y2 in image pixels, or a list of (K_i, 4), one an
            image. They get no gradient.
        output_size: (N, H, W) of the map.
        spatial_scale: pixels of the map per image pixel.
        mode: "gather": a pixel's centre is interpolated between the centres of the bins, which
            count 0 beyond the box, as masks are pasted; for it the next two arguments mean nothing.
            "norm": bilinear samples of RoIAlign's grid spread their bin; a pixel is their weighted
            mean, so constants stay what they are. "pinv": each sample adds the smallest pixels of
            which it would read its bin's value, a sum over all samples (the published operator).
        reduction: over the boxes that cover a pixel, those with a weight above 0 at it: "mean",
            "sum" or "max". A maximum is the largest of what the boxes write, also where that is
            negative; it and its gradient are the first box's on ties, and a NaN's before all.
        sampling_ratio: samples a bin and axis, at most 1024; 0 or less takes one a pixel of the
            map, rounded up.
        aligned: as of roi_align; None is True for "norm" and False for "pinv".
        divide_by_count: divide by the samples of a bin; for "pinv" alone.

    Returns:
        (N, C, H, W), in the dtype and memory format of `input`; 0 where no box is.

    Raises:
        ValueError, TypeError: an argument of the wrong form.
        RuntimeError: rois unlike input; no kernels for the device.

    The backward is the exact adjoint. Deterministic on every device, backward too. Differentiable
    once, in `input`. Boxes of an image that is not in the batch, of zero or negative size, with a
    NaN or beyond 2^23 pixels of the map write nothing. After Li et al., "Attention-guided Unified
    Network for Panoptic Segmentation", arXiv:1812.03904.

    Example:
        >>> import torch
        >>> from segkern import ops
        >>> box = torch.tensor([[0.0, 1.0, 0.0, 3.0, 2.0]])
        >>> ops.roi_upsample(torch.ones(1, 1, 2, 2), box, (1, 2, 4))
        tensor([[[[0., 1., 1., 0.],
                  [0., 1., 1., 0.]]]])
    """
    op = "roi_upsample"
    check_floating(op, "input", input, 4)
    sizes = list(output_size) if isinstance(output_size, Sequence) else [output_size]
    whole = all(isinstance(v, (int, torch.SymInt)) and not isinstance(v, bool) for v in sizes)
    if len(sizes) != 3 or not whole or any(v < 0 for v in sizes):
        raise ValueError(f"{op}: output_size must be three sizes (N, H, W), got {output_size!r}")
    if mode not in ("gather", "norm", "pinv"):
        raise ValueError(f"{op}: mode must be 'gather', 'norm' or 'pinv', got {mode!r}")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"{op}: reduction must be 'mean', 'sum' or 'max', got {reduction!r}")
    if divide_by_count and mode != "pinv":
        raise ValueError(f"{op}: divide_by_count must be False for mode {mode!r}, got True")
    rows = box_rows(op, rois, input)
    if rows.shape[0] != input.shape[0]:
        raise ValueError(
            f"{op}: rois must be one for each of the {input.shape[0]} of input, got {rows.shape[0]}"
        )
    if input.is_cuda:
        _load.require_cuda(op)
    return torch.ops.segkern.roi_upsample.default(
        input,
        rows,
        *sizes,
        number(op, "spatial_scale", spatial_scale),
        _MODES[mode, bool(divide_by_count)],
        _REDUCTIONS[reduction],
        sampling(op, sampling_ratio),
        mode != "pinv" if aligned is None else bool(aligned),
    )[0]


@torch.library.register_fake("segkern::roi_upsample")
def _roi_upsample_fake(
    input, rois, batch, height, width, spatial_scale, mode, reduction, sampling_ratio, aligned
):
    out = torch.empty(
        (batch, input.shape[1], height, width),
        dtype=input.dtype,
        device=input.device,
        memory_format=suggest_memory_format(input),
    )
    if reduction == _MAX:
        return out, torch.empty_like(out, dtype=torch.int32)
    shape = (batch, 1, height, width) if reduction == _MEAN else (0,)
    return out, input.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("segkern::_roi_upsample_backward")
def _roi_upsample_backward_fake(
    grad, rois, chosen, bins_h, bins_w, spatial_scale, mode, sampling_ratio, aligned
):
    return torch.empty(
        (rois.shape[0], grad.shape[1], bins_h, bins_w),
        dtype=grad.dtype,
        device=grad.device,
        memory_format=suggest_memory_format(grad),
    )


def _setup_roi_upsample(ctx, inputs, output):
    input, rois, _, _, _, scale, mode, reduction, sampling_ratio, aligned = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(rois, output[1])
    ctx.reduction = reduction
    ctx.options = (*input.shape[2:], scale, mode, sampling_ratio, aligned)


def _backward_roi_upsample(ctx, grad, _):
    rois, notes = ctx.saved_tensors
    if ctx.reduction == _MEAN:
        grad = grad / notes.clamp(min=1)
    chosen = notes if ctx.reduction == _MAX else None
    grad_input = torch.ops.segkern._roi_upsample_backward.default(grad, rois, chosen, *ctx.options)
    return grad_input, *(None,) * 9


torch.library.register_autograd(
    "segkern::roi_upsample", _backward_roi_upsample, setup_context=_setup_roi_upsample
)


def _refuse_second_derivative(ctx, *grads):
    raise RuntimeError("roi_upsample: second derivatives are not available")


torch.library.register_autograd(
    "segkern::_roi_upsample_backward",
    _refuse_second_derivative,
    setup_context=lambda ctx, inputs, output: None,
)
