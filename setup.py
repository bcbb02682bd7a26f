"""Compiles segkern's native modules: `_C` always, `_C_cuda` where torch and nvcc allow.

Environment: SEGKERN_CUDA=0|1 (or FORCE_CUDA=1) decides instead of the machine;
TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS, CXX as torch's extension builder reads them. No GPU is
needed to build, and nothing is downloaded.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
import build_backend  # noqa: E402

if (build_backend.target_site() / "torch").is_dir():
    # Behind the build's own packages: setuptools is the build's, torch is the target's.
    sys.path.append(str(build_backend.target_site()))

# Binaries run on every device of their major version and at least their minor; PTX covers later
# ones. 9.0a is Hopper with its own instructions.
DEFAULT_ARCHITECTURES = "8.0;9.0a;10.0;12.0+PTX"
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
LIMITED_API = sysconfig.get_config_var("Py_GIL_DISABLED") != 1
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]


@dataclass
class Plan:
    """What will be built, and why."""

    cuda: bool
    why: str
    toolkit: Path | None = None


def nvcc_version(toolkit: Path) -> str:
    output = subprocess.run(
        [toolkit / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True
    ).stdout
    return re.search(r"release (\d+\.\d+)", output).group(1)


def wheel_toolkits() -> tuple[Path, ...]:
    return tuple(
        found for entry in sys.path for found in sorted(Path(entry or ".").glob("nvidia/cu[0-9]*"))
    )


def make_plan() -> Plan:
    import torch

    asked = os.environ.get("SEGKERN_CUDA", "1" if os.environ.get("FORCE_CUDA") == "1" else "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"segkern: SEGKERN_CUDA must be 0 or 1, got {asked!r}")
    if asked == "0":
        return Plan(False, "SEGKERN_CUDA=0")
    if torch.version.cuda is None:
        if asked:
            raise SystemExit(
                f"segkern: SEGKERN_CUDA=1, but torch {torch.__version__} is a build without CUDA. "
                "Install a CUDA build of torch first, or set SEGKERN_CUDA=0."
            )
        return Plan(False, f"torch {torch.__version__} is a build without CUDA")
    toolkit = build_backend.find_toolkit(wheel_toolkits())
    if toolkit is None or not (toolkit / "bin" / "nvcc").is_file():
        missing = f"no nvcc found{f' in {toolkit}' if toolkit else ''}"
        if asked:
            raise SystemExit(
                f"segkern: SEGKERN_CUDA=1, torch {torch.__version__} was built for CUDA "
                f"{torch.version.cuda}, but {missing}. Install that CUDA toolkit (or the wheels "
                f"{', '.join(build_backend._NVCC_WHEELS)}), set CUDA_HOME to it, or set "
                "SEGKERN_CUDA=0."
            )
        return Plan(False, f"torch is built for CUDA {torch.version.cuda}, but {missing}")
    version = nvcc_version(toolkit)
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise SystemExit(
            f"segkern: the CUDA toolkit found is {version} ({toolkit}), torch {torch.__version__} "
            f"was built for CUDA {torch.version.cuda}; the major versions must agree. Set "
            f"CUDA_HOME to a CUDA {torch.version.cuda.split('.')[0]} toolkit, install a torch "
            f"built for CUDA {version.split('.')[0]}, or set SEGKERN_CUDA=0 for CPU kernels only."
        )
    why = "SEGKERN_CUDA=1" if asked else f"torch is built for CUDA {torch.version.cuda}"
    return Plan(True, f"{why} and nvcc {version} is here", toolkit)


def sources(*suffixes: str, cuda: bool) -> list[str]:
    """The .cpp and .cu files of a module; host files for CUDA end in _cuda.cpp."""
    found = sorted(path for suffix in suffixes for path in (ROOT / "csrc").rglob(f"*{suffix}"))
    own = [p for p in found if (p.suffix == ".cu" or p.stem.endswith("_cuda")) == cuda]
    modules = {"segkern.cpp": False, "cuda_module.cpp": True}
    own = [p for p in own if p.name not in modules]
    own += [p for p in found if modules.get(p.name) == cuda]
    return [str(p.relative_to(ROOT)) for p in own]


def extensions(plan: Plan) -> list[Extension]:
    from torch.utils import cpp_extension

    cxx = ["-std=c++17", "-O3", "-g1", "-fvisibility=hidden", *WARNINGS, *STABLE_ABI]
    common = dict(py_limited_api=LIMITED_API)  # the builder defines Py_LIMITED_API to match
    built = [
        cpp_extension.CppExtension(
            "segkern._C", sources(".cpp", cuda=False), extra_compile_args={"cxx": cxx}, **common
        )
    ]
    if plan.cuda:
        nvcc = ["-std=c++17", "-O3", "-lineinfo", "-DUSE_CUDA", *STABLE_ABI]
        nvcc += ["-Xcompiler", ",".join(["-fvisibility=hidden", *WARNINGS])]
        headers = [str(path / "include") for path in (plan.toolkit, *wheel_toolkits())]
        libraries = [
            str(p / lib) for p in (plan.toolkit, *wheel_toolkits()) for lib in ("lib64", "lib")
        ]
        runtime = f"-l:libcudart.so.{nvcc_version(plan.toolkit).split('.')[0]}"
        built.append(
            cpp_extension.CppExtension(
                "segkern._C_cuda",
                sources(".cpp", ".cu", cuda=True),
                include_dirs=cpp_extension.include_paths() + headers,
                library_dirs=[path for path in libraries if Path(path).is_dir()],
                extra_link_args=[runtime],
                libraries=["c10_cuda", "torch_cuda"],
                extra_compile_args={"cxx": [*cxx, "-DUSE_CUDA"], "nvcc": nvcc},
                **common,
            )
        )
    for extension in built:
        # The binaries use torch's C shim and nothing of its Python or C++ libraries.
        extension.libraries = [n for n in extension.libraries if n != "torch_python"]
    return built


def make_build_ext(plan: Plan):
    from torch.utils.cpp_extension import BuildExtension

    class BuildNative(BuildExtension):
        """Builds the modules and records what was built beside them, for `segkern info`."""

        def run(self):
            super().run()
            import torch

            architectures = os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";").split(";")
            record = {
                "summary": SUMMARY,
                "torch": torch.__version__,
                "cuda": nvcc_version(plan.toolkit) if plan.cuda else None,
                "architectures": architectures if plan.cuda else [],
                "why": plan.why,
            }
            folder = ROOT if self.inplace else Path(self.build_lib)
            target = folder / "segkern" / "_build.json"
            target.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    return BuildNative


PLAN = make_plan()
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
if PLAN.toolkit:
    os.environ["CUDA_HOME"] = str(PLAN.toolkit)
SUMMARY = (
    f"segkern: building {'_C and _C_cuda' if PLAN.cuda else '_C only (CPU kernels)'}"
    f"{' for ' + os.environ['TORCH_CUDA_ARCH_LIST'] if PLAN.cuda else ''}: {PLAN.why}"
)
print(SUMMARY, file=sys.stderr)

setup(
    ext_modules=extensions(PLAN),
    cmdclass={"build_ext": make_build_ext(PLAN)},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED_API else {},
)
