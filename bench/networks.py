"""The table of networks: what each costs and reaches, from recorded measurements.

``python -m bench.networks flops``             operations of every network
``python -m bench.networks measure [NAME...]`` images a second and memory, on this machine
``python -m bench.networks record RUN``        a finished run of ``segkern train``
``python -m bench.tables``                     writes the table into README.md and docs/networks.md

Every cell comes from a JSON file below bench/results/networks or from the card of built-in
weights; what nothing was recorded of stays empty.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import environment, results
from bench.timing import (
    CPU_EFFORT,
    CpuClock,
    CudaClock,
    Effort,
    interleave,
    keep_freed_memory,
    peak_extra_bytes,
)
from segkern.engine.settings import parse_size
from segkern.models import create_model, get_entry, get_weights, list_models, read_card
from segkern.models._flops import count_flops

FOLDER = results.RESULTS / "networks"
FLOPS, RUNS = "flops.json", "runs.json"
SIZE = (360, 480)
CLASSES = 11
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# A pass of the largest networks takes ten seconds on two cores.
EFFORT = Effort(warmup=1, minimum=3, maximum=CPU_EFFORT.maximum, seconds=6.0)
_MIB = 2.0**20


def names() -> list[str]:
    """The networks of pixel classes."""
    return [name for name in list_models() if get_entry(name).task == "semantic"]


def count_all(chosen: Iterable[str], size: tuple[int, int] = SIZE) -> dict[str, Any]:
    """Operations of the networks on one image of ``size`` at CamVid's classes."""
    counted = {name: count_flops(name, size, num_classes=CLASSES) for name in chosen}
    return {
        "size": list(size),
        "classes": CLASSES,
        "torch": torch.__version__,
        "flops": {name: value for name, value in counted.items() if value is not None},
    }


@torch.inference_mode()
def measure(
    name: str,
    device: str,
    *,
    dtype: str = "float32",
    size: tuple[int, int] = SIZE,
    effort: Effort = EFFORT,
    **options: Any,
) -> dict[str, Any]:
    """One network's forward pass on one image, as ``segkern predict`` runs it: channels-last."""
    torch.manual_seed(0)
    gc.collect()
    given = {"num_classes": CLASSES, **options}
    network = create_model(name, **given).eval()
    network = network.to(device, memory_format=torch.channels_last)
    image = torch.rand(1, 3, *size, device=device).contiguous(memory_format=torch.channels_last)

    def call() -> object:
        with torch.autocast(device, DTYPES[dtype], enabled=dtype != "float32"):
            return network(image)["out"]

    clock = CudaClock(torch.device(device)) if device == "cuda" else CpuClock()
    clock.effort = effort
    timing = interleave({name: call}, clock)[name]
    low, high = timing.quartiles
    peak = peak_extra_bytes(call, device)
    return {
        "network": name,
        "dtype": dtype,
        "size": list(size),
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "median_ms": 1e3 * timing.median,
        "q1_ms": 1e3 * low,
        "q3_ms": 1e3 * high,
        "rounds": len(timing.rounds),
        "peak_bytes": peak,
    }


def store_rows(folder: Path, device: str, rows: Iterable[Mapping[str, Any]], malloc: str) -> Path:
    """Put rows into the results file of this machine; rows of other networks stay."""
    described = environment.describe_device(device)
    path = folder / f"{described['slug']}.json"
    content = results.load(path)
    run = environment.describe_run(device, malloc)
    fresh = {f"{row['network']}-{row['dtype']}": {**row, "run": run["date"]} for row in rows}
    kept = {**content["rows"], **fresh}
    used = {row["run"] for row in kept.values()}
    runs = {**content["runs"], run["date"]: run}
    results.save(
        path,
        {
            "schema": results.SCHEMA,
            "device": described,
            "runs": {key: runs[key] for key in sorted(used)},
            "rows": dict(sorted(kept.items())),
        },
    )
    return path


