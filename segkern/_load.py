"""Loads the native modules and keeps the reason where one cannot be loaded.

``_C`` holds every operator schema and the CPU kernels, ``_C_cuda`` the CUDA kernels. A missing or
broken ``_C_cuda`` is no error until a CUDA tensor meets an operator: then the reason is raised.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class NativeModule:
    """What became of a native module: ``loaded``, and ``reason`` where it is not."""

    name: str
    loaded: bool
    reason: str | None = None


def _load(name: str) -> NativeModule:
    full = f"segkern.{name}"
    if importlib.util.find_spec(full) is None:
        return NativeModule(name, False, "not built: no such file in the installed package")
    try:
        importlib.import_module(full)
    except (ImportError, OSError, RuntimeError) as error:
        return NativeModule(name, False, f"found, but failed to load: {error}")
    return NativeModule(name, True)


def _load_cuda(cpu: NativeModule) -> NativeModule:
    if not cpu.loaded:
        return NativeModule("_C_cuda", False, "needs _C, which is not loaded")
    if importlib.util.find_spec("segkern._C_cuda") is None:
        return NativeModule(
            "_C_cuda",
            False,
            "this segkern was built without CUDA kernels; reinstall with SEGKERN_CUDA=1, a CUDA "
            "build of torch and its nvcc, and the build says what is missing",
        )
    if torch.version.cuda is None:
        return NativeModule("_C_cuda", False, f"torch {torch.__version__} is a build without CUDA")
    return _load("_C_cuda")


CPU = _load("_C")
CUDA = _load_cuda(CPU)

if not CPU.loaded:
    raise ImportError(
        f"segkern: the native module _C is {CPU.reason}. Run `pip install .` in the source tree "
        "(a C++17 compiler is enough), or `python setup.py build_ext --inplace` to work in it."
    )


def require_cuda(op: str) -> None:
    """Raises RuntimeError with the reason where the CUDA kernels are not loaded."""
    if not CUDA.loaded:
        raise RuntimeError(f"{op}: no CUDA kernels: {CUDA.reason}")
