"""The build: what the backend asks for, what setup.py decides, what the binaries link against."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import segkern

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import build_backend  # noqa: E402


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty site-packages as the target, and a machine without a CUDA toolkit."""
    monkeypatch.setattr(build_backend, "target_site", lambda: tmp_path)
    monkeypatch.setattr(build_backend, "find_toolkit", lambda extra=(): None)
    monkeypatch.delenv("SEGKERN_CUDA", raising=False)
    return tmp_path


def put_torch(site: Path, cuda: str | None) -> None:
    (site / "torch").mkdir()
    text = f"__version__ = '2.11.0'\ncuda: Optional[str] = {cuda!r}\nhip: Optional[str] = None\n"
    (site / "torch" / "version.py").write_text(text)


def requirements() -> list[str]:
    return [r for r in build_backend.get_requires_for_build_wheel() if r != "ninja"]


def test_an_empty_environment_gets_torch(site):
    assert requirements() == ["torch>=2.10"]


def test_an_installed_torch_is_built_against_not_downloaded_again(site):
    put_torch(site, None)
    assert requirements() == []


def test_a_cuda_torch_without_nvcc_gets_the_compiler_wheels_of_its_version(site):
    put_torch(site, "13.0")
    assert requirements() == [f"{wheel}==13.0.*" for wheel in build_backend._NVCC_WHEELS]


def test_a_cuda_torch_with_a_toolkit_needs_nothing(site, monkeypatch, tmp_path):
    put_torch(site, "13.0")
    monkeypatch.setattr(build_backend, "find_toolkit", lambda extra=(): tmp_path)
    assert requirements() == []


def test_cpu_only_on_request_needs_no_compiler_wheels(site, monkeypatch):
    put_torch(site, "13.0")
    monkeypatch.setenv("SEGKERN_CUDA", "0")
    assert requirements() == []


def make_toolkit(folder: Path, version: str) -> Path:
    (folder / "bin").mkdir(parents=True)
    (folder / "include").mkdir()
    (folder / "include" / "cuda_runtime.h").touch()
    nvcc = folder / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {version}, V{version}.1'\n")
    nvcc.chmod(0o755)
    return folder


def test_a_wrapper_called_nvcc_is_not_taken_for_a_toolkit(tmp_path, monkeypatch):
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    wrapper = tmp_path / "wrapper" / "bin" / "nvcc"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent))
    found = build_backend.find_toolkit()
    assert found is None or (found / "include" / "cuda_runtime.h").is_file()
    real = make_toolkit(tmp_path / "real", "13.0")
    monkeypatch.setenv("PATH", str(real / "bin"))
    assert build_backend.find_toolkit() == real


def run_setup(**environment: str) -> subprocess.CompletedProcess:
    """setup.py up to its decision; `--name` builds nothing."""
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("SEGKERN_CUDA", "FORCE_CUDA", "CUDA_HOME", "CUDA_PATH")
    }
    return subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )


def test_setup_says_in_one_line_what_it_builds_and_why():
    done = run_setup(SEGKERN_CUDA="0")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("segkern:")]
    assert lines == ["segkern: building _C only (CPU kernels): SEGKERN_CUDA=0"]


def test_a_cuda_major_that_differs_from_torchs_stops_with_versions_and_fix(tmp_path):
    import torch

    if torch.version.cuda is None:
        pytest.skip("this torch is a build without CUDA")
    done = run_setup(CUDA_HOME=str(make_toolkit(tmp_path / "old", "11.8")))
    assert done.returncode != 0
    assert re.search(rf"toolkit found is 11\.8 .*built for CUDA {torch.version.cuda}", done.stderr)
    assert "CUDA_HOME" in done.stderr and "SEGKERN_CUDA=0" in done.stderr


def test_asking_for_cuda_without_nvcc_stops_with_the_fix(tmp_path):
    done = run_setup(SEGKERN_CUDA="1", CUDA_HOME=str(tmp_path))
    assert done.returncode != 0
    assert "SEGKERN_CUDA=1" in done.stderr
    assert "SEGKERN_CUDA=0" in done.stderr


def test_an_unknown_choice_is_refused():
    done = run_setup(SEGKERN_CUDA="maybe")
    assert done.returncode != 0
    assert "SEGKERN_CUDA must be 0 or 1, got 'maybe'" in done.stderr


# ---- what was built ---------------------------------------------------------------------------

BINARIES = sorted(Path(segkern.__file__).parent.glob("_C*.so"))


def undefined_symbols(binary: Path) -> list[str]:
    listed = subprocess.run(
        ["nm", "-D", "--undefined-only", str(binary)], capture_output=True, text=True, check=True
    )
    plain = subprocess.run(["c++filt"], input=listed.stdout, capture_output=True, text=True)
    return [
        line.split(None, 1)[-1].removeprefix("U ").strip() for line in plain.stdout.splitlines()
    ]


@pytest.mark.parametrize("binary", BINARIES, ids=lambda path: path.name)
def test_binaries_use_the_c_shim_only(binary):
    """One binary for all later torch and CPython: no symbol of their C++ interfaces."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads ELF symbols")
    symbols = undefined_symbols(binary)
    foreign = [s for s in symbols if re.search(r"\b(at|c10|torch|caffe2)::", s)]
    assert not foreign, foreign
    python = {s for s in symbols if s.startswith(("Py", "_Py"))}
    assert python <= {"PyModule_Create2"}, python
    assert binary.name.endswith(".abi3.so")


def test_version_is_stated_once():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["version"] == segkern.__version__


def test_pinned_versions_lie_within_the_extras():
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", r)[0] for r in metadata["optional-dependencies"]["train"]}
    pinned = {
        line.split("==")[0]
        for line in (ROOT / "tests" / "requirements.txt").read_text().splitlines()
        if "==" in line
    }
    assert names <= pinned


def test_core_imports_without_the_extras():
    """`import segkern` and the layers need torch and numpy only."""
    code = (
        "import sys\n"
        "blocked = ('torchvision', 'lightning', 'torchmetrics', 'typer', 'rich', 'safetensors',\n"
        "           'PIL', 'matplotlib', 'tensorboard', 'pytest')\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "import torch, segkern, segkern.metrics\n"
        "net = segkern.create_model('enet', num_classes=3).eval()\n"
        "assert net(torch.rand(1, 3, 16, 16))['out'].shape == (1, 3, 16, 16)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_env_reports_modules_and_reasons():
    env = segkern.env()
    assert env["modules"]["_C"] == {"loaded": True, "reason": None}
    for module in env["modules"].values():
        assert module["loaded"] or module["reason"]
    assert env["versions"]["torch"]
    if not env["devices"]:
        assert any("CUDA" in reason for reason in env["reasons"])


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        (["8.0"], (8, 6), True),
        (["8.0"], (9, 0), False),
        (["9.0a"], (9, 0), True),
        (["9.0a+PTX"], (10, 0), False),
        (["12.0+PTX"], (12, 1), True),
        (["8.0+PTX"], (10, 0), True),
        (["8.6"], (8, 0), False),
        ([], (8, 0), False),
    ],
)
def test_covered_devices(architectures, capability, covered):
    from segkern._env import _covers

    assert _covers(architectures, *capability) is covered
