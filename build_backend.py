"""setuptools' build backend, compiling against the torch that will run the result.

pip builds in an isolated environment. Asking there for "torch" would download a second one, of
another version and CUDA, only to compile against it. This backend looks into the environment that
is being installed into, and asks for torch only where there is none, and for NVIDIA's compiler
wheels only where torch is a CUDA build and the machine has no nvcc.
"""

from __future__ import annotations

import os
import re
import shutil
import sysconfig
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  the backend is setuptools' but for two hooks

# Wheels of the compiler; from CUDA 13 on they hold the whole of nvcc. It depends on the runtime's
# headers without naming a version, so that one is pinned with it.
_NVCC_WHEELS = (
    "nvidia-cuda-nvcc",
    "nvidia-nvvm",
    "nvidia-cuda-crt",
    "nvidia-cuda-cccl",
    "nvidia-cuda-runtime",
)
_OLDEST_TORCH = "2.10"


def target_site() -> Path:
    """The site-packages that is being installed into, also from inside the isolated build."""
    return Path(sysconfig.get_paths()["purelib"])


def installed_torch_cuda() -> tuple[bool, str | None]:
    """Whether the target has torch, and the CUDA version it was built for. Imports nothing."""
    version_file = target_site() / "torch" / "version.py"
    if not version_file.is_file():
        return False, None
    found = re.search(r"^cuda[^=]*=\s*'([\d.]+)'", version_file.read_text(), re.MULTILINE)
    return True, found.group(1) if found else None


def find_toolkit(extra: tuple[Path, ...] = ()) -> Path | None:
    """The CUDA toolkit: a folder with bin/nvcc and include/cuda_runtime.h.

    CUDA_HOME and CUDA_PATH are taken at their word. A program called nvcc on PATH may be a wrapper
    outside the toolkit, so its folder counts only if the headers are there. SEGKERN_HIDE_TOOLKIT=1
    makes the machine's own toolkit invisible, to build with the compiler wheels all the same.
    """
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            return Path(os.environ[variable])
    candidates = []
    if os.environ.get("SEGKERN_HIDE_TOOLKIT") != "1":
        on_path = shutil.which("nvcc")
        if on_path:
            candidates += [Path(on_path).resolve().parent.parent]
        candidates += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
        candidates += [Path("/opt/cuda")]
    for candidate in [*candidates, *extra]:
        header = candidate / "include" / "cuda_runtime.h"
        if (candidate / "bin" / "nvcc").is_file() and (header.is_file() or candidate in extra):
            return candidate
    return None


def get_requires_for_build_wheel(config_settings=None):
    # setuptools would run setup.py to answer this; that needs the torch that is asked for here.
    requires = ["ninja"]
    has_torch, cuda = installed_torch_cuda()
    if not has_torch:
        requires.append(f"torch>={_OLDEST_TORCH}")
    wanted = os.environ.get("SEGKERN_CUDA", "1") != "0"
    if cuda and wanted and int(cuda.split(".")[0]) >= 13 and find_toolkit() is None:
        requires += [f"{wheel}=={cuda}.*" for wheel in _NVCC_WHEELS]
    return requires


def get_requires_for_build_editable(config_settings=None):
    return get_requires_for_build_wheel(config_settings)
