"""Markdown tables from the results files: ``python -m bench.tables [--check]``.

Rewrites the parts of README.md and docs/*.md between ``<!-- bench:FAMILY:begin -->`` and
``<!-- bench:FAMILY:end -->`` and the .md file beside each results file. Every figure comes from
the JSON files; a row where the peer is faster stays, with its ratio in bold.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import networks, pieces, results, weights

README = results.RESULTS.parent.parent / "README.md"
_BLOCK = re.compile(r"(<!-- bench:(\w+):begin -->\n).*?(<!-- bench:\2:end -->)", re.DOTALL)
_MIB = 2.0**20

Row = Mapping[str, Any]


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits without an exponent; "-" for None."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    if "e" in text:
        text = f"{float(text):.0f}" if abs(value) >= 1 else f"{float(text):.6f}".rstrip("0")
    return text


def fastest(figures: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return min(figures.values(), key=lambda found: found["median_ms"])


def ratio(speedup: float) -> str:
    text = f"{number(speedup, 3)}x"
    return f"**{text}**" if speedup < 1 else text


def mebibytes(count: int | None) -> str:
    return "-" if count is None else number(count / _MIB)


def spread(found: Mapping[str, Any]) -> str:
    return f"{number(found['median_ms'])} [{number(found['q1_ms'])}, {number(found['q3_ms'])}]"


def line(row: Row) -> str:
    """One row for the terminal, with everything that is known of it."""
    ours, theirs = fastest(row["ours"]), peer(row)
    sides = {
        ("segkern" if mode == "eager" else f"segkern {mode}"): found
        for mode, found in row["ours"].items()
    } | row["peers"]
    times = ", ".join(f"{name} {spread(found)} ms" for name, found in sides.items())
    return (
        f"{results.row_id(row)}\n    {times}; {number(row['speedup'])}x the best peer\n"
        f"    {number(ours['gbps'])} GB/s, {percent(ours)} of copy ({row['peer']} "
        f"{number(theirs['gbps'])}, {percent(theirs)}); floor {number(row['floor_ms'])} ms; peak "
        f"{mebibytes(ours_peak(row))} MiB ({row['peer']} {mebibytes(theirs['peak_bytes'])})"
        + (f"; {row['note']}" if row.get("note") else "")
    )


def peer(row: Row) -> Mapping[str, Any]:
    """The figures of the peer's plain form."""
    return row["peers"][row["peer"]]


