"""Whole networks of atrous convolution, inference and training step, beside plain torch.

``convert`` is torchvision's DeepLab v3 after ``segkern.nn.convert``, beside itself before;
``espnet`` is ESPNet (p 2, q 8) beside the same network in torch's layers only; ``deeplabv3plus`` is
DeepLab v3+ on ResNet-50 at output stride 16 with separable branches, beside torchvision's
``deeplabv3_resnet50`` as it is, another network for the same task. CPU rows have one reduced image,
or two in training; CUDA rows have the papers' sizes, in bfloat16 by autocast. Least bytes: image
and parameters once.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch

from bench.cases import Case, Contender
from segkern import create_model, nn
from segkern.models._prelu import PReLU
from segkern.ops import conv_table

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# title, operator, setting; images on the CPU (small, full) and on CUDA
ROWS = (
    ("torchvision DeepLab v3, ResNet-50", "convert", "resnet50 inference", 33, 257, 513),
    ("torchvision DeepLab v3, ResNet-101", "convert", "resnet101 inference", 33, 257, 513),
    ("DeepLab v3+, ResNet-50, stride 16", "deeplabv3plus", "inference", 33, 257, 513),
    ("DeepLab v3+, ResNet-50, stride 16", "deeplabv3plus", "training step", 33, 193, 513),
    ("ESPNet", "espnet", "inference", 32, 256, 512),
    ("ESPNet", "espnet", "training step", 32, 128, 512),
)


def declare_cases(timed: bool) -> list[Case]:
    """One CPU row and one CUDA row each; at full size when timed."""
    cases = []
    for title, operator, setting, small, reduced, paper in ROWS:
        training = setting == "training step"
        wide = 2 if operator == "espnet" else 1  # images twice as wide as high
        for device, side, batch in (
            ("cpu", reduced, 1 + training),
            ("cuda", paper, 8 if training else 1),
        ):
            side, batch = (side, batch) if timed else (small, 1 + training)
            shape = (batch, 3, side, side * wide)
            dtype = "float32" if device == "cpu" else "bfloat16"
            options = {"devices": (device,)}
            cases.append(
                Case(
                    "atrous_networks",
                    operator,
                    shape,
                    dtype,
                    "contiguous",
                    setting,
                    title,
                    options=options,
                )
            )
    return cases


class PlainESP(nn.ESPModule):
    """The ESP module in torch's layers, one after the other, as released."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reduced = self.c1.conv(x)
        parts = [getattr(self, f"d{rate}").conv(reduced) for rate in self.rates]
        for k in range(2, len(parts)):
            parts[k] = parts[k] + parts[k - 1]
        merged = torch.cat(parts, 1)
        norm, act = self._norm_and_activation()
        merged = norm(merged + x if self.residual else merged)
        return merged if act is None else act(merged)


PLAIN = {
    nn.AtrousConv2d: torch.nn.Conv2d,
    nn.ConvNormAct: torch.nn.Sequential,
    nn.ESPModule: PlainESP,
    PReLU: torch.nn.PReLU,
}


def in_plain_torch(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with torch's layers in the place of ours."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return model


def networks(case: Case) -> tuple[torch.nn.Module, torch.nn.Module]:
    """(ours, the peer), with the same weights where they are the same network."""
    torch.manual_seed(0)
    if case.operator == "espnet":
        ours = create_model("espnet", num_classes=20)
        return ours, in_plain_torch(ours)
    segmentation = pytest.importorskip("torchvision.models.segmentation")
    trunk = case.setting.split()[0] if case.operator == "convert" else "resnet50"
    theirs = getattr(segmentation, f"deeplabv3_{trunk}")(
        weights=None, weights_backbone=None, num_classes=21
    )
    if case.operator == "convert":
        ours = copy.deepcopy(theirs).eval()
        nn.convert(ours, convolutions="all", fold=True)
        return ours, theirs
    ours = create_model(
        "deeplabv3plus", backbone="resnet50", output_stride=16, separable=True, num_classes=21
    )
    return ours, theirs


def step(model: torch.nn.Module, case: Case, image: torch.Tensor) -> Callable[[], torch.Tensor]:
    """One call of a network: its scores, or a whole training step and then its loss."""
    training = case.setting == "training step"
    model.to(case.device).train(training).requires_grad_(training)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9) if training else None
    target = torch.zeros(image.shape[0], *image.shape[2:], dtype=torch.long, device=image.device)

    def run() -> torch.Tensor:
        half = case.dtype == "bfloat16"
        lower = torch.autocast("cuda", dtype=torch.bfloat16) if half else contextlib.nullcontext()
        with torch.set_grad_enabled(training), lower:
            scores = model(image)["out"]
            if not training:
                return scores
            loss = torch.nn.functional.cross_entropy(scores, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def test_atrous_networks(case: Case, runner) -> None:
    def build():
        image = torch.randn(case.shape, device=case.device)
        ours, theirs = networks(case)
        weights = sum(p.nbytes for p in ours.parameters())
        return step(ours, case, image), step(theirs, case, image), image.nbytes + weights

    ours, theirs, least = runner.inputs((case.operator, *case.data), build)

    def check(variant: str, got, expected) -> None:
        assert got.shape == expected.shape
        if case.operator != "deeplabv3plus" and case.setting != "training step":
            slack = (1e-3 if case.dtype == "float32" else 5e-2) * expected.float().abs().max()
            assert (got.float() - expected.float()).abs().max() <= slack

    # On CUDA the table names torch until the kernels' own rows have been measured.
    forced = dict.fromkeys(("depthwise", "dense"), "segkern") if case.device == "cuda" else {}
    library = "plain torch" if case.operator == "espnet" else "torchvision"
    with conv_table.override(**forced):
        runner.run(
            case,
            ours={"network": Contender(lambda: ours, least)},
            peer=Contender(lambda: theirs, least, library=library),
            check=check,
        )
