"""What this installation is and what this machine can run: ``segkern.env()``."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from segkern import _load

_OPTIONAL = ("torchvision", "lightning", "torchmetrics", "cupy", "safetensors", "typer")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def build_info() -> dict[str, Any]:
    """What setup.py recorded when it compiled the native modules; empty if it left no record."""
    path = Path(__file__).with_name("_build.json")
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


def _covers(architectures: list[str], major: int, minor: int) -> bool:
    """Whether code for one of `architectures` ("8.0", "9.0a", "12.0+PTX") runs on a device."""
    for architecture in architectures:
        ptx = architecture.endswith("+PTX")
        number = architecture.removesuffix("+PTX")
        specific = number.endswith("a")
        have_major, have_minor = (int(part) for part in number.removesuffix("a").split("."))
        if specific:
            if (have_major, have_minor) == (major, minor):
                return True
            continue
        if have_major == major and have_minor <= minor:
            return True
        if ptx and (have_major, have_minor) <= (major, minor):
            return True
    return False


def _devices(architectures: list[str]) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "index": index,
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "covered": _covers(architectures, properties.major, properties.minor),
            }
        )
    return found


def env() -> dict[str, Any]:
    """Versions, native modules and devices, for bug reports and for tests' skip reasons.

    Returns:
        dict with ``versions`` (package to version or None), ``modules`` (name to
        ``{"loaded", "reason"}``), ``architectures`` (compiled CUDA architectures), ``build``
        (what was compiled with what), ``devices`` (CUDA devices with ``covered``: whether a
        compiled architecture runs there), ``cpu`` and ``reasons`` (sentences on what cannot run).
    """
    build = build_info()
    architectures = list(build.get("architectures", []))
    modules = {
        module.name: {"loaded": module.loaded, "reason": module.reason}
        for module in (_load.CPU, _load.CUDA)
    }
    devices = _devices(architectures)
    reasons = [f"{name}: {state['reason']}" for name, state in modules.items() if state["reason"]]
    if not torch.cuda.is_available():
        reasons.append("CUDA: torch sees no usable CUDA device on this machine")
    reasons += [
        f"device {device['index']} ({device['name']}): compute capability {device['capability']} "
        f"is not covered by the compiled architectures {', '.join(architectures)}; rebuild with "
        f"TORCH_CUDA_ARCH_LIST={device['capability']}"
        for device in devices
        if architectures and not device["covered"]
    ]
    versions: dict[str, str | None] = {
        "segkern": _version("segkern") or "source tree",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda,
        "numpy": _version("numpy"),
    }
    versions.update({name: _version(name) for name in _OPTIONAL})
    return {
        "versions": versions,
        "modules": modules,
        "architectures": architectures,
        "build": build,
        "devices": devices,
        "cpu": {"machine": platform.machine(), "threads": torch.get_num_threads()},
        "reasons": reasons,
    }
