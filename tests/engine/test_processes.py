"""Runs in processes of their own: killed, several at once, failing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import command, environment, run_command

ARGUMENTS = (
    "train", "enet", "--data", "synthetic:48x64", "--limit-train", 12, "--limit-val", 5,
    "--batch-size", 4, "--epochs", 4, "--device", "cpu", "--flip", "--class-weights", "none",
)  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "last.ckpt", weights_only=True)["state_dict"]


def assert_same_run(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert (one / "metrics.csv").read_text() == (other / "metrics.csv").read_text()


def finished_epochs(run: Path) -> int:
    path = run / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def kill_in_epoch_3(run: Path, *arguments: object) -> None:
    """Start a run and end it with SIGKILL once two epochs are done and the third has begun."""
    process = subprocess.Popen(
        command(*ARGUMENTS, *arguments, "-o", run), env=environment(), stdout=subprocess.DEVNULL
    )
    until = time.monotonic() + 300
    while finished_epochs(run) < 2:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.002)
    time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=300) == -signal.SIGKILL
    assert finished_epochs(run) < 4, "the run was over before it could be killed"


@pytest.mark.parametrize("processes", [1, 2])
def test_resume_after_kill_gives_the_same_numbers(tmp_path: Path, processes: int) -> None:
    arguments = ("--devices", processes)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    done = run_command(*ARGUMENTS, *arguments, "-o", straight)
    assert done.returncode == 0, done.stderr
    kill_in_epoch_3(killed, *arguments)
    again = run_command(*ARGUMENTS, *arguments, "-o", killed, "--resume")
    assert again.returncode == 0, again.stderr
    assert "resumed at step" in again.stdout
    assert_same_run(straight, killed)
    assert finished_epochs(killed) == 4


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    from segkern.models import read_card

    # Without dropout and with every normalisation over the same images the two runs would agree to
    # the bit; here each process normalises over its half, so they agree only roughly.
    plain = ("--option", "dropout=0", "--option", "dropout_early=0")
    for processes in (1, 2):
        done = run_command(
            *ARGUMENTS, *plain, "--devices", processes, "-o", tmp_path / str(processes)
        )
        assert done.returncode == 0, done.stderr
    cards = [read_card(tmp_path / n / "best.safetensors") for n in ("1", "2")]
    # 5 images over two processes: each is counted once.
    assert [card["protocol"]["images"] for card in cards] == [5, 5]
    assert cards[0]["protocol"]["pixels"] == cards[1]["protocol"]["pixels"]
    rows = [
        (tmp_path / n / "metrics.csv").read_text().splitlines()[-1].split(",") for n in ("1", "2")
    ]
    assert rows[0][:3] == rows[1][:3]
    assert float(rows[0][3]) == pytest.approx(float(rows[1][3]), rel=0.05)


def test_processes_end_together_when_the_loss_is_lost(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_command(*ARGUMENTS, "--devices", 2, "--lr", 1e30, "-o", run)
    assert done.returncode == 1
    assert re.search(r"segkern: train: the loss became (nan|inf)", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (run / "last.ckpt").exists()


def test_processes_end_together_when_the_disk_is_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=9m", "none", disk], capture_output=True
    ).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        done = run_command(*ARGUMENTS, "--devices", 2, "-o", disk / "run")
        assert done.returncode == 1
        assert "disk is full" in done.stderr and "last good checkpoint is intact" in done.stderr
        assert "Traceback" not in done.stderr
        assert (disk / "run" / "last.ckpt").exists()
    finally:
        subprocess.run(["umount", "-l", disk], check=True, capture_output=True)


def test_children_end_with_their_parent(tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [*ARGUMENTS, "--devices", 2, "--epochs", 100000, "-o", run]
    process = subprocess.Popen(command(*arguments), env=environment(), stdout=subprocess.DEVNULL)
    until = time.monotonic() + 300
    while finished_epochs(run) < 1:
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("needs /proc to list the children")
    pids = [int(pid) for pid in children.read_text().split()]
    assert len(pids) == 2
    process.kill()
    process.wait()
    until = time.monotonic() + 120
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < until, "a child outlived its parent"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_interrupt_is_no_traceback(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        command(*ARGUMENTS, "--epochs", 100000, "-o", run),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A background job of a shell ignores the interrupt, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 300
        while not (run / "last.ckpt").exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in errors and "Traceback" not in errors


def test_more_nodes_need_an_address(tmp_path: Path) -> None:
    done = run_command(
        *ARGUMENTS, "--nodes", 2, "--devices", 1, "-o", tmp_path / "run", NODE_RANK="0"
    )
    assert done.returncode == 2 and "MASTER_ADDR" in done.stderr
