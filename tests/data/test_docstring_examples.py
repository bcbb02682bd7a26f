"""The examples in the docstrings of data, transforms, losses and metrics."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = {
    "segkern.data.aspect": 2,
    "segkern.data.open": 2,
    "segkern.data.sampler": 1,
    "segkern.transforms.instances": 3,
    "segkern.transforms.pair": 3,
    "segkern.losses.border": 3,
    "segkern.losses.cross_entropy": 3,
    "segkern.metrics.coco": 6,
    "segkern.metrics.confusion": 1,
    "segkern.metrics.panoptic": 9,
    "segkern.metrics.segmentation": 3,
}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
    assert result.failed == 0
    assert result.attempted >= MODULES[name], "an example was lost"
