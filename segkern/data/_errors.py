"""The error that names everything wrong with a data set at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One bad file.

    Args:
        kind: what sort of fault it is, for example ``"unreadable mask"``.
        path: the file, relative to the data set's folder.
        detail: one line saying what was found.
    """

    kind: str
    path: str
    detail: str


class DatasetError(ValueError):
    """A data set that cannot be used as it is.

    The message names every bad file, grouped by kind with a count for each.

    Args:
        message: the head line, or the whole message where there are no single files to name.
        problems: the bad files.

    Attributes:
        problems (tuple[Problem, ...]): the bad files in the order they were found.
        counts (dict[str, int]): the number of bad files of each kind.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        self.counts = dict(Counter(problem.kind for problem in self.problems))
        super().__init__(_compose(message, self.problems, self.counts))


def _compose(message: str, problems: Sequence[Problem], counts: dict[str, int]) -> str:
    if not problems:
        return message
    summary = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    lines = [f"{message}: {summary}"]
    for kind, number in counts.items():
        lines.append(f"{kind} ({number}):")
        lines += [f"  {p.path}: {p.detail}" for p in problems if p.kind == kind]
    return "\n".join(lines)
