"""Every check of the model tester on every registered network."""

from __future__ import annotations

import inspect

import pytest
from modeltester import CHECKS, GOLDEN, networks


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", networks())
def test_network(name, check, device, tmp_path):
    function = CHECKS[check]
    extra = {"folder": tmp_path} if "folder" in inspect.signature(function).parameters else {}
    function(name, device, **extra)


def test_golden_files_are_of_registered_networks():
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == networks()
