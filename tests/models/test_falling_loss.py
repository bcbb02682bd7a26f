"""Every network learns: fifty steps on a CPU at reduced size, with its recipe's loss."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from modeltester import case_of, networks

from segkern.data import open_dataset
from segkern.engine.module import SegmentationModule
from segkern.engine.optim import build_optimizer
from segkern.models import create_model, get_entry

STEPS = 50
# Trained with --slow: minutes, as no option makes them light.
HEAVY = ("deconvnet", "segnet")
SIZES = {"deconvnet": (193, 196)}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n for n in networks()],
)
def test_the_loss_falls(name):
    """Four pictures over and over. The optimiser is Adam at a rate for light networks without
    pre-training, as the papers' rates are for others; loss, outputs, label grid, class weights'
    form and input are the recipe's."""
    size = SIZES.get(name, (48, 64))
    data = open_dataset(f"synthetic:{size[0]}x{size[1]}", "train", length=2 if name in SIZES else 4)
    images, target = (torch.stack(part) for part in zip(*(data[i] for i in range(len(data)))))
    torch.manual_seed(0)
    network = create_model(name, num_classes=data.num_classes, **case_of(name).options)
    recipe = dataclasses.replace(
        get_entry(name).recipe,
        optimizer="adam",
        lr=3e-3,
        weight_decay=0.0,
        head_lr_mult=1.0,
        bias_lr_mult=1.0,
        crf_weights_lr_mult=1.0,
        crf_compatibility_lr_mult=1.0,
    )
    network.recipe = recipe
    module = SegmentationModule(
        network, recipe, num_classes=data.num_classes, total_steps=STEPS
    ).train()
    optimizer = build_optimizer(network, recipe)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = module.training_step((images, target), 0)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < 0.85 * first, f"{name}: {first:.4g} at the start, {last:.4g} at the end"
