"""Atrous convolutions beside torch's in the better of its two layouts.

The peer gets its input in the layout in which it is faster, whatever the row's layout: what a user
could have had without this package. Least bytes: input, weights and output once. The shapes are
those of ASPP over a ResNet at output stride 8 (65x65 of a 513x513 image) and 16, of DeepLab v3+'s
decoder (129x129), and of ESPNet at 512x1024.
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
WIDE = (1, 2048, 65, 65)

# title, operator, full size, small size, setting (outputs and rates), dtypes
SHAPES = (
    ("ASPP at stride 8", "depthwise", WIDE, (1, 32, 17, 17), "rate 6", HALF),
    ("ASPP at stride 8", "depthwise", WIDE, (1, 32, 17, 17), "rate 18", HALF),
    ("129x129 map", "depthwise", (1, 256, 129, 129), (1, 16, 19, 19), "rate 6", HALF),
    ("129x129 map", "depthwise", (1, 256, 129, 129), (1, 16, 19, 19), "rate 18", HALF),
    ("129x129 map", "depthwise_backward", (1, 256, 129, 129), (1, 16, 19, 19), "rate 18", HALF[:1]),
    ("ASPP at stride 8", "dense", (1, 256, 65, 65), (1, 16, 17, 17), "rate 6", HALF),
    ("ASPP at stride 8", "dense", (1, 256, 65, 65), (1, 16, 17, 17), "rate 12", HALF),
    ("ASPP at stride 8", "dense", (1, 256, 65, 65), (1, 16, 17, 17), "rate 18", HALF),
    ("ASPP at stride 8", "pointwise", WIDE, (1, 32, 17, 17), "rate 1", HALF),
    ("ASPP at stride 8", "aspp", WIDE, (1, 32, 17, 17), "rates 6 12 18", HALF[:1]),
    ("ASPP at stride 16", "aspp", (1, 2048, 33, 33), (1, 32, 9, 9), "rates 6 12 18", HALF[:1]),
    ("ASPP at stride 8", "aspp_separable", WIDE, (1, 32, 17, 17), "rates 6 12 18", HALF),
    ("ASPP, larger rates", "aspp_separable", WIDE, (1, 32, 17, 17), "rates 12 24 36", HALF[:1]),
    ("ESPNet level 2", "esp", (1, 64, 128, 256), (1, 20, 16, 32), "5 branches", HALF),
    ("ESPNet level 3", "esp", (1, 128, 64, 128), (1, 20, 16, 32), "5 branches", HALF),
    ("full-size map", "esp", (1, 64, 512, 1024), (1, 20, 24, 40), "5 branches", HALF[:1]),
)
# What this package has a kernel for on CUDA only.
ON_CUDA = (
    ("ASPP, wide input", "dense", WIDE, (1, 32, 17, 17), "rate 12 outputs 256", HALF),
    ("ASPP, wide input", "dense_backward", WIDE, (1, 32, 17, 17), "rate 12 outputs 256", HALF),
    ("ResNeXt 32x4d", "grouped", (1, 128, 65, 65), (1, 32, 9, 9), "rate 1 groups 32", HALF),
    ("ResNeXt 32x32d", "grouped", (1, 1024, 65, 65), (1, 64, 9, 9), "rate 2 groups 32", HALF),
    (
        "ResNeXt 32x4d",
        "grouped_backward",
        (1, 128, 65, 65),
        (1, 32, 9, 9),
        "rate 1 groups 32",
        HALF,
    ),
    ("ASPP at stride 8", "separable", WIDE, (1, 32, 17, 17), "rate 12 outputs 256", HALF),
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


def calls(case: Case) -> tuple[Callable, Callable, int]:
    """(ours, torch's, bytes of the weights), both over an input."""
    channels = case.shape[1]
    dtype = getattr(torch, case.dtype)
    torch.manual_seed(0)
    numbers = case.options["numbers"]
    if case.operator in ("aspp", "aspp_separable", "esp"):
        if case.operator == "esp":
            model = nn.ESPModule(channels, channels)
        else:
            outputs = 256 if channels == 2048 else 16
            model = nn.ASPP(channels, numbers, outputs, separable="separable" in case.operator)
        model = model.to(case.device, dtype).eval().requires_grad_(False)
        return model, plain(model), sum(p.nbytes for p in model.parameters())
    rate = numbers[0]
    depthwise = case.operator.startswith("depthwise")
    pointwise = case.operator == "pointwise"
    if case.operator == "separable":
        return separable_calls(case, rate, numbers[1])
    kernel = 1 if pointwise else 3
    grouped = case.operator.startswith("grouped")
    groups = channels if depthwise else numbers[1] if grouped else 1
    inputs = channels // groups
    outputs = min(channels, 256) if pointwise else channels
    if len(numbers) > 1 and not grouped:
        outputs = numbers[1]
    weight = torch.randn(outputs, inputs, kernel, kernel, device=case.device)
    weight = (weight / (inputs * kernel**2) ** 0.5).to(dtype)
    pad = rate * (kernel // 2)
    if case.operator.endswith("_backward"):
        weight.requires_grad_()
    return (
        lambda x: ops.atrous_conv2d(x, weight, padding=pad, dilation=rate, groups=groups),
        lambda x: F.conv2d(x, weight, None, 1, pad, rate, groups),
        weight.nbytes,
    )


def separable_calls(case: Case, rate: int, outputs: int) -> tuple[Callable, Callable, int]:
    """Depthwise, norm, ReLU, pointwise, norm, ReLU in one call, and torch's six."""
    channels, dtype = case.shape[1], getattr(torch, case.dtype)
    depthwise = (torch.randn(channels, 1, 3, 3, device=case.device) / 3).to(dtype)
    weight = torch.randn(outputs, channels, 1, 1, device=case.device) / channels**0.5
    weight = weight.to(dtype)
    norms = [
        torch.rand(n, device=case.device) + 0.5 for n in (channels, channels, outputs, outputs)
    ]

    def ours(x):
        names = ("depthwise_scale", "depthwise_shift", "scale", "shift")
        return ops.atrous_separable_conv2d(
            x,
            depthwise,
            weight,
            padding=rate,
            dilation=rate,
            depthwise_activation="relu",
            activation="relu",
            **dict(zip(names, norms, strict=True)),
        )

    per_channel = [t.to(dtype).view(1, -1, 1, 1) for t in norms]

    def theirs(x):
        y = F.conv2d(x, depthwise, None, 1, rate, rate, channels)
        y = (y * per_channel[0] + per_channel[1]).relu()
        return (F.conv2d(y, weight) * per_channel[2] + per_channel[3]).relu()

    return ours, theirs, depthwise.nbytes + weight.nbytes


def with_backward(call: Callable) -> Callable:
    """Forward and both gradients, of a gradient that is the output itself."""

    def run(x):
        leaf = x.detach().requires_grad_()
        y = call(leaf)
        return torch.autograd.grad(y, leaf, y.detach())[0]

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
            ours, theirs = with_backward(ours), with_backward(theirs)
        x = torch.randn(case.shape, device=case.device).to(getattr(torch, case.dtype))
        x = x.contiguous(memory_format=LAYOUTS[case.layout])
        return ours, theirs, weights, x, *better_layout(theirs, x)

    key = (case.operator, *case.data)
    ours, theirs, weights, x, layout, peer_x = runner.inputs(key, build)
    narrow = case.operator in ("pointwise", "separable") or "outputs" in case.setting
    least = x.nbytes * (1 if narrow else 2) + weights

    def check(variant: str, got, expected) -> None:
        if case.device == "cpu":
            assert got.is_contiguous(memory_format=LAYOUTS[case.layout])
        scale = expected.float().abs().max()
        tf32 = case.device == "cuda" and got.dtype == torch.float32
        slack = 40 * (2**-13 if tf32 else torch.finfo(got.dtype).eps) * scale
        assert (got.float() - expected.float()).abs().max() <= slack

    # On CUDA the table names torch until these rows have been measured.
    kinds = ("depthwise", "grouped", "dense", "separable")
    forced = dict.fromkeys(kinds, "segkern") if case.device == "cuda" else {}
    backward = case.operator.endswith("backward")
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
