"""`segkern crf` and `segkern crf tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_CRF = "Dense CRF (default: the preset's)"
_LABELS = "Label maps"
_SPACE = "Search (values: FIRST:LAST, FIRST:STEP:LAST or A,B,C)"


def _option(*names: str, panel: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(
        *names, rich_help_panel=panel, help=help, metavar=metavar, show_default=False, **more
    )


def crf(
    image: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGE", help="A photograph, or a folder of them.", show_default=False
        ),
    ],
    evidence: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS_OR_PROBS",
            help="Its label map (PNG with numbers, a palette or colours; or an integer array) or "
            "probabilities (L, H, W) in .npy, .npz or .safetensors; or a folder of files with the "
            "photographs' names.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="A .png for labels, .npy, .npz or .safetensors for probabilities; for folders a "
            "folder.",
            show_default=False,
        ),
    ],
    save: Annotated[
        str | None,
        typer.Option(
            "--save",
            metavar="WHAT",
            help="labels, probs, overlay or panel (default: what OUT's suffix says).",
            show_default=False,
        ),
    ] = None,
    suffix: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="F",
            help="Of the outputs of a folder: png, npy, npz or safetensors.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images of one size at a time.")
    ] = 4,
    preset: Annotated[
        str,
        typer.Option(
            "--preset",
            rich_help_panel=_CRF,
            help="pydensecrf (its example), densecrf, deeplabv1, deeplabv2, gcrf or crfasrnn.",
        ),
    ] = "pydensecrf",
    params: Annotated[
        Path | None,
        _option(
            "--params",
            panel=_CRF,
            metavar="FILE",
            help="Settings from the best.json of `segkern crf tune`, in place of a preset.",
        ),
    ] = None,
    gaussian_sxy: Annotated[
        float | None,
        _option("--gaussian-sxy", panel=_CRF, help="Width of the smoothness term in pixels."),
    ] = None,
    gaussian_weight: Annotated[
        float | None,
        _option("--gaussian-weight", panel=_CRF, help="Its weight; 0 leaves it out."),
    ] = None,
    bilateral_sxy: Annotated[
        float | None,
        _option("--bilateral-sxy", panel=_CRF, help="Width of the appearance term in pixels."),
    ] = None,
    bilateral_srgb: Annotated[
        float | None,
        _option("--bilateral-srgb", panel=_CRF, help="Its width in colour, of 0 to 255."),
    ] = None,
    bilateral_weight: Annotated[
        float | None,
        _option("--bilateral-weight", panel=_CRF, help="Its weight; 0 leaves it out."),
    ] = None,
    normalization: Annotated[
        str | None,
        _option("--normalization", panel=_CRF, help="symmetric, after, before or none."),
    ] = None,
    iterations: Annotated[
        int | None, _option("--iterations", panel=_CRF, help="Mean field updates.")
    ] = None,
    order: Annotated[
        str | None,
        _option(
            "--feature-order",
            panel=_CRF,
            metavar="xy|yx",
            help="Order of the positions among the features: yx in pydensecrf's example, else xy.",
        ),
    ] = None,
    gt_prob: Annotated[
        float | None,
        _option("--gt-prob", panel=_LABELS, help="How likely a label is right (0.7)."),
    ] = None,
    unknown: Annotated[
        str,
        _option(
            "--unknown",
            panel=_LABELS,
            metavar="LABEL",
            help="The label of unknown pixels, as 255 or #000000; none; or auto, the default: "
            "black in a map of colours, none in a map of numbers or with a palette.",
        ),
    ] = "auto",
) -> None:
    """Refine labels or probabilities with a dense CRF over the photograph.

    Labels keep their values, palette and colours. `segkern crf tune` searches the numbers.
    """
    from segkern.cli.tables import progress
    from segkern.engine.crf_evidence import parse_unknown
    from segkern.engine.crf_files import refine_files
    from segkern.engine.crf_settings import PRESETS, find_settings
    from segkern.engine.errors import EngineError

    if params is None and preset not in PRESETS:
        raise EngineError(f"crf: preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    settings = find_settings(preset if params is None else params).replace(
        gaussian_sxy=gaussian_sxy,
        gaussian_weight=gaussian_weight,
        bilateral_sxy=bilateral_sxy,
        bilateral_srgb=bilateral_srgb,
        bilateral_weight=bilateral_weight,
        normalization=normalization,
        iterations=iterations,
        order=order,
    )
    with progress("crf") as step:
        result = refine_files(
            image,
            evidence,
            output,
            settings,
            certainty=gt_prob,
            unknown=parse_unknown(unknown),
            save=save,
            suffix=None if suffix is None else "." + suffix.lower().removeprefix("."),
            device=device,
            batch_size=batch_size,
            overwrite=overwrite,
            step=step,
        )
    if len(result) == 1:
        (found,) = result.values()
        labels = ", ".join(map(str, found.values[:20])) + (" ..." if found.values[20:] else "")
        pixels = f", {found.unknown} pixels unknown" if found.labels else ""
        typer.echo(f"{len(found.values)} labels: {labels}{pixels}")
    typer.echo(f"{len(result)} {'image' if len(result) == 1 else 'images'} refined: {output}")


def tune(
    images: Annotated[
        Path, typer.Argument(metavar="IMAGES", help="Folder of photographs.", show_default=False)
    ],
    probs: Annotated[
        Path,
        typer.Argument(
            metavar="PROBS",
            help="Folder of probabilities (C, H, W), as of `segkern predict --probs`, in files "
            "with the photographs' names.",
            show_default=False,
        ),
    ],
    labels: Annotated[
        Path,
        typer.Argument(
            metavar="LABELS", help="Folder of true label maps, likewise.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN",
            help="Folder for trials.csv and best.json; a search found there goes on.",
            show_default=False,
        ),
    ],
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Search on at most so many images.")
    ] = 100,
    ignore: Annotated[int, typer.Option("--ignore", help="Label that is not counted.")] = 255,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the search in the folder.")
    ] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    space: Annotated[
        str,
        typer.Option(
            "--space",
            rich_help_panel=_SPACE,
            help="Ranges of a paper, deeplabv1 or deeplabv2; the options below replace single "
            "ones.",
        ),
    ] = "deeplabv2",
    gaussian_sxy: Annotated[
        str | None, _option("--gaussian-sxy", panel=_SPACE, help="Width of the smoothness term.")
    ] = None,
    gaussian_weight: Annotated[
        str | None, _option("--gaussian-weight", panel=_SPACE, help="Its weight.")
    ] = None,
    bilateral_sxy: Annotated[
        str | None, _option("--bilateral-sxy", panel=_SPACE, help="Width of the appearance term.")
    ] = None,
    bilateral_srgb: Annotated[
        str | None, _option("--bilateral-srgb", panel=_SPACE, help="Its width in colour.")
    ] = None,
    bilateral_weight: Annotated[
        str | None, _option("--bilateral-weight", panel=_SPACE, help="Its weight.")
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds",
            min=0,
            rich_help_panel=_SPACE,
            help="Finer grids around the best, each of half the step.",
        ),
    ] = 1,
    normalization: Annotated[
        str,
        typer.Option(
            "--normalization", rich_help_panel=_SPACE, help="symmetric, after, before or none."
        ),
    ] = "after",
    iterations: Annotated[
        int,
        typer.Option("--iterations", min=1, rich_help_panel=_SPACE, help="Mean field updates."),
    ] = 10,
) -> None:
    """Search the widths and weights of the dense CRF with the highest mIoU.

    Every combination is tried on images whose labels are known, then a finer grid around the best.
    Stopped and called again, it goes on.
    """
    import dataclasses

    from segkern.cli.tables import percent, progress
    from segkern.engine.crf_search import SPACES, parse_range
    from segkern.engine.crf_tune import BEST
    from segkern.engine.crf_tune import tune as run
    from segkern.engine.errors import EngineError

    if space not in SPACES:
        raise EngineError(f"crf tune: space must be one of {', '.join(SPACES)}, got {space!r}")
    ranges = {
        "gaussian_sxy": gaussian_sxy,
        "gaussian_weight": gaussian_weight,
        "bilateral_sxy": bilateral_sxy,
        "bilateral_srgb": bilateral_srgb,
        "bilateral_weight": bilateral_weight,
    }
    given = {name: parse_range(name, text) for name, text in ranges.items() if text is not None}
    with progress("crf tune") as step:
        best = run(
            images,
            probs,
            labels,
            output,
            dataclasses.replace(SPACES[space], **given),
            normalization=normalization,
            iterations=iterations,
            rounds=rounds,
            limit=limit,
            ignore=ignore,
            device=device,
            overwrite=overwrite,
            step=step,
        )
    for name, value in best["crf"].items():
        typer.echo(f"{name:<18}{value}")
    typer.echo(
        f"mIoU {percent(best['unary_miou'])} without, {percent(best['miou'])} with the dense CRF, "
        f"on {best['images']} images after {best['trials']} trials"
    )
    typer.echo(f"written: {Path(output) / BEST}")
