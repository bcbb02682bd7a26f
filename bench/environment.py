"""What a figure was measured on: device, driver, versions, commit. No host names, no paths."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
# A benchmark run writes these itself, so they do not make the measured code a modified one.
_OWN_OUTPUT = (":(exclude)bench/results", ":(exclude)README.md")


def cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def describe_device(device: str) -> dict[str, object]:
    """Name, slug (the results file's name) and what else sets one model apart from the next."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        major, minor = torch.cuda.get_device_capability()
        return {
            "kind": "cuda",
            "name": name,
            "slug": slug("cuda", name),
            "capability": f"{major}.{minor}",
        }
    name, cores = cpu_name(), os.cpu_count() or 1
    return {
        "kind": "cpu",
        "name": name,
        "slug": slug("cpu", name, f"{cores} cores"),
        "cores": cores,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def slug(*parts: str) -> str:
    text = "-".join(parts).lower().replace("(r)", "").replace("(tm)", "")
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def driver_version() -> str | None:
    """The NVIDIA driver's version, or None where none is found."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return found.group(0) if found else None


def commit(root: Path = ROOT) -> dict[str, object]:
    """The commit checked out at ``root`` and whether tracked files differ from it."""
    head = _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD").strip()
    if not head:
        return {"commit": None, "modified": None}
    changed = _output(
        "git",
        "-C",
        str(root),
        "--no-optional-locks",
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        ".",
        *_OWN_OUTPUT,
    )
    return {"commit": head, "modified": bool(changed.strip())}


def describe_run(device: str, malloc: str) -> dict[str, object]:
    """Everything about a run that is not about one row."""
    import segkern

    now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
    run = {
        "date": now.isoformat().replace("+00:00", "Z"),
        **commit(),
        "segkern": segkern.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    if device == "cuda":
        run |= {"cuda": torch.version.cuda, "driver": driver_version()}
    else:
        run |= {"malloc": malloc}
    return run


def _output(*command: str) -> str:
    """What a command prints; empty where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout if done.returncode == 0 else ""
