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
    """Print the figures and tables of `segkern.engine.evaluate.evaluate`."""
    from segkern.engine.tasks import task_of

    console = Console()
    report = task_of(result["model"]).terminal(result)
    size = "x".join(map(str, result["size"])) if result["size"] else "as stored"
    console.print(
        f"{result['model']} from {result['checkpoint']} on {result['data']}, {result['split']}: "
        f"{result['images']} images, {size}"
    )
    for columns, rows in report.tables:
        table = Table()
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number and column else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if report.figures:
        summary = Table.grid(padding=(0, 2))
        for title, value in report.figures:
            summary.add_row(title, percent(value))
        console.print(summary)
    for line in report.lines:
        console.print(line)


def percent(value: float | None) -> str:
    """0.4567 as "45.7 %"; a dash where a figure is not defined."""
    return "-" if value is None else f"{100 * value:.1f} %"
