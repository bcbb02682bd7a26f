"""Every kernel compiles for every listed architecture without a warning, and none spills."""

from __future__ import annotations

import re

import pytest

from tests.kernels.compile_kernels import ARCHITECTURES, ROOT, resources, toolkit

# Kernels that may spill, with the reason. None of ours does.
MAY_SPILL = {"cub::": "the toolkit's own sort and scan, tuned by its authors"}

# Most registers at which blocks of 256 threads still fill three quarters of an SM's warps.
FULL_OCCUPANCY = 40


@pytest.fixture(scope="module")
def kernels():
    if toolkit() is None:
        pytest.skip("no CUDA toolkit: the kernels cannot be compiled on this machine")
    return resources()


def test_all_kernels_of_the_sources_are_compiled_for_all_architectures(kernels):
    declared = set()
    for path in (ROOT / "csrc").rglob("*.cuh"):
        declared |= set(re.findall(r"__global__ void[^;{]*?(\w+_kernel)\(", path.read_text()))
    assert declared
    for architecture in ARCHITECTURES:
        names = {k.name for k in kernels if k.architecture == architecture}
        missing = {name for name in declared if not any(f"::{name}" in full for full in names)}
        assert not missing, f"{architecture}: never instantiated: {sorted(missing)}"


def test_no_kernel_spills(kernels):
    spilling = [
        f"{k.architecture} {k.name}: {k.spill_stores} bytes stored, {k.spill_loads} loaded"
        for k in kernels
        if (k.spill_stores or k.spill_loads) and not any(name in k.name for name in MAY_SPILL)
    ]
    assert not spilling, "\n".join(spilling)


def test_vector_kernels_keep_their_occupancy(kernels):
    """The kernels that set the speed of SegNet's pooling need registers for few enough warps."""
    fast = [k for k in kernels if re.search(r"(max_pool|expand|select)_2x2\w*<.*int\b", k.name)]
    assert fast
    heavy = [
        f"{k.architecture} {k.name}: {k.registers}" for k in fast if k.registers > FULL_OCCUPANCY
    ]
    assert not heavy, "\n".join(heavy)