def read_run(run: Path, hardware: str) -> dict[str, Any]:
    """What a run folder of ``segkern train`` tells: where its best weights stand, and its time."""
    card = read_card(run / "best.safetensors")
    protocol = card["protocol"]
    return {
        "network": card["config"]["name"],
        "data": card["data"],
        "split": protocol["split"],
        "images": protocol["images"],
        "size": protocol["size"],
        "absent_classes": protocol["absent_classes"],
        "miou": card["miou"],
        "pixel_accuracy": card["pixel_accuracy"],
        "epoch": card["epoch"],
        "step": card["step"],
        **_effort(run),
        "hardware": hardware,
        "precision": json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"][
            "precision"
        ],
        "options": {
            key: value
            for key, value in card["config"].items()
            if key not in ("name", "num_classes")
        },
        "recipe": card["recipe"],
        "segkern": card["segkern"],
    }


def _effort(run: Path) -> dict[str, float | None]:
    """Seconds and most bytes of a training: the checkpoint's, or what a fit at once has logged."""
    if (run / "last.ckpt").is_file():
        from segkern.engine.checkpoint import read_state

        state = read_state(run / "last.ckpt")
        return {"seconds": round(state.seconds, 1), "peak_bytes": state.peak_memory or None}
    last = (run / "log.txt").read_text(encoding="utf-8").splitlines()[-1]
    found = re.search(r"(\d+) s, (\d+) MiB$", last)
    if found is None:
        return {"seconds": None, "peak_bytes": None}
    return {"seconds": float(found[1]), "peak_bytes": int(found[2]) << 20}


def recorded(folder: Path) -> dict[str, dict[str, Any]]:
    """The best recorded run on CamVid's validation set of each network, built-in cards included."""
    path = folder / RUNS
    runs = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for name in names():
        for weights in get_weights(name).values():
            card = read_card(weights)
            if "miou" in card:
                protocol = card["protocol"]
                runs.append(
                    {
                        "network": name,
                        "data": card["data"],
                        "split": protocol["split"],
                        "images": protocol["images"],
                        "size": protocol["size"],
                        "absent_classes": protocol["absent_classes"],
                        "miou": card["miou"],
                        "epoch": card["epoch"],
                        "seconds": None,
                        "hardware": None,
                    }
                )
    best: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run["data"] == "camvid" and run["split"] == "val":
            # Of figures that differ by half precision alone the run folder's, which knows its time.
            if run["miou"] > best.get(run["network"], {"miou": -1.0})["miou"] + 5e-4:
                best[run["network"]] = run
    return best


def devices(folder: Path) -> list[tuple[str, str, dict[str, Any]]]:
    """(device, dtype, rows by network) of the results files, GPUs first."""
    found = []
    files = [path for path in sorted(folder.glob("*.json")) if path.name not in (FLOPS, RUNS)]
    for path in sorted(files, key=lambda path: path.name.startswith("cpu")):
        content = results.load(path)
        for dtype in DTYPES:
            rows = {r["network"]: r for r in content["rows"].values() if r["dtype"] == dtype}
            if rows:
                found.append((content["device"]["name"], dtype, rows))
    return found


def lines(folder: Path = FOLDER) -> tuple[list[str], list[list[str]]]:
    """Heading and lines of the table."""
    path = folder / FLOPS
    flops = json.loads(path.read_text(encoding="utf-8"))["flops"] if path.exists() else {}
    runs, measured = recorded(folder), devices(folder)
    head = ["network", "paper's result", "CamVid val mIoU", "protocol, training"]
    head += ["parameters", "GFLOP"]
    for device, dtype, _ in measured:
        head += [f"images/s, {device}, {dtype}", "peak MiB"]
    table = []
    for name in names():
        entry = get_entry(name)
        reported = next(iter(entry.reported.items()), None)
        cells = [f"`{name}`", "" if reported is None else f"{reported[0]}: {reported[1]:g}"]
        run = runs.get(name)
        cells += ["", ""] if run is None else [f"{100 * run['miou']:.1f} %", _protocol(run)]
        cells.append(f"{entry.parameters:,}")
        cells.append(f"{flops[name] / 1e9:.1f}" if name in flops else "")
        for _, _, rows in measured:
            row = rows.get(name)
            if row is None:
                cells += ["", ""]
                continue
            peak = row["peak_bytes"]
            cells.append(f"{1e3 / row['median_ms']:.3g}")
            cells.append("" if peak is None else f"{peak / _MIB:.0f}")
        table.append(cells)
    return head, table


