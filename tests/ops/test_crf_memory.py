"""Calls that need more memory than there is say so before they take any."""

from __future__ import annotations

import pytest
import torch

from segkern import ops
from segkern.ops import _mean_field, _memory

CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Files of a machine with 4 GiB available, in no memory cgroup."""
    monkeypatch.setattr(_memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(_memory, "_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "cgroup").mkdir()
    text = f"MemTotal: 99999999 kB\nMemAvailable: {4 * 2**20} kB\n"
    (tmp_path / "proc" / "meminfo").write_text(text)
    return tmp_path


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_what_the_machine_has(machine):
    assert _memory.available_bytes(CPU) == 4 * 2**30


def test_limits_of_cgroups(machine):
    write(machine / "proc" / "self", cgroup="0::/a/b\n")
    write(machine / "cgroup" / "a" / "b", memory__max="max\n", memory__current="5\n")
    assert _memory.available_bytes(CPU) == 4 * 2**30
    write(
        machine / "cgroup" / "a",
        memory__max=f"{2**30}\n",
        memory__current=f"{2**29}\n",
        memory__stat=f"anon 7\ninactive_file {2**28}\n",
    )
    assert _memory.available_bytes(CPU) == 2**29 + 2**28


def test_limits_of_the_first_version_of_cgroups(machine):
    write(machine / "proc" / "self", cgroup="7:cpu:/x\n4:memory:/x\n0::/\n")
    write(
        machine / "cgroup" / "memory",  # a container sees its own limit at the root
        memory__limit_in_bytes=f"{2**30}\n",
        memory__usage_in_bytes=f"{2**31}\n",
    )
    assert _memory.available_bytes(CPU) == 0


def test_where_nothing_is_known(machine, monkeypatch):
    (machine / "proc" / "meminfo").unlink()
    monkeypatch.setattr(_memory.os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10}.get)
    assert _memory.available_bytes(CPU) == 40960
    monkeypatch.delattr(_memory.os, "sysconf")
    assert _memory.available_bytes(CPU) is None
    _memory.require_memory("op", "this", 2**60, CPU)


def test_a_hundred_million_points(machine):
    with pytest.raises(
        MemoryError,
        match=r"permutohedral_build: the lattice of \(1, 100000000, 5\) features may need "
        r"35.8 GiB, and 4.0 GiB are available on cpu",
    ):
        ops.permutohedral_build(torch.empty(1).expand(1, 100_000_000, 5))


def test_a_hundred_million_pixels(machine):
    unary = torch.empty(1).expand(1, 2, 10_000, 10_000)
    image = torch.empty(1, dtype=torch.uint8).expand(1, 3, 10_000, 10_000)
    match = (
        r"dense_crf: \(1, 2, 10000, 10000\) energies with lattices of \(1, 100000000, 2\), "
        r"\(1, 100000000, 5\) features may need .* GiB, and 4.0 GiB"
    )
    with pytest.raises(MemoryError, match=match):
        ops.dense_crf(unary, image)
    gaussian = {"sxy": 3.0, "weight": 3.0, "exact": True}
    with pytest.raises(MemoryError, match=r"dense_crf: \(1, 2, 10000, 10000\) energies may need"):
        ops.dense_crf(unary, gaussian=gaussian, bilateral=None)


def test_many_labels(machine, monkeypatch):
    monkeypatch.setattr(_memory, "SMALL", 2**20)
    monkeypatch.setattr(_mean_field, "SMALL", 2**20)
    (machine / "proc" / "meminfo").write_text(f"MemAvailable: {140 * 2**10} kB\n")
    unary, image = torch.rand(1, 2, 200, 200), torch.rand(1, 3, 200, 200) * 255
    ops.dense_crf(unary, image, iterations=1)
    with pytest.raises(MemoryError, match=r"dense_crf: mean field over \(1, 256, 40000\) may need"):
        ops.dense_crf(unary[:, :1].expand(1, 256, 200, 200), image, iterations=1)
