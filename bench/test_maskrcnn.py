"""Mask R-CNN on ResNet-50 beside torchvision's: inference, and forward and backward of a step.

Both have the same seeded weights, images and draws. Neither fits in a CUDA graph: the number of
boxes is read by the host. Least bytes: the weights and the images once.
"""

from __future__ import annotations

import pytest
import torch

from bench.cases import Case, Contender
from segkern.models import create_model

detection = pytest.importorskip("torchvision.models.detection")

# device, full and small size of an image, images of a training step. The full size on CUDA is that
# of COCO's images in the papers' protocol.
SETTINGS = (("cuda", (800, 1333), (96, 128), 2), ("cpu", (320, 480), (96, 128), 1))
OBJECTS = 8


def declare_cases(timed: bool) -> list[Case]:
    return [
        Case(
            "maskrcnn",
            f"maskrcnn_{operator}",
            (images if operator == "step" else 1, 3, *(full if timed else small)),
            "float32",
            "contiguous",
            "resnet50",
            {"inference": "inference", "step": "forward and backward"}[operator],
            options={"devices": (device,), "graphs": False},
        )
        for device, full, small, images in SETTINGS
        for operator in ("inference", "step")
    ]


def measure_norms(trunk: torch.nn.Module, height: int, width: int) -> None:
    """Statistics of noise for batch norm: without any, features grow from block to block until a
    rounding decides which proposals are kept."""
    for module in trunk.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        trunk.train()(torch.randn(2, 3, height, width))


def build(case: Case):
    """torchvision's network and ours with its weights, images and targets."""
    torch.manual_seed(0)
    count, _, height, width = case.shape
    sizes = {"min_size": height, "max_size": width}
    theirs = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **sizes)
    for name, parameter in theirs.named_parameters():
        # Scores that differ: detections and proposals as of a trained network, at its thresholds.
        if name.endswith(("cls_score.weight", "cls_logits.weight")):
            torch.nn.init.normal_(parameter, std=0.05)
    measure_norms(theirs.backbone, height, width)
    ours = create_model("maskrcnn", **sizes)
    ours.load_state_dict(theirs.state_dict())
    training = case.operator.endswith("step")
    images, targets = [], []
    for _ in range(count):
        corner = torch.rand(OBJECTS, 2) * torch.tensor([width, height]) * 0.6
        size = (0.1 + 0.25 * torch.rand(OBJECTS, 2)) * torch.tensor([width, height])
        boxes = torch.cat((corner, corner + size), 1)
        masks = torch.zeros(OBJECTS, height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.long().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        images.append(torch.rand(3, height, width, device=case.device))
        target = {"boxes": boxes, "labels": torch.randint(1, 91, (OBJECTS,)), "masks": masks}
        targets.append({key: value.to(case.device) for key, value in target.items()})
    networks = [network.to(case.device).train(training) for network in (theirs, ours)]
    return *networks, images, targets


def test_maskrcnn(case: Case, runner) -> None:
    key = (case.operator, *case.data)
    theirs, ours, images, targets = runner.inputs(key, lambda: build(case))
    training = case.operator.endswith("step")
    least = sum(p.nbytes for p in ours.parameters()) + sum(image.nbytes for image in images)

    def work(network):
        def infer():
            with torch.no_grad():
                return network(images)

        def step():
            torch.manual_seed(0)
            network.zero_grad()
            losses = network(images, [dict(target) for target in targets])
            sum(losses.values()).backward()
            return losses

        return step if training else infer

    def check(_, got, expected) -> None:
        if training:
            for name, loss in expected.items():
                assert (got[name] - loss).abs() < 1e-2 * loss.abs() + 1e-3, name
            return
        for own, want in zip(got, expected, strict=True):
            assert own["masks"].shape[1:] == want["masks"].shape[1:]
            count = min(len(own["scores"]), len(want["scores"]))
            assert (own["scores"][:count] - want["scores"][:count]).abs().max() < 1e-2

    runner.run(
        case,
        ours={"segkern": Contender(lambda: work(ours), least, library="segkern")},
        peer=Contender(lambda: work(theirs), least, library="torchvision"),
        check=check,
    )
