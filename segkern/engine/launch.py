"""Runs of several processes: one child per device, watched by the process that started them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from segkern.engine.errors import EngineError, RunStopped
from segkern.engine.settings import TrainSettings, resolve_device

_FAILURE = "SEGKERN_FAILURE_NOTE"  # names the file in which the first process leaves its error
_GRACE = 15.0  # seconds that the others get to end after one process has failed


def started_outside() -> bool:
    """True in one of several processes that torchrun, a cluster or `launch` has started."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(job: dict[str, Any], *, devices: int, nodes: int) -> None:
    """Start `devices` processes of a job on this machine and wait for them.

    With several nodes, each node runs the same command with MASTER_ADDR, MASTER_PORT and NODE_RANK
    set. When one process ends with an error the others are ended too, and RunStopped or EngineError
    carries its message. Children end by themselves when this process dies.
    """
    environment = dict(os.environ)
    if nodes > 1:
        missing = [n for n in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK") if n not in environment]
        if missing:
            raise EngineError(
                f"train: with --nodes {nodes} each node needs {', '.join(missing)} in its "
                "environment (or start the command with torchrun)"
            )
    else:
        environment.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), NODE_RANK="0")
    environment["WORLD_SIZE"] = str(devices * nodes)
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(
        part for part in (root, environment.get("PYTHONPATH")) if part
    )
    if resolve_device(job["settings"]["device"]) == "cpu" and "OMP_NUM_THREADS" not in environment:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // devices))
    command = [sys.executable, "-m", "segkern.engine.launch", json.dumps(job)]
    with tempfile.TemporaryDirectory() as notes:
        note = Path(notes) / "failure.json"
        environment[_FAILURE] = str(note)
        children = [
            subprocess.Popen(
                command, env={**environment, "LOCAL_RANK": str(rank)}, stdin=subprocess.PIPE
            )
            for rank in range(devices)
        ]
        try:
            _watch(children)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                child.wait()
                if child.stdin is not None:
                    child.stdin.close()
        codes = [child.returncode for child in children]
        if any(codes):
            raise _failure(note, codes)


def _watch(children: list[subprocess.Popen[bytes]]) -> None:
    failed_at = None
    while any(child.poll() is None for child in children):
        if failed_at is None and any(child.poll() for child in children):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > _GRACE:
            return
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:
            for child in children:
                if child.poll() is None:
                    child.send_signal(signal.SIGINT)
            failed_at = time.monotonic()


def _failure(note: Path, codes: list[int]) -> EngineError:
    if note.exists():
        told = json.loads(note.read_text(encoding="utf-8"))
        error = RunStopped(told["message"])
        error.exit_code = told["exit_code"]
        return error
    ended = ", ".join(f"process {rank}: {code}" for rank, code in enumerate(codes) if code)
    return RunStopped(f"train: a process of the run ended unexpectedly (exit status of {ended})")


def _follow_parent() -> None:
    """End this process when the one that started it is gone: then its end of the pipe closes."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _print(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """Entry of a child process: the job is the only argument, as JSON."""
    from segkern.data import DatasetError
    from segkern.engine.train import run_job

    job = json.loads(sys.argv[1])
    _follow_parent()
    settings = TrainSettings.from_json(job["settings"])
    note = Path(os.environ[_FAILURE])
    first = int(os.environ["LOCAL_RANK"]) == 0
    try:
        run_job(settings, resume=job["resume"], show=_print)
    except (EngineError, DatasetError) as error:
        code = getattr(error, "exit_code", 2)
        if first:
            told = {"message": str(error), "exit_code": code}
            note.write_text(json.dumps(told), encoding="utf-8")
        return code
    except RuntimeError:
        # Talk with a process that has just ended with a message of its own: that one counts.
        if not first and _appears(note):
            return 1
        raise
    return 0


def _appears(note: Path, seconds: float = 5.0) -> bool:
    until = time.monotonic() + seconds
    while not note.exists() and time.monotonic() < until:
        time.sleep(0.05)
    return note.exists()


if __name__ == "__main__":
    sys.exit(main())
