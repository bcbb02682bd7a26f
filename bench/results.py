"""The results files: one JSON file a device, rows keyed by id, each naming its run."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
SCHEMA = 1

Row = dict[str, Any]


def row_id(row: Mapping[str, Any]) -> str:
    threads = "" if row["threads"] is None else f"-{row['threads']}t"
    return f"{row['case']}{threads}-{row['variant']}"


def load(path: Path) -> dict[str, Any]:
    """The contents of a results file; an empty one where there is no file."""
    if not path.exists():
        return {"schema": SCHEMA, "device": {}, "runs": {}, "rows": {}}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("schema") != SCHEMA:
        raise ValueError(f"{path.name}: schema must be {SCHEMA}, got {content.get('schema')}")
    return content


def merge(
    content: Mapping[str, Any],
    device: Mapping[str, Any],
    run: Mapping[str, Any],
    rows: Iterable[Row],
    declared: Mapping[str, set[str]] | None = None,
) -> dict[str, Any]:
    """``content`` with the rows measured in ``run`` put in; all other rows stay as they are.

    ``declared`` maps a family to the names of all its cases: rows of these families whose case is
    no longer among them are dropped. Runs that no row refers to any more are dropped too.
    """
    kept = dict(content["rows"])
    if declared is not None:
        kept = {
            key: row
            for key, row in kept.items()
            if row["case"] in declared.get(row["family"], {row["case"]})
        }
    name = str(run["date"])
    fresh = {row_id(row): {**row, "run": name} for row in rows}
    # A run's rows come in the order they are declared in; older ones that remain follow.
    kept = {key: fresh.get(key, row) for key, row in kept.items()}
    if all(key in fresh for key in kept):
        kept = {}
    kept.update(fresh)
    runs = {**content["runs"], name: dict(run)}
    used = {row["run"] for row in kept.values()}
    return {
        "schema": SCHEMA,
        "device": dict(device),
        "runs": {key: runs[key] for key in sorted(used)},
        "rows": kept,
    }


def save(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step: a reader, or a killed run, sees the old or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_csv(path: Path, measured: Iterable[tuple[Mapping, Mapping, Iterable[Row]]]) -> None:
    """One line a contender: the rows of (device, run, rows) triples, figures in base units."""
    head = [
        "device",
        "case",
        "family",
        "operator",
        "shape",
        "setting",
        "dtype",
        "layout",
        "threads",
        "variant",
        "contender",
        "median_ms",
        "q1_ms",
        "q3_ms",
        "rounds",
        "gbps",
        "share_of_copy",
        "speedup",
        "peak_bytes",
        "index_bytes",
        "minimal_bytes",
        "floor_ms",
        "commit",
        "date",
        "torch",
        "segkern",
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, head, extrasaction="ignore")
        table.writeheader()
        for device, run, rows in measured:
            for row in rows:
                sides = [("segkern", row["ours"]), ("peer", row["peers"])]
                for side, figures in sides:
                    for mode, numbers in figures.items():
                        table.writerow(
                            {
                                **run,
                                **row,
                                **numbers,
                                "device": device["name"],
                                "contender": mode if side == "peer" else f"segkern {mode}",
                            }
                        )
