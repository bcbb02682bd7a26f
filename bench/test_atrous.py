"""Atrous convolutions beside torch's in the better of its two layouts.

The peer gets its input in the layout in which it is faster, whatever the row's layout: what a user
could have had without this package. Least bytes: input, weights and output once. The shapes are
those of ASPP over a ResNet at output stride 8 (65x65 of a 513x513 image) and 16, of DeepLab v3+'s
decoder (129x129), and of ESPNet at 512x1024. Backward rows are a forward pass and the gradients of
the input and of every weight. Rows called deterministic run, on both sides, under
``torch.use_deterministic_algorithms``: held against the row above them they show what it costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from bench.cases import Case, Contender
from segkern import nn, ops
from segkern.ops import conv_table

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
HALF = ("float32", "bfloat16")
FP16 = ("float16",)
WIDE = (1, 2048, 65, 65)

STRIDE8, MAP129 = "ASPP at stride 8", "129x129 map"
NARROW, SMALL = (1, 256, 65, 65), (1, 16, 17, 17)
MAP, SMALL_MAP = (1, 256, 129, 129), (1, 16, 19, 19)

# title, operator, full size, small size, setting (rates, then channels a group), dtypes
SHAPES = (
    (STRIDE8, "depthwise", WIDE, (1, 32, 17, 17), "rate 6", HALF),
    (STRIDE8, "depthwise", WIDE, (1, 32, 17, 17), "rate 18", HALF),
    (MAP129, "depthwise", MAP, SMALL_MAP, "rate 6", HALF),
    (MAP129, "depthwise", MAP, SMALL_MAP, "rate 18", HALF),
    (MAP129, "depthwise_backward", MAP, SMALL_MAP, "rate 18", HALF[:1]),
    (MAP129, "depthwise_backward", MAP, SMALL_MAP, "rate 18 deterministic", HALF[:1]),
    (STRIDE8, "grouped", NARROW, SMALL, "rate 6 by 4", HALF[:1]),
    (STRIDE8, "grouped", NARROW, SMALL, "rate 18 by 8", HALF[:1]),
    (STRIDE8, "grouped_backward", NARROW, SMALL, "rate 6 by 4", HALF[:1]),
    (STRIDE8, "dense", NARROW, SMALL, "rate 6", HALF),
    (STRIDE8, "dense", NARROW, SMALL, "rate 12", HALF),
    (STRIDE8, "dense", NARROW, SMALL, "rate 18", HALF),
    (STRIDE8, "dense_backward", NARROW, SMALL, "rate 12", HALF[1:]),
    (STRIDE8, "dense_backward", NARROW, SMALL, "rate 12 deterministic", HALF[1:]),
    (STRIDE8, "pointwise", WIDE, (1, 32, 17, 17), "rate 1", HALF),
    (STRIDE8, "separable", NARROW, SMALL, "rate 12", HALF[:1]),
    (STRIDE8, "separable_backward", NARROW, SMALL, "rate 12", HALF[:1]),
    (STRIDE8, "aspp", WIDE, (1, 32, 17, 17), "rates 6 12 18", HALF[:1]),
    ("ASPP at stride 16", "aspp", (1, 2048, 33, 33), (1, 32, 9, 9), "rates 6 12 18", HALF[:1]),
    (STRIDE8, "aspp_separable", WIDE, (1, 32, 17, 17), "rates 6 12 18", HALF[:1]),
    ("ASPP, larger rates", "aspp_separable", WIDE, (1, 32, 17, 17), "rates 12 24 36", HALF[:1]),
    ("ESPNet level 2", "esp", (1, 64, 128, 256), (1, 20, 16, 32), "5 branches", HALF),
    ("ESPNet level 2", "esp_backward", (1, 64, 128, 256), (1, 20, 16, 32), "5 branches", HALF[:1]),
    ("ESPNet level 3", "esp", (1, 128, 64, 128), (1, 20, 16, 32), "5 branches", HALF),
    ("full-size map", "esp", (1, 64, 512, 1024), (1, 20, 24, 40), "5 branches", HALF[:1]),
)
# Timed on CUDA only.
ON_CUDA = (
    ("ASPP, wide input", "dense", WIDE, (1, 32, 17, 17), "rate 12 outputs 256", HALF),
    ("ASPP, wide input", "dense_backward", WIDE, (1, 32, 17, 17), "rate 12 outputs 256", HALF),
    ("ResNeXt 32x4d", "grouped", (1, 128, 65, 65), (1, 32, 9, 9), "rate 1 by 4", HALF),
    ("ResNeXt 32x32d", "grouped", (1, 1024, 65, 65), (1, 64, 9, 9), "rate 2 by 32", HALF),
    ("ResNeXt 32x4d", "grouped_backward", (1, 128, 65, 65), (1, 32, 9, 9), "rate 1 by 4", HALF),
    (STRIDE8, "separable", WIDE, (1, 32, 17, 17), "rate 12 outputs 256", HALF),
    ("ESPNet level 2", "esp", (1, 64, 128, 256), (1, 20, 16, 32), "5 branches", FP16),
    ("full-size map", "esp", (1, 64, 512, 1024), (1, 20, 24, 40), "5 branches", FP16),
)


def declare_cases(timed: bool) -> list[Case]:
    """Every shape, type and layout; at full size when timed."""
    return [
        Case(
            "atrous",
            operator,
            full if timed else small,
            dtype,
            layout,
            setting,
            title,
            options={"numbers": [int(word) for word in setting.split() if word.isdecimal()]}
            | ({} if row in SHAPES else {"devices": ("cuda",)}),
        )
        for row in SHAPES + ON_CUDA
        for title, operator, full, small, setting, dtypes in [row]
        for dtype in dtypes
        for layout in LAYOUTS
    ]


def plain(model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same layers with torch's operators only: an ASPP or ESP module, evaluated."""

    def run(layers, x):
        for layer in layers:
            if isinstance(layer, torch.nn.Conv2d):
                x = F.conv2d(
                    x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
                )
            else:
                x = layer(x)
        return x

    def aspp(x):
        outputs = []
        for branch in model.convs:
            separable = isinstance(branch, nn.SeparableConv2d)
            layers = [*branch.depthwise, *branch.pointwise] if separable else list(branch)
            y = run(layers, x)
            outputs.append(F.interpolate(y, x.shape[2:]) if y.shape[2:] != x.shape[2:] else y)
        return run(model.project, torch.cat(outputs, 1))

    def esp(x):
        y = run([model.c1.conv], x)
        parts = [run([getattr(model, f"d{rate}").conv], y) for rate in model.rates]
        for k in range(2, len(parts)):
            parts[k] = parts[k] + parts[k - 1]
        return model.bn.act(model.bn.bn(torch.cat(parts, 1) + x))

    return aspp if isinstance(model, nn.ASPP) else esp


