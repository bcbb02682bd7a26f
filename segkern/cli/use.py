"""`segkern evaluate` and `segkern predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_CRF = typer.Option(
    "--crf",
    metavar="[PRESET|FILE]",
    help="Refine the probabilities by a dense CRF: --crf alone, or a preset's name or a best.json "
    "after it (see `segkern crf`).",
    show_default=False,
)
_SCALES = typer.Option(
    "--scales", metavar="S,S,...", help="Average over these scales, as 0.5,0.75,1,1.25,1.5,1.75."
)
_WINDOW = typer.Option(
    "--window", metavar="HxW", help="Run images in overlapping windows (the whole image at once)."
)
_MERGE = typer.Option(
    "--merge",
    metavar="NAME",
    help="Mirror images are averaged as softmax (DeepLab) or as logits (PSPNet).",
)
_STRIDE = typer.Option(
    "--output-stride", metavar="N", help="Of the features, 8 or 16 (as trained)."
)
_SCORE = typer.Option(
    "--score",
    metavar="S",
    min=0.0,
    max=1.0,
    help="Least score of the instances that are drawn and written (0.5).",
    show_default=False,
)
_CHECKPOINT = "A run folder, a .safetensors file, or NAME:TAG for built-in weights."


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help=_CHECKPOINT, metavar="CKPT", show_default=False)
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="D",
            help="A data set, as in training (default: the run's).",
        ),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", help="Part of the data set: val, train or test.")
    ] = "val",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for metrics.json and pictures (RUN/evaluation, or with --crf "
            "RUN/evaluation-crf).",
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="HxW", help="Bring images to this size (the run's)."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 4,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Loading processes.")] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Measure on at most so many images.")
    ] = None,
    absent: Annotated[
        str, typer.Option("--absent", help="Classes without a pixel in mIoU: skip, zero or one.")
    ] = "skip",
    boundary: Annotated[
        bool, typer.Option("--boundary/--no-boundary", help="Compute boundary F1.")
    ] = True,
    tta: Annotated[bool, typer.Option("--tta", help="Average with the mirrored image.")] = False,
    crf: Annotated[str | None, _CRF] = None,
    scales: Annotated[str | None, _SCALES] = None,
    window: Annotated[str | None, _WINDOW] = None,
    merge: Annotated[str, _MERGE] = "softmax",
    output_stride: Annotated[int | None, _STRIDE] = None,
    score: Annotated[float | None, _SCORE] = None,
    pictures: Annotated[
        int, typer.Option("--pictures", min=0, help="Panels photo | truth | prediction.")
    ] = 6,
) -> None:
    """Measure a trained network, and put pictures of its results beside the truth.

    Labels of pixels by mIoU, accuracies and boundary F1; instances by COCO's twelve figures for
    boxes and masks; panoptic segments by PQ, SQ and RQ.
    """
    from segkern.cli.tables import evaluation_table, progress
    from segkern.engine.errors import EngineError
    from segkern.engine.evaluate import evaluate as run
    from segkern.engine.settings import parse_size

    if absent not in ("skip", "zero", "one"):
        raise EngineError(f"evaluate: absent must be skip, zero or one, got {absent!r}")
    if output is None:
        base = Path(checkpoint)
        name = "evaluation" if crf is None else "evaluation-crf"
        output = base / name if base.is_dir() else Path(name)
    with progress("evaluate") as step:
        result = run(
            checkpoint,
            data,
            split=split,
            size=None if size is None else parse_size(size),
            device=device,
            batch_size=batch_size,
            workers=workers,
            limit=limit,
            absent=absent,
            boundary=boundary,
            tta=tta,
            crf=_settings(crf),
            protocol=_protocol(scales, window, merge),
            output_stride=output_stride,
            score=score,
            pictures=pictures,
            output=output,
            step=step,
        )
    evaluation_table(result)
    typer.echo(f"written: {output}")


def predict(
    checkpoint: Annotated[
        str, typer.Argument(help=_CHECKPOINT, metavar="CKPT", show_default=False)
    ],
    images: Annotated[
        list[Path], typer.Argument(help="Image files and folders of images.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Folder for overlays/ and, as the network has them, labels/, panoptic/, "
            "legend.png.",
        ),
    ] = Path("predictions"),
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images of one size at a time.")
    ] = 4,
    tta: Annotated[bool, typer.Option("--tta", help="Average with the mirrored image.")] = False,
    crf: Annotated[str | None, _CRF] = None,
    probs: Annotated[
        bool, typer.Option("--probs", help="Write the probabilities too, to probs/NAME.npz.")
    ] = False,
    scales: Annotated[str | None, _SCALES] = None,
    window: Annotated[str | None, _WINDOW] = None,
    merge: Annotated[str, _MERGE] = "softmax",
    output_stride: Annotated[int | None, _STRIDE] = None,
    score: Annotated[float | None, _SCORE] = None,
    json: Annotated[
        bool,
        typer.Option("--json", help="Write instances to instances.json, as COCO's results."),
    ] = False,
) -> None:
    """Segment images of any size: overlays, and label maps, instances or panoptic segments.

    An image that cannot be read is named at the end, with exit status 1; the others are done.
    """
    from segkern.cli.tables import progress
    from segkern.engine.predict import predict as run

    with progress("predict") as step:
        result = run(
            checkpoint,
            images,
            output,
            device=device,
            batch_size=batch_size,
            tta=tta,
            crf=_settings(crf),
            probs=probs,
            protocol=_protocol(scales, window, merge),
            output_stride=output_stride,
            score=score,
            json=json,
            step=step,
        )
    for path, name in result.done.items():
        if name != path.stem:
            typer.echo(f"{path} -> {name}.png")
    typer.echo(f"{len(result.done)} images segmented: {result.output}")
    if result.failed:
        typer.echo(f"{len(result.failed)} could not be read:", err=True)
        for path, reason in result.failed.items():
            typer.echo(f"  {path}: {reason}", err=True)
        raise typer.Exit(1)


def _settings(crf: str | None) -> Any:
    """The settings behind `--crf`, or None."""
    from segkern.engine.crf_settings import find_settings

    return None if crf is None else find_settings(crf)


def _protocol(scales: str | None, window: str | None, merge: str = "softmax") -> Any:
    from segkern.engine.errors import EngineError
    from segkern.engine.inference import Protocol
    from segkern.engine.settings import parse_size

    try:
        factors = (1.0,) if scales is None else tuple(float(part) for part in scales.split(","))
    except ValueError as error:
        raise EngineError(f"scales must be numbers, like 0.5,1,1.5, got {scales!r}") from error
    size = None if window is None else parse_size(window)
    return Protocol(factors, window=size, merge=merge)
