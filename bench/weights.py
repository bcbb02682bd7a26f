"""The table of built-in weights, from the cards inside the files."""

from __future__ import annotations

from pathlib import Path

from segkern.models import get_weights, list_models
from segkern.models._weights import read_card


def lines() -> list[list[str]]:
    """One line for each file: where it comes from and what it reaches."""
    found = []
    for name in list_models():
        for tag, path in get_weights(name).items():
            card = read_card(path)
            protocol = card["protocol"]
            height, width = protocol["size"]
            found.append(
                [
                    f"`{name}:{tag}`",
                    f"{card['data']}, {protocol['split']} ({protocol['images']} images, "
                    f"{width}x{height})",
                    f"{100 * card['miou']:.1f} %",
                    f"{100 * card['pixel_accuracy']:.1f} %",
                    f"{card['epoch']}",
                    f"{Path(path).stat().st_size / 1e6:.2f} MB",
                ]
            )
    return found


HEAD = ["weights", "data", "mIoU", "pixel accuracy", "epochs", "file"]
