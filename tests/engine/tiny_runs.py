"""Settings of tiny runs and the command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Two training steps an epoch of 6 images of 48 x 64: a fraction of a second.
TINY = {
    "data": "synthetic:48x64",
    "limit_train": 12,
    "limit_val": 5,
    "batch_size": 4,
    "epochs": 2,
    "class_weights": "none",
}


def command(*arguments: object) -> list[str]:
    """The command line of `segkern` with this tree's package."""
    return [sys.executable, "-m", "segkern.cli", *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "OMP_NUM_THREADS": "1",
        **extra,
    }


def run_command(*arguments: object, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), env=environment(**extra), capture_output=True, text=True, timeout=600
    )
