"""What the commands show on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


@contextmanager
def progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the error stream; yields the function to call with (done, total)."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def evaluation_table(result: dict[str, Any]) -> None:
    """Print the figures and the per-class table of `segkern.engine.evaluate.evaluate`."""
    console = Console()
    size = "x".join(map(str, result["size"])) if result["size"] else "as stored"
    console.print(
        f"{result['model']} from {result['checkpoint']} on {result['data']}, {result['split']}: "
        f"{result['images']} images, {size}"
    )
    table = Table()
    table.add_column("class")
    table.add_column("IoU", justify="right")
    table.add_column("accuracy", justify="right")
    for row in result["per_class"]:
        table.add_row(row["name"], percent(row["iou"]), percent(row["accuracy"]))
    console.print(table)
    summary = Table.grid(padding=(0, 2))
    for title, key in FIGURES.items():
        if key in result:
            summary.add_row(title, percent(result[key]))
    console.print(summary)
    if result["crf"] is not None:
        console.print(
            "refined by a dense CRF: "
            + ", ".join(f"{name} {value}" for name, value in result["crf"].items())
        )
    console.print(
        f"ignore label {result['ignore_label']}; absent classes: {result['absent_classes']} "
        f"({result['absent_rule']})"
    )


FIGURES = {
    "mIoU": "miou",
    "pixel accuracy": "pixel_accuracy",
    "mean accuracy": "mean_accuracy",
    "frequency-weighted IoU": "fw_iou",
    "boundary F1": "boundary_f1",
}


def percent(value: float | None) -> str:
    """0.4567 as "45.7 %"; a dash where a figure is not defined."""
    return "-" if value is None else f"{100 * value:.1f} %"
