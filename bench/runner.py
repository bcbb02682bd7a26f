"""Runs a case: once, to see that it works, or timed beside its peers in the same rounds."""

from __future__ import annotations

import contextlib
import gc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

from bench import environment, peers, results, roofline, tables
from bench.cases import Case, Contender
from bench.timing import (
    CpuClock,
    CudaClock,
    Timing,
    interleave,
    keep_freed_memory,
    peak_extra_bytes,
)

Check = Callable[[str, Any, Any], None]


@contextlib.contextmanager
def thread_count(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def has_graphs(case: Case) -> bool:
    """Whether the case is also run in CUDA graphs: not with ``graphs=False`` in its options, for
    what waits for the device."""
    return case.device == "cuda" and case.options.get("graphs", True)


class Runner:
    """The state of one pytest run: its clocks, the machine's limits, the rows measured so far."""

    def __init__(self, timed: bool, say: Callable[[str], None] = print):
        self.timed, self.say = timed, say
        self.malloc = keep_freed_memory() if timed else "default"
        self.rows: dict[str, list[results.Row]] = defaultdict(list)
        self.ceilings: dict[str, dict[str, dict[str, float]]] = defaultdict(dict)
        self._runs: dict[str, dict[str, Any]] = {}
        self._clocks: dict[str, CpuClock | CudaClock] = {}
        self._copy = roofline.Copy()
        self._inputs: tuple[object, Any] = (None, None)

    def inputs(self, key: object, build: Callable[[], Any]) -> Any:
        """``build()``, kept as long as cases with the same key follow one another."""
        if self._inputs[0] != key:
            self._inputs = (None, None)
            gc.collect()
            self._inputs = (key, build())
        return self._inputs[1]

    def run(
        self,
        case: Case,
        ours: Mapping[str, Contender],
        peer: Contender,
        check: Check,
        compiled: Callable[[], object] | None = None,
        note: str = "",
    ) -> None:
        """Compare each variant's values with the peer's, then time all of them together.

        ``peer`` is the peer's eager form; its CUDA-graph form is added on CUDA, and ``compiled``,
        its torch.compile form, where given. ``check(variant, our_result, peer_result)`` raises
        AssertionError on values that differ. ``note`` goes with the row: a size that its time
        depends on.
        """
        with thread_count(case.threads):
            expected = peer.make()()
            for variant, contender in ours.items():
                check(variant, contender.make()(), expected)
            if has_graphs(case):
                for variant, contender in ours.items():
                    check(variant, peers.cuda_graph(contender.make)(), expected)
            del expected
            if self.timed:
                self._time(case, ours, peer, compiled, note)

    def _time(self, case, ours, peer, compiled, note) -> None:
        clock = self._clock(case)
        calls = {("peer", "eager"): peer.make()}
        calls |= {(name, "eager"): contender.make() for name, contender in ours.items()}
        if compiled is not None and self._works(case, compiled):
            calls["peer", "compile"] = compiled
        peaks = {key: peak_extra_bytes(call, case.device) for key, call in calls.items()}
        if has_graphs(case):
            for name, contender in {"peer": peer, **ours}.items():
                calls[name, "graph"] = peers.cuda_graph(contender.make)
        least = min(contender.bytes for contender in ours.values())
        times = interleave({**calls, "copy": self._copy.of(least, case.device)}, clock)
        copy_rate = least / times["copy"].median

        def figures(name: str, contender: Contender) -> dict[str, dict[str, Any]]:
            return {
                mode: numbers(times[key, mode], contender, copy_rate, peaks.get((key, mode)))
                for key, mode in calls
                if key == name
            }

        theirs = {
            (peer.library if mode == "eager" else f"{peer.library} {mode}"): found
            for mode, found in figures("peer", peer).items()
        }
        for variant, contender in ours.items():
            row = {
                "case": case.name,
                "family": case.family,
                "operator": case.operator,
                "title": case.title,
                "shape": case.size,
                "setting": case.setting,
                "dtype": case.dtype,
                "layout": case.layout,
                "threads": case.threads,
                "variant": variant,
                "note": note,
                "peer": peer.library,
                "ours": figures(variant, contender),
                "peers": theirs,
                "minimal_bytes": contender.bytes,
                "copy_gbps": rounded(copy_rate / 1e9),
                "floor_ms": rounded(1e3 * contender.bytes / copy_rate),
            }
            row |= {"speedup": rounded(best(row["peers"]) / best(row["ours"]))}
            self.rows[case.device].append(row)
            self.say(tables.line(row))

    def _clock(self, case: Case) -> CpuClock | CudaClock:
        """The device's clock; its limits are measured when a thread count is first met."""
        if case.device not in self._clocks:
            self._runs[case.device] = environment.describe_run(case.device, self.malloc)
            self._clocks[case.device] = (
                CudaClock(torch.device("cuda")) if case.device == "cuda" else CpuClock()
            )
        clock = self._clocks[case.device]
        where = "all" if case.threads is None else str(case.threads)
        if where not in self.ceilings[case.device]:
            self.ceilings[case.device][where] = roofline.ceilings(case.device, clock)
        return clock

    def _works(self, case: Case, compiled: Callable[[], object]) -> bool:
        """Compile now; a shape that torch.compile cannot do is left out of the row, and said."""
        if not peers.can_compile(case.device):
            self.say(f"{case.id}: no compiler for torch.compile, its figure is left out")
            return False
        torch._dynamo.reset()
        try:
            compiled()
        except TorchDynamoException as error:
            self.say(f"{case.id}: torch.compile failed ({type(error).__name__}), left out")
            return False
        return True

    def store(self, folder: Path, declared: Mapping[str, set[str]] | None) -> list[Path]:
        """Merge the rows into the device's results file and write the table beside it."""
        written = []
        for device, rows in self.rows.items():
            about, run = self.describe(device)
            path = folder / f"{about['slug']}.json"
            names = (
                None
                if declared is None
                else {
                    family: {name for name in cases if name.startswith(f"{device}-")}
                    for family, cases in declared.items()
                }
            )
            content = results.merge(results.load(path), about, run, rows, names)
            results.save(path, content)
            results.write_text(path.with_suffix(".md"), tables.full_table(content))
            written += [path, path.with_suffix(".md")]
        return written

    def describe(self, device: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The device and the run, as it was when the device's first case was timed."""
        run = {**self._runs[device], "ceilings": self.ceilings[device]}
        return environment.describe_device(device), run


def numbers(
    timing: Timing, contender: Contender, copy_rate: float, peak: int | None
) -> dict[str, Any]:
    """A contender's figures; rates count its least bytes, shares are of the copy in its rounds."""
    rate = contender.bytes / timing.median
    first, third = timing.quartiles
    return {
        "median_ms": rounded(1e3 * timing.median),
        "q1_ms": rounded(1e3 * first),
        "q3_ms": rounded(1e3 * third),
        "rounds": len(timing.rounds),
        "gbps": rounded(rate / 1e9),
        "share_of_copy": rounded(rate / copy_rate),
        "peak_bytes": peak,
        "index_bytes": contender.index_bytes,
    }


def best(figures: Mapping[str, Mapping[str, Any]]) -> float:
    return min(found["median_ms"] for found in figures.values())


def rounded(number: float) -> float:
    """Four significant digits: more would claim a precision that no timing has."""
    return float(f"{number:.4g}")