def ours_peak(row: Row) -> int | None:
    return row["ours"]["eager"]["peak_bytes"]


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], words: int) -> list[str]:
    """A pipe table; the first ``words`` columns are text, the others numbers."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return [f"| {' | '.join(cells)} |" for cells in [head, rule, *lines]]


def device_note(content: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """What the rows were measured on: device, versions, commits, limits."""
    device = content["device"]
    runs = [content["runs"][name] for name in sorted({row["run"] for row in rows})]
    last = runs[-1]
    what = [device["name"]]
    if device["kind"] == "cuda":
        what += [
            f"compute capability {device['capability']}",
            f"driver {last['driver']}",
            f"CUDA {last['cuda']}",
        ]
    else:
        what += [f"{device['cores']} cores", str(device["instructions"])]
    what += [f"torch {last['torch']}", f"segkern {last['segkern']}"]
    text = f"{', '.join(what)}; measured at {', '.join(dict.fromkeys(map(version, runs)))}."
    limits = []
    measured = {threads: rates for run in runs for threads, rates in run["ceilings"].items()}
    for threads, rates in sorted(measured.items()):
        where = "" if threads == "all" else f" with {threads} thread{'s' * (threads != '1')}"
        products = ", ".join(
            f"{number(rate)} TFLOP/s {name.split('_')[1]}"
            for name, rate in rates.items()
            if name.startswith("matmul")
        )
        limits.append(f"copy {number(rates['copy_gbps'])} GB/s, matrix product {products}{where}")
    if limits:
        text += f" Limits measured in the same run: {'; '.join(limits)}."
    if device["kind"] == "cpu":
        text += {
            "kept": " malloc is told to keep freed memory, so neither side pays for page faults.",
            "default": " malloc's own settings: page faults of fresh outputs are in the times.",
        }[last["malloc"]]
    return text


def version(run: Mapping[str, Any]) -> str:
    name = run["commit"] or "no commit"
    return f"{name}{' with changes' if run['modified'] else ''} ({run['date'][:10]})"


def full_table(content: Mapping[str, Any]) -> str:
    """The file beside the results: every row with every figure."""
    rows = list(content["rows"].values())
    if not rows:
        return "# No results\n"
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    modes = list(dict.fromkeys(name for row in rows for name in row["ours"]))
    head = ["operator", "shape", "window", "type", "layout", "threads", "format"]
    words = len(head)
    head += ["segkern" if mode == "eager" else f"segkern {mode}" for mode in modes] + peers
    head += [
        "x best peer",
        "GB/s",
        "peer GB/s",
        "of copy",
        "peer of copy",
        "least MB",
        "floor",
        "peak MiB",
        "peer peak",
        "index MiB",
        "peer index",
        "measured at",
    ]
    lines = []
    for row in rows:
        ours, theirs = fastest(row["ours"]), peer(row)
        cells = [
            row["operator"].replace("_", " "),
            row["shape"],
            row["setting"],
            row["dtype"],
            row["layout"],
            str(row["threads"] or "-"),
            row["variant"],
        ]
        for side, names in ((row["ours"], modes), (row["peers"], peers)):
            cells += [spread(side[name]) if name in side else "-" for name in names]
        cells += [
            ratio(row["speedup"]),
            number(ours["gbps"]),
            number(theirs["gbps"]),
            percent(ours),
            percent(theirs),
            number(row["minimal_bytes"] / 1e6, 4),
            number(row["floor_ms"]),
            mebibytes(ours_peak(row)),
            mebibytes(theirs["peak_bytes"]),
            mebibytes(ours["index_bytes"]),
            mebibytes(theirs["index_bytes"]),
            version(content["runs"][row["run"]]),
        ]
        lines.append(cells)
    text = [
        f"# {content['device']['name']}",
        "",
        device_note(content, rows),
        "",
        "Times are medians in ms with the quartiles beside them: docs/benchmarks.md says how.",
        "",
        *markdown(head, lines, words),
    ]
    return "\n".join(text) + "\n"


def percent(found: Mapping[str, Any]) -> str:
    return f"{100 * found['share_of_copy']:.0f} %"


def family_block(family: str, contents: Iterable[Mapping[str, Any]]) -> str:
    """README's tables of one family: for each device the first shape, the others folded.

    The families ``networks``, ``pieces`` and ``weights`` are no benchmarks: their tables come from
    :mod:`bench.networks`, :mod:`bench.pieces` and from the cards of the built-in weights.
    """
    if family == "pieces":
        return pieces.block()
    if family == "networks":
        return networks.block()
    if family == "weights":
        return "\n".join(markdown(weights.HEAD, weights.lines(), words=2)) + "\n"
    text = []
    for content in contents:
        rows = [row for row in content["rows"].values() if row["family"] == family]
        if rows:
            text += device_block(content, rows)
    return "\n".join(text or ["No results yet.", ""]) + "\n"


def device_block(content: Mapping[str, Any], rows: list[Row]) -> list[str]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["title"], row["shape"], row["setting"]), []).append(row)
    slowest = min(rows, key=lambda row: row["speedup"])
    ahead = sum(row["speedup"] >= 1 for row in rows)
    threads = thread_counts(rows)
    order = (
        ""
        if threads == [None]
        else (f", in each cell with {' / '.join(map(str, threads))} threads")
    )
    legend = (
        f"Medians in ms{order}; x: times as fast as the peer's best form (eager, and "
        "torch.compile and CUDA graph where measured); of copy: share of the rate of a copy of "
        "the same number of bytes; peak: memory used above the inputs, in MiB, "
        f"{' / '.join([rows[0]['peer'], *variants(rows)])}. segkern is level or ahead in {ahead} "
        f"of {len(rows)} rows; the lowest ratio is {number(slowest['speedup'])}x "
        f"({results.row_id(slowest)})."
    )
    name = f"**{content['device']['name']}**"
    text = ["", name, "", device_note(content, rows), "", legend, ""]
    for place, ((title, shape, setting), group) in enumerate(groups.items()):
        note = f"; {group[0]['note']}" if group[0].get("note") else ""
        caption = f"{title}, {shape}, {setting}{note}{index_note(group)}"
        table = comparison(group, threads)
        if place == 0:
            text += [caption, "", *table, ""]
        else:
            text += [f"<details><summary>{caption}</summary>", "", *table, "", "</details>", ""]
    return text


def variants(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows))


def thread_counts(rows: Iterable[Row]) -> list[int | None]:
    return sorted({row["threads"] for row in rows}, key=lambda count: count or 0)


def index_note(rows: Sequence[Row]) -> str:
    """Memory of the indices, for operators that have any."""
    library, whole = rows[0]["peer"], peer(rows[0])["index_bytes"]
    if not whole:
        return ""
    sizes = {row["variant"]: row["ours"]["eager"]["index_bytes"] for row in rows}
    parts = [
        f"{name} {mebibytes(size)} MiB (1/{number(whole / size)})" for name, size in sizes.items()
    ]
    return f"; index memory {', '.join([f'{library} {mebibytes(whole)} MiB', *parts])}"


def comparison(rows: Iterable[Row], threads: Sequence[int | None]) -> list[str]:
    """One line an operator, type and layout; the thread counts share a cell."""
    rows = list(rows)
    names = variants(rows)
    by_line: dict[tuple, dict[tuple, Row]] = {}
    for row in rows:
        key = row["operator"], row["dtype"], row["layout"]
        by_line.setdefault(key, {})[row["variant"], row["threads"]] = row
    several = any(len(row["peers"]) > 1 for row in rows)
    library = rows[0]["peer"]
    head = ["operator", "type", "layout", library] + [f"{library}, best form"] * several
    for name in names:
        head += [name, "x", "of copy"]
    lines = []
    for (operator, dtype, layout), found in by_line.items():

        def cell(name: str, show: Callable[[Row], str], found=found) -> str:
            some = [found.get((name, count)) for count in threads]
            return " / ".join("-" if row is None else show(row) for row in some)

        cells = [operator.replace("_", " "), dtype, layout]
        first = next(name for name, _ in found)
        cells.append(cell(first, lambda row: number(peer(row)["median_ms"])))
        if several:
            cells.append(cell(first, lambda row: number(fastest(row["peers"])["median_ms"])))
        for name in names:
            cells += [
                cell(name, lambda row: number(fastest(row["ours"])["median_ms"])),
                cell(name, lambda row: ratio(row["speedup"])),
                cell(name, lambda row: percent(fastest(row["ours"]))),
            ]
        lines.append([*cells, peak_cell(found, names)])
    return markdown([*head, "peak"], lines, words=3)


def peak_cell(found: Mapping[tuple, Row], names: Iterable[str]) -> str:
    """Peak memory, at the lowest thread count at hand, as it hardly depends on it."""
    peaks = {name: row for (name, _), row in reversed(found.items())}
    theirs = peer(next(iter(peaks.values())))["peak_bytes"]
    ours = [mebibytes(ours_peak(peaks[name])) if name in peaks else "-" for name in names]
    return " / ".join([mebibytes(theirs), *ours])


def fill(text: str, contents: Sequence[Mapping[str, Any]]) -> str:
    """``text`` with every marked block replaced by the table of its family."""
    return _BLOCK.sub(lambda found: found[1] + family_block(found[2], contents) + found[3], text)


def stored(folder: Path) -> dict[Path, dict[str, Any]]:
    """The results files of a folder, GPUs first."""
    files = sorted(folder.glob("*.json"), key=lambda path: (path.name.startswith("cpu"), path.name))
    return {path: results.load(path) for path in files}


def generated(readme: Path, folder: Path) -> dict[Path, str]:
    """Every file that is made from the results, with the text it should have."""
    contents = stored(folder)
    files = {path.with_suffix(".md"): full_table(content) for path, content in contents.items()}
    for page in (readme, *sorted((readme.parent / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8") if page.exists() else ""
        if page == readme and text or _BLOCK.search(text):
            files[page] = fill(text, list(contents.values()))
    return files


def outdated(readme: Path = README, folder: Path = results.RESULTS) -> list[Path]:
    return [
        path
        for path, text in generated(readme, folder).items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 where a file differs from the results",
    )
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--results", type=Path, default=results.RESULTS, metavar="DIR")
    options = parser.parse_args(arguments)
    files = outdated(options.readme, options.results)
    for path in files:
        if not options.check:
            results.write_text(path, generated(options.readme, options.results)[path])
        print(f"{'differs from the results' if options.check else 'written'}: {path.name}")
    return 1 if files and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
