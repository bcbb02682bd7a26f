"""Builds the SIMT test extensions with ninja, into build/simt under the project root.

    python -m tests.simt.build

builds them all, on all cores; a test that needs one builds it where that has not been done.

An extension is one file `bind_<name>.cpp` here, compiled with the stand-in CUDA headers of
`include/` first on the include path and linked with the runtime, into the Python module
`simt_<name>`. Each comes in the variants of `VARIANTS`. Only what changed is compiled again.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "simt"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")

COMMON_FLAGS = (
    "-std=c++17 -O1 -g1 -fPIC -fvisibility=hidden -pthread -Wall -Wextra -Werror "
    # Pragmas for nvcc; vector loads through reinterpret_cast; a product is never fused with a sum;
    # identical kernels keep their own names.
    "-Wno-unknown-pragmas -fno-strict-aliasing -ffp-contract=off -fno-ipa-icf "
    # pybind11 keeps state in thread-local variables, which are shared memory here.
    "-DPYBIND11_HAS_SUBINTERPRETER_SUPPORT=0"
)
VARIANTS = {
    "plain": "",
    "sanitized": "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer",
    # Fibres on ucontext, as on machines without a context switch of their own.
    "portable": "-DSIMT_UCONTEXT",
}


def unavailable() -> str | None:
    """Why the extensions cannot be built and run here, or None."""
    if not sys.platform.startswith("linux"):
        return "the SIMT rung needs Linux (ELF symbol tables, mmap, AddressSanitizer preloading)"
    if shutil.which("g++") is None:
        return "the SIMT rung needs g++"
    return None


def build(name: str, variant: str = "plain") -> Path:
    """Builds extension `name`, if needed, and returns the module's path."""
    target = Path(variant, f"simt_{name}{SUFFIX}")
    _run_ninja(target)
    return BUILD / target


def build_all() -> None:
    """Builds every extension in every variant."""
    _run_ninja()


def _run_ninja(*targets: Path) -> None:
    """RuntimeError with the compiler's words where one of `targets` (default: all) fails."""
    import ninja

    BUILD.mkdir(parents=True, exist_ok=True)
    with _lock():
        script = _ninja_script()
        path = BUILD / "build.ninja"
        if not path.exists() or path.read_text() != script:
            path.write_text(script)
        command = [Path(ninja.BIN_DIR) / "ninja", "-C", BUILD, *targets]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"the SIMT extensions do not compile:\n{result.stdout}")


def sanitizer_environment() -> dict[str, str]:
    """What a process needs in its environment to load a `sanitized` module.

    AddressSanitizer must be the first library of the process, which is a Python that knows nothing
    of it; it finds the C++ exception functions only if libstdc++ is there from the start too.
    """
    libraries = [_library("libasan.so"), _library("libstdc++.so")]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _library(name: str) -> str:
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One build at a time, also between the processes of a parallel test run."""
    with open(BUILD / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _ninja_script() -> str:
    import numpy
    import pybind11

    includes = [HERE / "include", HERE / "runtime", HERE, ROOT / "csrc"]
    system = [pybind11.get_include(), sysconfig.get_path("include"), numpy.get_include()]
    flags = " ".join([f"-I{path}" for path in includes] + [f"-isystem {path}" for path in system])
    lines = [
        "ninja_required_version = 1.5",
        f"flags = {COMMON_FLAGS} {flags}",
        "rule compile",
        "  command = g++ $flags $variant -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $out",
        "rule link",
        "  command = g++ -shared -pthread $variant $in -o $out",
        "  description = link $out",
    ]
    runtime = sorted((HERE / "runtime").glob("*.cpp"))
    bindings = sorted(HERE.glob("bind_*.cpp"))
    objects: dict[str, str] = {}  # object file -> its build statement
    links: list[str] = []
    for variant, extra in VARIANTS.items():

        def compiled(source: Path, variant: str = variant, extra: str = extra) -> str:
            if variant == "portable" and source.stem != "fiber":
                variant, extra = "plain", VARIANTS["plain"]  # nothing else differs
            path = f"{variant}/{source.stem}.o"
            objects[path] = f"build {path}: compile {source}\n  variant = {extra}"
            return path

        common = " ".join(compiled(source) for source in runtime)
        for source in bindings:
            module = f"{variant}/simt_{source.stem.removeprefix('bind_')}{SUFFIX}"
            links += [
                f"build {module}: link {compiled(source)} {common}\n  variant = {extra}",
            ]
    return "\n".join([*lines, *objects.values(), *links]) + "\n"


if __name__ == "__main__":
    reason = unavailable()
    print(reason or f"building {BUILD.relative_to(ROOT)}", flush=True)
    if reason is None:
        build_all()
