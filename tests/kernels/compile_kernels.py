"""Compiles every CUDA file for the supported kernels' architectures, warnings as errors, and tables
what the compiler says of each kernel: registers, spills, stack, shared memory.

    python -m tests.kernels.compile_kernels

No GPU is needed. The table is build/kernels/resources.csv; tests read it through `resources()`.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "kernels"
TABLE = FOLDER / "resources.csv"
ARCHITECTURES = ("sm_80", "sm_90a")

sys.path.insert(0, str(ROOT))
import build_backend  # noqa: E402


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports for one kernel on one architecture; sizes in bytes."""

    architecture: str
    file: str
    name: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int


def toolkit() -> Path | None:
    """The CUDA toolkit of the machine, or of the compiler wheels in this environment."""
    site = Path(sysconfig.get_paths()["purelib"])
    return build_backend.find_toolkit(tuple(sorted(site.glob("nvidia/cu[0-9]*"))))


def cuda_files() -> list[Path]:
    return sorted((ROOT / "csrc").rglob("*.cu"))


def _command(nvcc: Path, source: Path, architecture: str, target: Path) -> list[str]:
    import torch

    site = Path(torch.__file__).parent
    compute = architecture.replace("sm_", "compute_")
    runtime_headers = site.parent / "nvidia" / f"cu{torch.version.cuda.split('.')[0]}" / "include"
    return [
        *(str(nvcc), "-std=c++17", "-O3", "-lineinfo", "-DUSE_CUDA", "-cubin"),
        *("-DTORCH_TARGET_VERSION=0x020a000000000000", "--expt-relaxed-constexpr"),
        *("-Werror", "all-warnings", "-Xptxas", "-v,--warning-as-error"),
        *("-Xcompiler", "-Wall,-Wextra,-Werror,-Wno-unused-parameter"),
        *("-isystem", str(site / "include"), "-isystem", str(runtime_headers)),
        *(f"-gencode=arch={compute},code={architecture}", str(source), "-o", str(target)),
    ]


def _parse(log: str, source: Path, architecture: str) -> list[Kernel]:
    entry = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    found = []
    for match in entry.finditer(log):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        found.append(
            Kernel(
                architecture,
                str(source.relative_to(ROOT)),
                match["name"],
                int(match["registers"]),
                int(match["stores"]),
                int(match["loads"]),
                int(match["stack"]),
                int(shared.group(1)) if shared else 0,
            )
        )
    names = "\n".join(kernel.name for kernel in found)
    plain = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    return [
        Kernel(**{**asdict(kernel), "name": re.sub(r"\(anonymous namespace\)::", "", name)})
        for kernel, name in zip(found, plain.stdout.splitlines())
    ]


def _compile(nvcc: Path, source: Path, architecture: str) -> list[Kernel]:
    target = FOLDER / f"{source.stem}.{architecture}.cubin"
    done = subprocess.run(
        _command(nvcc, source, architecture, target), capture_output=True, text=True, cwd=ROOT
    )
    log = done.stdout + done.stderr
    if done.returncode:
        raise RuntimeError(f"{source.relative_to(ROOT)} for {architecture}:\n{log}")
    return _parse(log, source, architecture)


def compile_all() -> list[Kernel]:
    """Compiles everything and writes the table; RuntimeError with nvcc's words if that fails."""
    home = toolkit()
    if home is None:
        raise RuntimeError("no CUDA toolkit found; install one, or the nvidia-cuda-nvcc wheels")
    FOLDER.mkdir(parents=True, exist_ok=True)
    jobs = [(home / "bin" / "nvcc", f, a) for f in cuda_files() for a in ARCHITECTURES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kernels = [kernel for part in pool.map(lambda job: _compile(*job), jobs) for kernel in part]
    kernels.sort(key=lambda kernel: (kernel.file, kernel.name, kernel.architecture))
    with TABLE.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, [field.name for field in fields(Kernel)])
        writer.writeheader()
        writer.writerows(asdict(kernel) for kernel in kernels)
    return kernels


def resources() -> list[Kernel]:
    """The table, compiled anew where a source is newer."""
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    newest = max(path.stat().st_mtime for path in [*sources, Path(__file__)])
    if not TABLE.is_file() or TABLE.stat().st_mtime < newest:
        return compile_all()
    whole = {field.name for field in fields(Kernel) if field.type == "int"}
    with TABLE.open(newline="", encoding="utf-8") as table:
        return [
            Kernel(**{key: int(value) if key in whole else value for key, value in row.items()})
            for row in csv.DictReader(table)
        ]


def main() -> None:
    kernels = compile_all()
    spilling = [kernel for kernel in kernels if kernel.spill_stores or kernel.spill_loads]
    for kernel in kernels:
        print(
            f"{kernel.architecture:7} {kernel.registers:4} regs {kernel.stack:4} stack "
            f"{kernel.shared:6} smem  {kernel.name[:110]}"
        )
    print(f"{len(kernels)} kernels, {len(spilling)} spilling: {TABLE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
