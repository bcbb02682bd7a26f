"""Four real installations of this tree with plain `pip install .`, in environments of their own.

    python tests/packaging/installs.py [NAME...]

Each prints what was built and runs an operator. They download several GB, so this is no part of
the test suite; `make test-install` runs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

CHECK = """
import json, torch, segkern
from segkern import ops
y, indices = ops.max_pool2d_with_indices(torch.rand(1, 2, 8, 8), 2, index_format="packed")
assert ops.max_unpool2d(y, indices, 2).shape == (1, 2, 8, 8)
env = segkern.env()
print(json.dumps({"torch": torch.__version__, "built": env["build"]["summary"],
                  "loaded": [name for name, m in env["modules"].items() if m["loaded"]]}))
"""

# name: (what is installed first, whether the machine's own CUDA toolkit may be seen, extra modules)
SITUATIONS = {
    "cuda": (["torch==2.11.0"], True, ["_C", "_C_cuda"]),
    "cuda-wheels": (["torch==2.11.0"], False, ["_C", "_C_cuda"]),
    "cpu": (["torch==2.13.0"], True, ["_C"]),
    "empty": ([], True, None),
}


def install(name: str) -> None:
    first, toolkit, modules = SITUATIONS[name]
    with tempfile.TemporaryDirectory(prefix=f"segkern-{name}-") as temporary:
        folder = Path(temporary)
        source = folder / "source"
        shutil.copytree(
            ROOT,
            source,
            ignore=shutil.ignore_patterns(
                ".git", ".venv*", "build", "out", "runs", "*.so", "*.egg-info", "_build.json"
            ),
        )
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        python = folder / "venv" / "bin" / "python"
        environment = dict(os.environ)
        if not toolkit:
            environment["SEGKERN_HIDE_TOOLKIT"] = "1"
        if first:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *first, "numpy"], check=True)
        before = packages(python)
        start = time.monotonic()
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "."],
            check=True,
            cwd=source,
            env=environment,
        )
        seconds = time.monotonic() - start
        done = subprocess.run(
            [python, "-c", CHECK], check=True, cwd=folder, capture_output=True, text=True
        )
        print(f"{name}: {seconds:.0f} s: {done.stdout.strip()}", flush=True)
        changed = {p for p in before if p.startswith("torch==")} - packages(python)
        assert not changed, f"{name}: pip replaced {changed}"
        if modules is not None:
            assert str(modules).replace("'", '"') in done.stdout, f"{name}: wanted {modules}"


def packages(python: Path) -> set[str]:
    listed = subprocess.run(
        [python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    )
    return set(listed.stdout.split())


if __name__ == "__main__":
    for situation in sys.argv[1:] or SITUATIONS:
        install(situation)
