"""Commands, their output, exit statuses and error messages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Call = Callable[..., tuple[int, str, str]]
COMMANDS = ("info", "models", "train", "evaluate", "predict", "crf", "report", "demo")
ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_lists_the_commands(segkern: Call) -> None:
    status, out, _ = segkern("--help")
    assert status == 0
    for command in COMMANDS:
        assert command in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(segkern: Call, command: str) -> None:
    status, out, _ = segkern(command, "-h")
    assert status == 0 and "Usage: segkern" in out and command in out


def test_info_says_what_this_installation_is(segkern: Call) -> None:
    status, out, _ = segkern("info")
    assert status == 0
    for word in ("versions", "torch", "native modules", "_C", "_C_cuda", "devices"):
        assert word in out


def test_version(segkern: Call) -> None:
    from segkern import __version__

    assert segkern("--version")[1].strip() == __version__


def test_models_lists_and_describes(segkern: Call) -> None:
    status, out, _ = segkern("models")
    assert status == 0 and "363,856" in out and "segnet_basic" in out and "1606.02147" in out
    status, out, _ = segkern("models", "segnet*")
    assert "segnet_basic" in out and "deconvnet" not in out
    status, out, _ = segkern("models", "enet")
    assert status == 0 and "weight_decay" in out and "0.0002" in out and "semantic" in out
    status, out, _ = segkern("models", "maskrcnn")
    for word in ("instance", "milestones", "warmup_steps", "clip_norm", "aspect_groups"):
        assert word in out, word
    status, _, err = segkern("models", "resnet")
    assert status == 2 and "no network matches 'resnet'" in err


def test_train_reports_and_goes_on(segkern: Call, run: Path) -> None:
    status, out, _ = segkern("train", "--output", run, "--resume", "--epochs", 2)
    assert status == 0 and "resumed at step 2" in out and "epoch 2" in out and str(run) in out
    status, out, _ = segkern("train", "--output", run, "--resume")
    assert status == 0 and "nothing to do" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train",), "name the network"),
        (("train", "enett"), "did you mean enet"),
        (("train", "enet", "--data", "moon"), "spec must name a data set"),
        (("train", "enet", "--data", "camvid:/does/not/exist"), "no folder"),
        (("train", "enet", "--size", "12"), "HEIGHTxWIDTH"),
        (("train", "enet", "--max-time", "soon"), "max_time must be"),
        (("train", "enet", "--scale", "2"), "LOW,HIGH"),
        (("train", "enet", "--option", "depth"), "KEY=VALUE"),
        (("train", "enet", "--precision", "7"), "precision must be one of"),
        (("train", "enet", "--resume"), "there is no run"),
        (("train", "maskrcnn", "--data", "synthetic"), "data sets that fit: synthetic-instances"),
        (("train", "maskrcnn", "--crf"), "crf is for networks of classes of pixels"),
        (("train", "enet", "--data", "synthetic-instances"), "data sets that fit: synthetic[:HxW]"),
        (("train", "maskrcnn", "--milestones", "8,x"), "milestones must be numbers"),
        (("train", "maskrcnn", "--milestones", "8,11"), "milestones must rise and lie between"),
        (("train", "maskrcnn", "--clip-norm", "much"), "clip_norm must be a number"),
        (("train", "enet", "--jitter", "0.1,2"), "jitter means nothing to enet"),
        (("train", "maskrcnn", "--jitter", "2"), "jitter must be LOW,HIGH"),
        (("evaluate", "nothing"), "no such checkpoint"),
        (("evaluate", "nothing", "--absent", "x"), "absent must be"),
        (("predict", "nothing", "nowhere.png"), "no such checkpoint"),
        (("report", "nothing"), "not the folder of a run"),
    ],
)
def test_wrong_use_is_a_message_and_status_2(
    segkern: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = segkern(*arguments)
    assert status == 2 and message in err and "Traceback" not in err
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    status, _, err = segkern(*arguments, "--debug")
    assert status == 2 and message in err and "Traceback" in err


@pytest.mark.parametrize(
    "arguments", [("--bad",), ("train", "enet", "--lr", "fast"), ("predict", "x")]
)
def test_wrong_options_are_status_2(segkern: Call, arguments: tuple) -> None:
    assert segkern(*arguments)[0] == 2


def test_all_bad_files_are_named_before_training(segkern: Call, tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / "d" / name).mkdir(parents=True)
    for index in range(4):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(
            tmp_path / "d" / "images" / f"{index}.png"
        )
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "d" / "masks" / "0.png")
    (tmp_path / "d" / "masks" / "1.png").write_bytes(b"no image")
    output = tmp_path / "run"
    status, _, err = segkern("train", "enet", "--data", f"folder:{tmp_path / 'd'}", "-o", output)
    assert status == 2 and not output.exists()
    for name in ("images/2.png", "images/3.png", "masks/1.png"):
        assert name in err


def test_evaluate_prints_a_table_and_names_its_rules(segkern: Call, run: Path) -> None:
    status, out, _ = segkern("evaluate", run, "--limit", 3)
    assert status == 0
    for word in ("mIoU", "boundary F1", "pedestrian", "ignore label 255", "absent classes: skip"):
        assert word in out
    stored = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert stored["images"] == 3 and list((run / "evaluation" / "pictures").iterdir())


def test_predict_does_what_it_can_and_names_the_rest(
    segkern: Call, run: Path, tmp_path: Path
) -> None:
    for name in ("a.png", "a.bmp", "sub/b.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "in" / name)
    out = tmp_path / "out"
    status, text, err = segkern("predict", run, tmp_path / "in", "-o", out)
    assert status == 0 and "3 images segmented" in text and "a_bmp.png" in text
    assert len(list((out / "labels").iterdir())) == len(list((out / "overlays").iterdir())) == 3
    (tmp_path / "in" / "c.png").write_bytes(b"no image")
    status, text, err = segkern("predict", run / "best.safetensors", tmp_path / "in", "-o", out)
    assert (
        status == 1 and "3 images segmented" in text and "c.png" in err and "Traceback" not in err
    )


def test_options_of_other_tasks_are_refused(segkern: Call, run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "a.png")
    for option in (("--json",), ("--score", 0.3)):
        status, _, err = segkern("predict", run, tmp_path / "a.png", "-o", tmp_path / "o", *option)
        assert status == 2 and "is for networks of instances" in err
    assert segkern("evaluate", run, "--score", 2)[0] == 2
    status, _, err = segkern("evaluate", run, "--data", "synthetic-instances")
    assert status == 2 and "enet finds classes of pixels" in err
    assert not (tmp_path / "o").exists()


def test_report_is_written(segkern: Call, run: Path, tmp_path: Path) -> None:
    status, out, _ = segkern(
        "report", run, "-o", tmp_path / "page.html", "--no-speed", "--pictures", 1
    )
    assert status == 0 and (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("typer", "rich", "lightning", "click"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from segkern.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_the_extra_the_command_says_what_to_install() -> None:
    done = python(BLOCK, "train", "enet")
    assert (
        done.returncode == 2 and "segkern[train]" in done.stderr and "Traceback" not in done.stderr
    )


def test_info_needs_no_extra() -> None:
    done = python(BLOCK, "info")
    assert done.returncode == 0 and "native modules" in done.stdout


def test_help_and_info_are_quick_to_import() -> None:
    done = python(
        "import sys; from segkern.cli import main; main(['models', '--help']); "
        "print([m for m in ('lightning', 'torchvision', 'matplotlib') if m in sys.modules])"
    )
    assert done.stdout.strip().endswith("[]")
