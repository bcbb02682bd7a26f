"""The command `segkern`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_EXTRA = (
    "typer",
    "rich",
    "lightning",
    "tensorboard",
    "safetensors",
    "PIL",
    "matplotlib",
    "torchvision",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 (a run failed), 2 (wrong use) or 130 (Ctrl-C).

    `segkern info` works with torch and numpy alone; everything else needs the `[train]` extra, and
    says so.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        from segkern.cli.app import run
    except ModuleNotFoundError as error:
        if not _of_the_extra(error):
            raise
        if arguments[:1] == ["info"]:
            from segkern.cli.plain import info

            return info()
        return _say_extra(error)
    try:
        return run(arguments)
    except ModuleNotFoundError as error:
        if not _of_the_extra(error):
            raise
        return _say_extra(error)


def _of_the_extra(error: ModuleNotFoundError) -> bool:
    return (error.name or "").partition(".")[0] in _EXTRA


def _say_extra(error: ModuleNotFoundError) -> int:
    print(
        f"segkern: the package {error.name} is missing. The command line, training and evaluation "
        "need the train extra:\n  pip install 'segkern[train]'\n(`segkern info` works without "
        "it.)",
        file=sys.stderr,
    )
    return 2