def _changed(run: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run, as JSON has them, that are not the network's defaults."""
    defaults = json.loads(json.dumps(dataclasses.asdict(get_entry(run["network"]).config())))
    return {
        key: value
        for key, value in run.get("options", {}).items()
        if defaults.get(key, value) != value
    }


def _protocol(run: Mapping[str, Any]) -> str:
    parts = [f"{run['images']} images"]
    if run["size"]:
        parts.append("x".join(map(str, run["size"])))
    parts += [f"{key} {value}" for key, value in _changed(run).items()]
    parts.append(f"epoch {run['epoch']}")
    if run["seconds"]:
        hours, minutes = divmod(round(run["seconds"] / 60), 60)
        parts.append(f"{hours} h {minutes:02d} min" if hours else f"{max(minutes, 1)} min")
    if run.get("peak_bytes"):
        parts.append(f"{run['peak_bytes'] / _MIB:.0f} MiB")
    if run["hardware"]:
        parts.append(run["hardware"])
    return ", ".join(parts)


def block(folder: Path = FOLDER) -> str:
    """The table with the sentence under it, for :mod:`bench.tables`."""
    from bench.tables import markdown

    head, table = lines(folder)
    size = "x".join(map(str, SIZE))
    note = (
        f"Parameters at the paper's number of classes; operations and times for one image of "
        f"{size} at {CLASSES} classes, two operations a multiplication and addition in "
        "convolutions and matrix products; peak: memory of a pass above the weights and the image. "
        "mIoU without ignored pixels, absent classes left out of the mean; time and memory of the "
        "training with validation. Empty: not run."
    )
    return "\n".join([*markdown(head, table, words=4), "", textwrap.fill(note, 100)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="DIR")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("flops", help="count the operations of every network")
    timed = commands.add_parser("measure", help="time the networks on this machine")
    timed.add_argument("names", nargs="*", metavar="NAME")
    timed.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    timed.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    timed.add_argument("--threads", type=int, default=None)
    timed.add_argument("--weights", type=Path, help="of one fitted forest: its file")
    timed.add_argument("--size", type=parse_size, default=SIZE, metavar="HxW")
    kept = commands.add_parser("record", help="keep the figures of finished runs")
    kept.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    kept.add_argument("--hardware", help="what they ran on (default: this machine's processor)")
    options = parser.parse_args(arguments)
    folder = options.results
    if options.command == "flops":
        content = count_all(names())
        results.write_text(folder / FLOPS, json.dumps(content, indent=1) + "\n")
    elif options.command == "measure":
        if options.threads:
            torch.set_num_threads(options.threads)
        malloc = keep_freed_memory() if options.device == "cpu" else "default"
        for name in options.names or names():
            given = {} if options.weights is None else {"weights": options.weights}
            if get_entry(name).recipe.optimizer == "fit" and not given:
                print(f"{name}: left out, its time is that of the trees in --weights", flush=True)
                continue
            row = measure(name, options.device, dtype=options.dtype, size=options.size, **given)
            # After each network, so that a run that is stopped has kept what it measured.
            store_rows(folder, options.device, [row], malloc)
            peak = row["peak_bytes"]
            memory = "-" if peak is None else f"{peak / _MIB:.0f} MiB"
            print(f"{name}: {1e3 / row['median_ms']:.3g} images/s, {memory}", flush=True)
    else:
        hardware = options.hardware or str(environment.cpu_name())
        path = folder / RUNS
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        fresh = [read_run(run, hardware) for run in options.runs]
        results.write_text(path, json.dumps([*before, *fresh], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
