"""Runs every CUDA kernel once over the small operator cases, for compute-sanitizer.

compute-sanitizer --tool memcheck python -m tests.kernels.small_cases
"""

from __future__ import annotations

import math
import sys

import torch

from segkern import env, ops
from segkern.ops import conv_table
from segkern.ops.dense_crf import mean_field, pairwise_term
from tests.opcases import POOL_CASES

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def run_pooling() -> int:
    """Forward, backward, unpooling, its backward and conversion over all cases; returns a count."""
    runs = 0
    for case in POOL_CASES:
        for dtype in DTYPES:
            for layout in (torch.contiguous_format, torch.channels_last):
                if layout == torch.channels_last and len(case.shape) != 4:
                    continue
                for index_format in case.formats:
                    x = torch.randn(case.shape, dtype=torch.float32).to("cuda", dtype)
                    x = x.contiguous(memory_format=layout).requires_grad_()
                    window = (case.kernel, case.stride, case.padding, case.dilation)
                    y, indices = ops.max_pool2d_with_indices(
                        x, *window, ceil_mode=case.ceil_mode, index_format=index_format
                    )
                    y.backward(torch.ones_like(y))
                    plane = case.shape[-2:]
                    flat = ops.convert_pool_indices(
                        indices, "flat", *window, input_size=plane, output_size=y.shape[-2:]
                    )
                    for given in (indices, flat):
                        values = y.detach().requires_grad_()
                        raw = torch.ops.segkern.max_unpool2d
                        out = raw(values, given, *case.window_lists(), *plane)
                        out.backward(torch.ones_like(out))
                    runs += 1
    torch.cuda.synchronize()
    return runs


def run_separable_gaussian() -> int:
    """All numbers of axes, with the gradients to values and widths."""
    shapes = ((2, 3, 7), (1, 2, 9, 65), (1, 1, 300, 3), (1, 2, 4, 5, 6))
    for shape in shapes:
        values = torch.rand(shape, device="cuda", requires_grad=True)
        width = torch.tensor(3.0, device="cuda", requires_grad=True)
        ops.separable_gaussian(values, width).square().sum().backward()
    torch.cuda.synchronize()
    return len(shapes)


def run_resampling() -> int:
    """Resampling up, down and from one pixel, and pyramids, with gradients, in both layouts."""
    runs = 0
    for dtype in DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            for shape, size in (
                ((2, 5, 6, 7), (13, 28)),
                ((1, 36, 2, 1), (20, 30)),
                ((1, 3, 2, 3), (5, 2600)),
                ((1, 8, 20, 30), (7, 9)),
            ):
                x = torch.randn(shape, device="cuda").to(dtype, memory_format=layout)
                y = ops.resize_bilinear(x.requires_grad_(), size)
                y.backward(torch.ones_like(y))
                for level in ops.pyramid_pool(x):
                    level.sum().backward()
                runs += 1
    torch.cuda.synchronize()
    return runs


def run_deep_parsing() -> int:
    """Local filters and mean field passes, forward and backward, over bands, tiles and layouts."""
    runs = 0
    for dtype in DTYPES:
        for shape, colours, kernel in (
            ((2, 3, 70, 11), 3, (50, 50)),
            ((1, 2, 3, 300), 1, (2, 192)),
            ((1, 1, 1, 1), 4, 3),
        ):
            q = torch.rand(shape, device="cuda").to(dtype).requires_grad_()
            image = torch.rand(shape[0], colours, *shape[2:], device="cuda")
            weight = torch.ones((), device="cuda", requires_grad=True)
            for multiply in (True, False):
                out = ops.local_quadratic_filter(q, image, weight, 0.1, kernel, multiply=multiply)
                out.backward(torch.ones_like(out))
                runs += 1
        for layout in (torch.contiguous_format, torch.channels_last):
            unary, penalty = (
                torch.randn(2, channels, 5, 61, device="cuda")
                .to(dtype, memory_format=layout)
                .requires_grad_()
                for channels in (3, 15)
            )
            least, _ = ops.block_min_pool(penalty, 5)
            least.backward(torch.ones_like(least))
            for log in (True, False):
                out = ops.mixture_mean_field(unary, penalty, log=log)
                out.backward(torch.ones_like(out))
            runs += 1
    torch.cuda.synchronize()
    return runs


