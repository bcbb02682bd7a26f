"""What a benchmark row is, and which rows a run is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Case:
    """One operator at one shape, element type and layout; the variants of ours are timed in it.

    ``data`` names the inputs, so that cases which share them are run next to each other.
    ``device`` and ``threads`` are filled in by :func:`expand` (threads is None on CUDA).
    """

    family: str
    operator: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    setting: str
    title: str
    compiled: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)
    device: str = "cpu"
    threads: int | None = None

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def data(self) -> tuple:
        return self.device, self.shape, self.dtype, self.layout, self.setting

    @property
    def name(self) -> str:
        """The row's identity apart from the thread count and the variant."""
        parts = (self.device, self.operator, self.size, self.setting, self.dtype, self.layout)
        return "-".join(parts)

    @property
    def id(self) -> str:
        return self.name if self.threads is None else f"{self.name}-{self.threads}t"


@dataclass
class Contender:
    """Something to be timed.

    ``make`` returns the callable that is timed; it is called under the stream the callable will
    run on, so that a backward pass is captured on the stream of its forward pass. ``bytes`` is the
    least that must be moved with this contender's own formats: every input read once, every
    output written once. ``index_bytes`` is the memory its pooling indices take. ``library`` names
    whose work it is in the tables.
    """

    make: Callable[[], Callable[[], Any]]
    bytes: int
    index_bytes: int = 0
    library: str = "torch"


def matches(case_id: str, words: str) -> bool:
    """True when each blank-separated word of ``words`` occurs in the id (upper case ignored)."""
    return all(word in case_id.lower() for word in words.lower().split())


def expand(
    cases: Iterable[Case], devices: Iterable[str], threads: Iterable[int], words: str = ""
) -> list[Case]:
    """The cases on every device and thread count, those that share inputs beside each other."""
    cases = list(cases)
    threads = list(threads)
    rows = []
    for device in devices:
        here = [replace(case, device=device) for case in cases if allowed(case, device)]
        for data in dict.fromkeys(case.data for case in here):
            group = [case for case in here if case.data == data]
            for count in threads if device == "cpu" else [None]:
                rows += [replace(case, threads=count) for case in group]
    return [case for case in rows if matches(case.id, words)]


def allowed(case: Case, device: str) -> bool:
    """float16 rows belong to the GPU: on the CPU the half type in use is bfloat16. A case may name
    its ``devices``."""
    if device not in case.options.get("devices", (device,)):
        return False
    return device != "cpu" or case.dtype != "float16"
