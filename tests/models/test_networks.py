"""Every check of the model tester on every registered network."""

from __future__ import annotations

import inspect

import pytest
from modeltester import CHECKS, GOLDEN

from segkern.models import get_entry, list_models

# Networks of instances take lists of images and have tests of their own.
NAMES = [name for name in list_models() if get_entry(name).task == "semantic"]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_network(name, check, device, tmp_path):
    function = CHECKS[check]
    extra = {"folder": tmp_path} if "folder" in inspect.signature(function).parameters else {}
    function(name, device, **extra)


def test_golden_files_are_of_registered_networks():
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == NAMES