def run_depthwise() -> int:
    """Depthwise convolutions, forward and both gradients, in both layouts and kernels."""
    runs = 0
    for dtype in DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            for channels, plane, kernel, window in (
                (8, (40, 5), 3, (1, 2, 2)),
                (3, (9, 11), 3, (1, 18, 18)),
                (36, (9, 8), 3, (2, 1, 1)),
                (4, (8, 9), 4, (1, 6, 4)),
            ):
                x = torch.randn(2, channels, *plane, device="cuda")
                x = x.to(dtype, memory_format=layout).requires_grad_()
                weight = torch.randn(channels, 1, kernel, kernel, device="cuda").to(dtype)
                weight.requires_grad_()
                stride, padding, dilation = window
                with conv_table.override(depthwise="segkern"):
                    y = ops.atrous_conv2d(
                        x,
                        weight,
                        stride=stride,
                        padding=padding,
                        dilation=dilation,
                        groups=channels,
                        activation="relu",
                    )
                y.backward(torch.ones_like(y))
                runs += 1
    torch.cuda.synchronize()
    return runs


def run_dense() -> int:
    """Tensor-core convolutions and their gradients, over tiles, ragged channels and taps."""
    runs = 0
    kernels = ["segkern"]
    if torch.cuda.get_device_capability() == (9, 0):
        kernels.append("wgmma")
    for name in kernels:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            if name == "wgmma" and dtype == torch.float32:
                continue
            for shape, outputs, kernel, rate in (
                ((2, 8, 9, 20), 16, 3, 6),
                ((1, 136, 30, 7), 8, 3, 18),
                ((1, 40, 5, 6), 136, 1, 1),
                ((1, 72, 15, 15), 320, 3, 4),
            ):
                x = torch.randn(shape, device="cuda").to(dtype).requires_grad_()
                weight = torch.randn(outputs, shape[1], kernel, kernel, device="cuda").to(dtype)
                weight.requires_grad_()
                with conv_table.override(dense=name):
                    y = ops.atrous_conv2d(x, weight, padding=rate * (kernel // 2), dilation=rate)
                y.backward(torch.ones_like(y))
                runs += 1
    torch.cuda.synchronize()
    return runs


def run_small_groups() -> int:
    """Small groups with their gradients, and fused separable convolutions, in both layouts."""
    runs = 0
    for dtype in DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            for shape, outputs, groups, stride, rate in (
                ((2, 6, 9, 20), 10, 2, 1, 6),
                ((1, 64, 5, 7), 64, 2, 2, 1),
                ((1, 3, 4, 4), 15, 3, 1, 18),
            ):
                x = torch.randn(shape, device="cuda").to(dtype, memory_format=layout)
                x.requires_grad_()
                weight = torch.randn(outputs, shape[1] // groups, 3, 3, device="cuda").to(dtype)
                weight.requires_grad_()
                window = {"stride": stride, "padding": rate, "dilation": rate, "groups": groups}
                with conv_table.override(grouped="segkern"):
                    y = ops.atrous_conv2d(x, weight, **window, activation="relu")
                y.backward(torch.ones_like(y))
                runs += 1
            for shape, outputs, rate in (((2, 40, 9, 7), 21, 6), ((1, 8, 5, 5), 300, 1)):
                x = torch.randn(shape, device="cuda").to(dtype, memory_format=layout)
                depthwise = torch.randn(shape[1], 1, 3, 3, device="cuda").to(dtype)
                pointwise = torch.randn(outputs, shape[1], 1, 1, device="cuda").to(dtype)
                with torch.no_grad(), conv_table.override(separable="segkern"):
                    ops.atrous_separable_conv2d(
                        x, depthwise, pointwise, padding=rate, dilation=rate, activation="relu"
                    )
                runs += 1
    torch.cuda.synchronize()
    return runs


def run_pyramids() -> int:
    """Spatial pyramids with and without a reduction, of vectors and of single elements."""
    runs = 0
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for layout in (torch.contiguous_format, torch.channels_last):
            for shape, reduced, outputs in (
                ((2, 64, 9, 36), 12, (16, 12, 12, 12, 12)),
                ((1, 13, 5, 7), None, (37, 5, 5)),
                ((1, 128, 17, 70), 25, (28, 25, 25, 25, 25)),
            ):
                x = torch.randn(shape, device="cuda").to(dtype, memory_format=layout)
                width = reduced or shape[1]
                reduce = torch.randn(width, shape[1], 1, 1, device="cuda").to(dtype)
                branches = [torch.randn(n, width, 3, 3, device="cuda").to(dtype) for n in outputs]
                with torch.no_grad(), conv_table.override(esp="segkern"):
                    ops.esp_block(
                        x,
                        reduce if reduced else None,
                        branches,
                        residual=bool(reduced),
                        scale=torch.rand(sum(outputs), device="cuda"),
                        activation="prelu",
                        activation_weight=torch.rand(1, device="cuda"),
                    )
                runs += 1
    torch.cuda.synchronize()
    return runs


def run_gaussian_crf() -> int:
    """Both passes of every model, on one level and on three, in one launch and in many."""
    runs = 0
    for sizes in ([(5, 7)], [(6, 5), (3, 5), (1, 2)], [(66, 70)], [(125, 100)]):
        for pairwise, planes in (("potts", 1), ("general", 9), ("reduced", 1)):
            for dtype in (torch.float64, torch.float32):

                def values(*shape, dtype=dtype):
                    return torch.rand(2, *shape, dtype=dtype, device="cuda", requires_grad=True)

                x = ops.gaussian_crf(
                    [values(3, h, w) for h, w in sizes],
                    [values(planes, h, w - 1) for h, w in sizes],
                    [values(planes, h - 1, w) for h, w in sizes],
                    [values(planes, h, w) for h, w in sizes[:-1]],
                    pairwise=pairwise,
                    diagonal=60.0,
                    max_iterations=40,
                    check=True,
                )
                sum(level.square().sum() for level in x).backward()
                runs += 1
    torch.cuda.synchronize()
    return runs


def run_permutohedral() -> int:
    """Lattices of every dimension and of keys beyond 64 bits; filters and both gradients."""
    runs = 0
    for dims in range(1, 17):
        for spread in (1.0, 1e5 if dims < 6 else 100.0, math.nan):
            for dtype in DTYPES:
                features = (spread * torch.randn(2, 70, dims, device="cuda")).requires_grad_()
                values = torch.rand(2, 5, 70, device="cuda").to(dtype).requires_grad_()
                lattice = ops.permutohedral_build(features)
                filtered = ops.permutohedral_filter(values, lattice, features=features)
                filtered.backward(torch.ones_like(filtered))
                runs += 1
    torch.cuda.synchronize()
    return runs


def run_dense_crf() -> int:
    """Every width of rows, kind of cost and number of launches; objective and gradients."""
    runs = 0
    for labels in (2, 11, 21, 40, 70, 130, 256):
        for shape in ((), (labels,), (labels, labels)):
            for terms in (1, 5):
                unary = torch.rand(2, labels, 77, device="cuda", requires_grad=True)
                start = torch.rand(2, labels, 77, device="cuda").softmax(1).requires_grad_()
                made = []
                for n in range(terms):
                    features = torch.randn(1 + n % 2, 77, 2 + n % 4, device="cuda")
                    cost = torch.rand(shape, device="cuda", requires_grad=True)
                    made.append(pairwise_term(features, cost))
                for memory in ("recompute", "store"):
                    q, _ = mean_field(unary, made, 2, q0=start, memory=memory, return_kl=True)
                    q.square().sum().backward()
                    runs += 1
    torch.cuda.synchronize()
    return runs


def run_masks() -> int:
    """Packed masks of every dtype, their overlaps, Matrix NMS and NMS of boxes."""
    runs = 0
    for dtype in (*DTYPES, torch.bool):
        for count, height, width in ((1, 1, 1), (70, 9, 33), (9, 300, 500)):
            masks = (torch.randn(count, height, width, device="cuda") > 0.5).to(dtype)
            packed = ops.pack_masks(masks)
            ops.packed_from_bits(packed.bits, width)
            ops.unpack_masks(packed)
            ops.mask_iou(packed, masks)
            labels = torch.arange(count, device="cuda") % 3
            scores = torch.rand(count, device="cuda")
            for kernel in ("gaussian", "linear"):
                ops.matrix_nms(masks, labels, scores, kernel=kernel)
                ops.matrix_nms(packed, labels, scores, kernel=kernel)
            for boxes in (packed.boxes.double(), packed.boxes.half()):
                ops.nms(boxes, scores, 0.5)
                ops.batched_nms(boxes, scores, labels, 0.5)
            runs += 1
    torch.cuda.synchronize()
    return runs


def run_boxes() -> int:
    """RoIAlign on one map and a pyramid, RoIUpsample in all modes, pasting; with gradients."""
    runs = 0
    rows = [[0, 1, 1, 9, 7], [1, -3, 2, 40, 9], [1, math.nan, 0, 1, 1], [5, 0, 0, 4, 4]]
    rois = torch.tensor(rows, device="cuda")
    for dtype in DTYPES:
        for layout in (torch.contiguous_format, torch.channels_last):
            maps = [
                torch.randn(2, 70, 18 >> k, 26 >> k, device="cuda")
                .to(dtype, memory_format=layout)
                .requires_grad_()
                for k in range(2)
            ]
            for ratio in (0, 2):
                out = ops.roi_align(maps[0], rois, (17, 3), sampling_ratio=ratio)
                out.backward(torch.ones_like(out))
                out = ops.roi_align(
                    maps, rois, 2, spatial_scale=(1.0, 0.5), canonical_size=8, canonical_level=1
                )
                out.backward(torch.ones_like(out))
                for mode in ("gather", "norm", "pinv"):
                    for reduction in ("mean", "max"):
                        back = ops.roi_upsample(
                            out.detach().requires_grad_(),
                            rois,
                            (2, 9, 35),
                            mode=mode,
                            reduction=reduction,
                        )
                        back.backward(torch.ones_like(back))
                runs += 1
    ops.paste_masks(torch.rand(4, 28, 28, device="cuda"), rois[:, 1:], (30, 50), memory_limit=1)
    torch.cuda.synchronize()
    return runs


def main() -> int:
    if not torch.cuda.is_available():
        print("nothing run:", "; ".join(env()["reasons"]))
        return 1
    print(f"{run_pooling()} pooling cases ran")
    print(f"{run_separable_gaussian()} separable Gaussians ran")
    print(f"{run_resampling()} resamplings and pyramids ran")
    print(f"{run_deep_parsing()} deep parsing cases ran")
    print(f"{run_depthwise()} depthwise convolutions ran")
    print(f"{run_dense()} dense convolutions ran")
    print(f"{run_small_groups()} convolutions of small groups and separable ones ran")
    print(f"{run_pyramids()} spatial pyramids ran")
    print(f"{run_gaussian_crf()} Gaussian CRF cases ran")
    print(f"{run_permutohedral()} lattices ran")
    print(f"{run_dense_crf()} dense CRFs ran")
    print(f"{run_masks()} sets of masks ran")
    print(f"{run_boxes()} cases of boxes ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
