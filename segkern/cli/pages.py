"""`segkern report` and `segkern demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page (RUN/report.html)."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="D", help="Where the data lies, if the run's has moved."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    pictures: Annotated[int, typer.Option("--pictures", min=0, help="Samples shown.")] = 4,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Measure the kernels beside torch.")
    ] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Evaluate again.")] = False,
) -> None:
    """Write one HTML page with pictures, curves, figures and kernel speed."""
    from segkern.engine.report import write_report

    page = write_report(
        run,
        output,
        data=data,
        device=device,
        pictures=pictures,
        speed=speed,
        fresh=fresh,
        show=typer.echo,
    )
    typer.echo(f"written: {page}")


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for everything.")
    ] = Path("out"),
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    max_time: Annotated[
        str, typer.Option("--max-time", metavar="TIME", help="Longest time to train.")
    ] = "2m",
) -> None:
    """Train a small network on drawn scenes, evaluate it, segment photos, write a report."""
    from segkern.engine.demo import demo as run
    from segkern.engine.settings import parse_duration

    run(output, device=device, max_time=parse_duration(max_time), show=typer.echo)
