"""Built-in weights from a finished run: ``python -m bench.pack RUN TAG [--data D]``.

Takes RUN/best.safetensors, stores its weights in half precision, measures that file on the
validation set of the run's data, and puts it with its card where ``create_model(NAME,
weights=TAG)`` and ``segkern predict NAME:TAG`` find it; ``python -m bench.tables`` has its row
then. Files above 8 MB are refused.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segkern.engine.evaluate import evaluate
from segkern.models import read_card, save_weights
from segkern.models._weights import BUILTIN_FOLDER, read_state_dict

LARGEST = 8_000_000
# Of the evaluation, into the card.
FIGURES = ("miou", "pixel_accuracy", "mean_accuracy", "fw_iou")


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as float16; running statistics, float64 and integers as they are.

    Raises:
        ValueError: If a weight is beyond float16.
    """
    packed = {}
    for name, tensor in state.items():
        if tensor.dtype == torch.float32 and ".running_" not in name:
            half = tensor.half()
            if not bool(half.isfinite().all()):
                raise ValueError(f"pack: {name} has weights beyond float16")
            packed[name] = half
        else:
            packed[name] = tensor
    return packed


def pack(
    run: Path,
    tag: str,
    *,
    data: str | None = None,
    folder: Path = BUILTIN_FOLDER,
    largest: int = LARGEST,
) -> tuple[Path, dict[str, Any]]:
    """Write the file; its path and its card.

    Raises:
        ValueError: If the tag is none, the file is too large or a weight is beyond float16.
    """
    if not tag.isalnum():
        raise ValueError(f"pack: tag must be of letters and digits, got {tag!r}")
    best = run / "best.safetensors"
    card = dict(read_card(best))
    packed = halved(read_state_dict(best)[0])
    name = card["config"]["name"]
    with tempfile.TemporaryDirectory() as place:
        trial = Path(place) / "weights.safetensors"
        save_weights(trial, packed, {"card": json.dumps(card)})
        size = trial.stat().st_size
        if size > largest:
            raise ValueError(
                f"pack: {name} takes {size / 1e6:.1f} MB in half precision, more than "
                f"{largest / 1e6:.1f}; train it narrower"
            )
        settings = json.loads((run / "config.json").read_text(encoding="utf-8"))["settings"]
        measured = evaluate(
            trial,
            data or settings["data"],
            split=card["protocol"]["split"],
            size=tuple(card["protocol"]["size"]) if card["protocol"]["size"] else None,
            limit=card["protocol"]["images"],
            absent=card["protocol"]["absent_classes"],
            boundary=False,
        )
    card |= {key: measured[key] for key in FIGURES}
    card["iou"] = [row["iou"] for row in measured["per_class"]]
    card["precision"] = "float16"
    path = folder / f"{name}_{tag}.safetensors"
    save_weights(path, packed, {"card": json.dumps(card)})
    return path, card


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("tag", metavar="TAG", help="name of the weights, as camvid")
    parser.add_argument("--data", metavar="D", help="the run's data set, where it has moved")
    parser.add_argument("--folder", type=Path, default=BUILTIN_FOLDER, metavar="DIR")
    options = parser.parse_args(arguments)
    try:
        path, card = pack(options.run, options.tag, data=options.data, folder=options.folder)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(
        f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, mIoU {card['miou']:.4f} on "
        f"{card['protocol']['images']} images of {card['data']}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
