"""A run on one page: pictures, curves, figures, kernel speed, in one HTML file."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import segkern
from segkern.engine.callbacks import read_rows
from segkern.engine.chart import Line, line_chart
from segkern.engine.checkpoint import LAST, METRICS, read_state
from segkern.engine.errors import EngineError
from segkern.engine.evaluate import RESULT, draw_sample, evaluate, open_for, spread
from segkern.engine.files import write_atomic
from segkern.engine.loading import Trained, load_trained
from segkern.engine.page import PAGE
from segkern.engine.speed import SpeedReport, measure_speed
from segkern.engine.tasks import task_of
from segkern.engine.tasks.base import Picture, ReportParts

EVALUATION = "evaluation"


def write_report(
    run: str | Path,
    output: str | Path | None = None,
    *,
    data: str | None = None,
    device: str = "auto",
    pictures: int = 4,
    speed: bool = True,
    fresh: bool = False,
    show: Callable[[str], None] | None = None,
) -> Path:
    """Write the report of a run folder as one HTML file (RUN/report.html); return its path.

    The evaluation in RUN/evaluation is used where it is of the same weights, and made otherwise or
    with `fresh`.
    data: needed only where the run's own has moved. speed: measure pooling beside torch, a few
    seconds.
    """
    run = Path(run)
    if not (run / METRICS).is_file():
        raise EngineError(f"report: {run} is not the folder of a run (no {METRICS})")
    say = show or (lambda line: None)
    trained = load_trained(run, device)
    folder = run / EVALUATION
    measured = None if fresh else _stored(folder / RESULT, trained.fingerprint())
    if measured is None:
        say("report: evaluating")
        measured = evaluate(run, data, device=device, output=folder)
    dataset, _, _ = open_for(trained, data or measured["data"], split=measured["split"])
    samples = [draw_sample(trained, dataset, i) for i in spread(pictures, len(dataset))]
    if speed:
        say("report: measuring kernel speed")
    measurement = measure_speed(device) if speed else None
    state = read_state(run / LAST) if (run / LAST).is_file() else None
    parts = task_of(trained.model).report(measured, trained.palette)
    page = PAGE.substitute(
        title=escape(f"{measured['model']} on {measured['data']}"),
        lead=escape(_lead(trained, measured)),
        tiles=_tiles(parts, trained, state),
        legend=_legend(trained),
        pictures="".join(_sample(sample) for sample in samples),
        note=escape(parts.note),
        curves=_curves(run, parts),
        figures=_figures(parts),
        protocol=escape(parts.protocol),
        heading=escape(parts.heading),
        columns="".join(f'<th class="n">{escape(name)}</th>' for name in parts.columns),
        classes=_classes(parts),
        speed=_speed(measurement),
        settings=_settings(trained),
        environment=_environment(),
    )
    target = run / "report.html" if output is None else Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, page.encode("utf-8"))
    return target


def _stored(path: Path, fingerprint: str) -> dict[str, Any] | None:
    """An earlier evaluation, if there is one and it is of these weights."""
    if not path.is_file():
        return None
    measured = json.loads(path.read_text(encoding="utf-8"))
    return measured if measured.get("weights_sha256") == fingerprint else None


def _lead(trained: Trained, measured: dict[str, Any]) -> str:
    size = f" at {measured['size'][0]}x{measured['size'][1]}" if measured["size"] else ""
    split = {"val": "validation", "train": "training"}.get(measured["split"], measured["split"])
    score = task_of(trained.model).score_title
    return (
        f"Measured on {measured['images']} images{size} of the {split} split; "
        f"weights of epoch {trained.card.get('epoch', '?')}, the best by validation {score}."
    )


def _tiles(parts: ReportParts, trained: Trained, state: Any) -> str:
    parameters = sum(p.numel() for p in trained.network.parameters())
    tiles = [(name, _percent(value)) for name, value in parts.figures[:2]]
    tiles.append(("Parameters", _count(parameters)))
    if state is not None:
        tiles.append((f"Training, {state.step:,} steps", _duration(state.seconds)))
        if state.peak_memory:
            tiles.append(("Peak memory of training", f"{state.peak_memory >> 20:,} MiB"))
    return "".join(
        f'<div class="tile"><div class="value">{escape(value)}</div><div>{escape(name)}</div></div>'
        for name, value in tiles
    )


def _legend(trained: Trained) -> str:
    return "".join(
        f'<span class="key"><i style="background:{_colour(colour)}"></i>{escape(name)}</span>'
        for name, colour in zip(*task_of(trained.model).legend(trained.card), strict=True)
    )


def _sample(sample: Picture) -> str:
    pictures = (
        ("photo", sample.photo, "jpeg"),
        ("truth", sample.truth, "png"),
        ("prediction", sample.prediction, "png"),
    )
    cells = "".join(
        f'<figure class="{kind}"><img src="{_data_uri(array, form)}" '
        f'alt="{kind} of {escape(sample.name)}"><figcaption>{kind}</figcaption></figure>'
        for kind, array, form in pictures
    )
    return f'<div class="sample">{cells}</div>'


def _data_uri(array: np.ndarray, form: str) -> str:
    buffer = io.BytesIO()
    picture = Image.fromarray(array)
    if form == "jpeg":
        picture.save(buffer, "JPEG", quality=88)
    else:
        picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _curves(run: Path, shown: ReportParts) -> str:
    rows = read_rows(run / METRICS)

    def points(name: str) -> list[tuple[float, float]]:
        return [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]

    parts = []
    for title, columns, from_zero in shown.curves:
        lines = [
            Line(name, css, points(column))
            for (name, column), css in zip(columns, ("one", "two"), strict=False)
        ]
        keys = "".join(
            f'<span class="key"><i class="{line.css}"></i>{escape(line.name)}</span>'
            for line in lines
        )
        svg = line_chart(lines, x_label="epoch", y_label=title, from_zero=from_zero)
        parts.append(
            f'<div class="card"><h3>{escape(title)}</h3><div class="legend">{keys}</div>'
            f"{svg or '<p>No epoch has been finished yet.</p>'}</div>"
        )
    return "".join(parts)


def _figures(parts: ReportParts) -> str:
    return "".join(
        f'<tr><th scope="row">{escape(title)}</th><td class="n">{_percent(value)}</td></tr>'
        for title, value in parts.figures
    )


def _classes(parts: ReportParts) -> str:
    rows = []
    for name, colour, share, values in parts.rows:
        width = 0.0 if share is None else 100 * share
        swatch = "" if colour is None else f'<i style="background:{_colour(colour)}"></i>'
        rows.append(
            f'<tr><th scope="row"><span class="key">{swatch}{escape(name)}</span></th>'
            f'<td class="bar"><div><b style="width:{width:.1f}%"></b></div></td>'
            + "".join(f'<td class="n">{_percent(value)}</td>' for value in values)
            + "</tr>"
        )
    return "".join(rows)


def _speed(measurement: SpeedReport | None) -> str:
    if measurement is None:
        return "<p>Not measured for this report.</p>"
    rows = "".join(
        f'<tr><th scope="row">{escape(row.operation)} <small>{row.layout}</small></th>'
        f'<td class="n">{row.segkern_ms:.2f}</td><td class="n">{row.torch_ms:.2f}</td>'
        f'<td class="n">{row.ratio:.1f}x</td></tr>'
        for row in measurement.rows
    )
    sizes = ", ".join(f"{name} {value:.2g}" for name, value in measurement.index_bytes.items())
    shape = "x".join(map(str, measurement.shape))
    return (
        '<div class="scroll"><table><thead><tr><th>2x2 windows, float32</th>'
        '<th class="n">segkern, ms</th><th class="n">torch, ms</th><th class="n">ratio</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
        f'<p class="note after">Input {shape}, {escape(measurement.device)}; best of a few runs in '
        "turn in one process, so other programs on the machine show. Index memory in bytes a "
        "pooled value: "
        f"{escape(sizes)}.</p>"
    )


def _settings(trained: Trained) -> str:
    settings = {
        k: v for k, v in trained.settings.items() if k not in ("recipe", "output", "progress")
    }
    recipe = {k: v for k, v in trained.card["recipe"].items() if k not in ("notes", "source")}
    return _facts({**settings, **recipe, "recipe from": trained.card["recipe"].get("source", "")})


def _environment() -> str:
    env = segkern.env()
    facts: dict[str, Any] = {k: v for k, v in env["versions"].items() if v is not None}
    for name, module in env["modules"].items():
        facts[name] = "loaded" if module["loaded"] else f"not loaded: {module['reason']}"
    facts["compiled for"] = ", ".join(env["architectures"]) or "CPU only"
    facts["GPUs"] = ", ".join(device["name"] for device in env["devices"]) or "none"
    cpu = env.get("cpu", {})
    facts["CPU"] = f"{cpu.get('machine', '?')}, {cpu.get('threads', '?')} threads"
    return _facts(facts)


def _facts(facts: dict[str, Any]) -> str:
    return "".join(
        f'<tr><th scope="row">{escape(_words(name))}</th><td>{escape(_plain(value))}</td></tr>'
        for name, value in facts.items()
        if value not in (None, {}, "")
    )


def _words(name: str) -> str:
    return name if name.startswith("_") else name.replace("_", " ")


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return str(value)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _count(number: int) -> str:
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,}"


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _colour(rgb: np.ndarray) -> str:
    return "#{:02x}{:02x}{:02x}".format(*(int(c) for c in rgb))
