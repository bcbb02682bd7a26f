"""`segkern info` and `segkern models`."""

from __future__ import annotations

import dataclasses
import re
from typing import Annotated

import typer

# Height and width that operations are counted at: CamVid's, as in the table of networks.
_SIZE = (360, 480)


def info() -> None:
    """Versions, what was compiled, what this machine can run, and why not if not."""
    from segkern.cli.plain import info as plain

    plain()


def models(
    pattern: Annotated[
        str, typer.Argument(help="A name, or shell wildcards as in 'segnet*'.", show_default=False)
    ] = "*",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="KEY=VALUE",
            help="An option of a network whose recipe depends on it, as backbone=vgg16.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List the networks; with the name of one, its recipe."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from segkern.cli import values
    from segkern.engine.errors import EngineError
    from segkern.models import get_entry, get_weights, list_models
    from segkern.models._flops import count_flops

    names = list_models(pattern)
    if not names:
        raise EngineError(
            f"models: no network matches {pattern!r}; there are {', '.join(list_models())}"
        )
    console = Console()
    if len(names) > 1 or pattern != names[0]:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        columns = {"name": "left", "parameters": "right", "classes": "right"}
        if console.width >= 110:
            columns["task"] = "left"
            columns["reported result"] = "left"
        if any(get_weights(name) for name in names):
            columns["weights"] = "left"
        columns["paper"] = "left"
        for heading, justify in columns.items():
            table.add_column(heading, justify=justify, no_wrap=heading != "reported result")
        for name in names:
            entry = get_entry(name)
            reported = next(iter(entry.reported.items()), None)
            cells = {
                "name": name,
                "parameters": f"{entry.parameters:,}",
                "classes": str(entry.num_classes),
                "task": entry.task,
                "reported result": "" if reported is None else f"{reported[0]} {reported[1]:g}",
                "weights": ", ".join(get_weights(name)),
                "paper": _short(entry.paper),
            }
            table.add_row(*(cells[heading] for heading in columns))
        console.print(table)
        console.print("segkern models NAME shows a network's recipe.")
        return
    entry = get_entry(names[0])
    options = values.pairs(option) or {}
    unknown = sorted(set(options) - set(entry.options))
    if unknown:
        raise EngineError(
            f"models: {entry.name} has no option {', '.join(unknown)}; its own are "
            f"{', '.join(entry.options)}"
        )
    chosen = entry.choose_recipe(options)
    facts = Table.grid(padding=(0, 2))
    facts.add_row("task", entry.task)
    facts.add_row("parameters", f"{entry.parameters:,} at {entry.num_classes} classes")
    facts.add_row("paper", entry.paper)
    for what, value in entry.reported.items():
        facts.add_row("reported", f"{what}: {value:g}")
    flops = count_flops(entry.name, _SIZE) if entry.task == "semantic" else None
    if flops is not None:
        size = "x".join(map(str, _SIZE))
        facts.add_row("operations", f"{flops / 1e9:.1f} GFLOP for an image of {size}")
    facts.add_row("weights", ", ".join(get_weights(entry.name)) or "none built in")
    facts.add_row("options", ", ".join(entry.options) or "none")
    console.print(f"[bold]{entry.name}[/bold]")
    console.print(facts)
    recipe = Table(
        title="Recipe (defaults of `segkern train`)",
        title_justify="left",
        show_header=False,
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for field in dataclasses.fields(chosen):
        value = getattr(chosen, field.name)
        recipe.add_row(field.name, "none" if value is None else str(value))
    console.print(recipe)


def _short(paper: str) -> str:
    """First author, and below the arXiv number or else the year, of a paper.

    `paper` reads "A. One, B. Two: Title, Venue 2015, arXiv:1234.5678".
    """
    authors = paper.partition(":")[0].split(", ")
    first = authors[0].split()[-1] + (" et al." if len(authors) > 1 else "")
    year = re.findall(r"\b(?:19|20)\d\d\b", paper.partition("arXiv")[0])
    number = re.search(r"arXiv:[\d.]*\d", paper)
    return "\n".join([first, *([number[0]] if number else year[-1:])])
