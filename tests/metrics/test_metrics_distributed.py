"""Adding up over processes. Few imports: each process repeats them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from segkern.metrics import SegmentationMetrics


def maps():
    g = torch.Generator().manual_seed(9)
    target = torch.randint(0, 5, (3, 11, 13), generator=g)
    pred = torch.where(torch.rand(target.shape, generator=g) < 0.6, target, 2)
    return pred, target.masked_fill(torch.rand(target.shape, generator=g) < 0.1, 255)


def count(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    pred, target = maps()
    metrics = SegmentationMetrics(5, boundary=True)
    metrics.update(pred[rank::2], target[rank::2])
    metrics.all_reduce()
    Path(folder, f"{rank}.json").write_text(json.dumps(metrics.compute()))
    torch.distributed.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    whole = SegmentationMetrics(5, boundary=True)
    whole.update(*maps())
    wanted = whole.compute()
    boundary = wanted.pop("boundary_f1")
    torch.multiprocessing.spawn(count, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        got = json.loads((tmp_path / f"{rank}.json").read_text())
        assert got.pop("boundary_f1") == pytest.approx(boundary, rel=1e-12)
        assert got == wanted
