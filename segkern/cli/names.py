"""How the words of a command line are read where typer alone would not do."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class Commands(TyperGroup):
    """Commands of which some have names of two words, as `crf tune` beside `crf`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = " ".join(args[:2])
        if len(args) > 1 and name in self.commands:
            args = [name, *args[2:]]
        return super().resolve_command(ctx, args)


class WithCrf(TyperCommand):
    """A command whose option `--crf` may stand without a value.

    The word after `--crf` is its value only where it is the name of a preset or a .json file, so
    that `predict CKPT --crf photo.jpg` means what it says.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        return super().parse_args(ctx, _spelled_out(args))


def _spelled_out(args: list[str]) -> list[str]:
    if "--crf" not in args:
        return args
    from segkern.engine.crf_settings import DEFAULT_PRESET, PRESETS

    at = args.index("--crf")
    if "--" in args[:at]:
        return args
    following = args[at + 1] if at + 1 < len(args) else ""
    if following in PRESETS or following.endswith(".json"):
        return args
    return [*args[: at + 1], DEFAULT_PRESET, *args[at + 1 :]]