def calls(case: Case) -> tuple[Callable, Callable, list[torch.Tensor]]:
    """(ours, torch's, the weights), both over an input."""
    channels = case.shape[1]
    dtype = getattr(torch, case.dtype)
    torch.manual_seed(0)
    numbers = case.options["numbers"]
    operator = case.operator.removesuffix("_backward")
    if operator in ("aspp", "aspp_separable", "esp"):
        if operator == "esp":
            model = nn.ESPModule(channels, channels)
        else:
            outputs = 256 if channels == 2048 else 16
            model = nn.ASPP(channels, numbers, outputs, separable="separable" in operator)
        model = model.to(case.device, dtype).eval()
        return model, plain(model), list(model.parameters())
    rate = numbers[0]
    kernel = 1 if operator == "pointwise" else 3
    pad = rate * (kernel // 2)
    inputs = {"depthwise": 1, "separable": 1, "grouped": numbers[-1]}.get(operator, channels)
    narrow = operator == "pointwise" or "outputs" in case.setting
    outputs = min(channels, 256) if narrow else channels
    groups = channels // inputs

    def random_weight(*shape: int) -> torch.Tensor:
        weight = torch.randn(shape, device=case.device) / (shape[1] * kernel**2) ** 0.5
        return weight.to(dtype).requires_grad_()

    weight = random_weight(channels if operator == "separable" else outputs, inputs, kernel, kernel)
    if operator == "separable":
        square = random_weight(outputs, channels, 1, 1)
        given = {"padding": pad, "dilation": rate, "depthwise_activation": "relu"}
        return (
            lambda x: ops.atrous_separable_conv2d(x, weight, square, activation="relu", **given),
            lambda x: F.conv2d(
                F.conv2d(x, weight, None, 1, pad, rate, groups).relu(), square
            ).relu(),
            [weight, square],
        )
    return (
        lambda x: ops.atrous_conv2d(x, weight, padding=pad, dilation=rate, groups=groups),
        lambda x: F.conv2d(x, weight, None, 1, pad, rate, groups),
        [weight],
    )


def with_backward(call: Callable, weights: list[torch.Tensor]) -> Callable:
    """Forward and all gradients, of a gradient that is the output itself; returns the input's."""

    def run(x):
        leaf = x.detach().requires_grad_()
        y = call(leaf)
        return torch.autograd.grad(y, [leaf, *weights], y.detach())[0]

    return run


def deterministic(call: Callable) -> Callable:
    def run(x):
        before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            return call(x)
        finally:
            torch.use_deterministic_algorithms(before)

    return run


def better_layout(call: Callable, x: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The layout in which torch is faster, by the best of three calls each, and `x` in it."""
    best = {}
    for name, memory_format in LAYOUTS.items():
        there = x.contiguous(memory_format=memory_format)
        call(there)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            call(there)
            if x.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        best[name] = (min(times), there)
    name = min(best, key=lambda key: best[key][0])
    return name, best[name][1]


def test_atrous(case: Case, runner) -> None:
    def build():
        ours, theirs, weights = calls(case)
        if case.operator.endswith("backward"):
            ours, theirs = with_backward(ours, weights), with_backward(theirs, weights)
        if case.setting.endswith("deterministic"):
            ours, theirs = deterministic(ours), deterministic(theirs)
        x = torch.randn(case.shape, device=case.device).to(getattr(torch, case.dtype))
        x = x.contiguous(memory_format=LAYOUTS[case.layout])
        size = sum(weight.nbytes for weight in weights)
        return ours, theirs, size, x, *better_layout(theirs, x)

    key = (case.operator, *case.data)
    backward = case.operator.endswith("backward")
    with torch.set_grad_enabled(backward):
        ours, theirs, weights, x, layout, peer_x = runner.inputs(key, build)
    narrow = case.operator == "pointwise" or "outputs" in case.setting
    least = x.nbytes * (1 if narrow else 2) + weights

    def check(variant: str, got, expected) -> None:
        if case.device == "cpu" and not backward:
            assert got.is_contiguous(memory_format=LAYOUTS[case.layout])
        scale = expected.float().abs().max()
        tf32 = case.device == "cuda" and got.dtype == torch.float32
        slack = 40 * (2**-13 if tf32 else torch.finfo(got.dtype).eps) * scale
        assert (got.float() - expected.float()).abs().max() <= slack

    # On CUDA the table names torch until these rows have been measured.
    kinds = ("depthwise", "grouped", "dense", "separable", "esp")
    forced = dict.fromkeys(kinds, "segkern") if case.device == "cuda" else {}
    contenders = {"fused": Contender(lambda: lambda: ours(x), least)}
    if on_hopper(case):

        def by_wgmma():
            with conv_table.override(dense="wgmma"):
                return ours(x)

        contenders["wgmma"] = Contender(lambda: by_wgmma, least)
    with torch.set_grad_enabled(backward), conv_table.override(**forced):
        runner.run(
            case,
            ours=contenders,
            peer=Contender(lambda: lambda: theirs(peer_x), least, library=f"torch {layout}"),
            check=check,
        )


def on_hopper(case: Case) -> bool:
    """Whether the dense kernel for Hopper runs this case too."""
    return (
        case.device == "cuda"
        and case.operator.startswith("dense")
        and case.dtype != "float32"
        and torch.cuda.get_device_capability() == (9, 0)
    )
