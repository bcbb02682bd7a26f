"""The results files and the tables made from them."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import torch

from bench import environment, results, tables
from bench.cases import Case, expand, matches
from bench.timing import CpuClock, Timing, interleave, peak_extra_bytes


def figures(median: float, peak: int | None = 3 << 20) -> dict:
    return {
        "median_ms": median,
        "q1_ms": 0.9 * median,
        "q3_ms": 1.1 * median,
        "rounds": 7,
        "gbps": 8.0 / median,
        "share_of_copy": 0.8 / median,
        "peak_bytes": peak,
        "index_bytes": 1 << 20,
    }


def row(operator: str, variant: str, threads: int, ours: float, torch_ms: float) -> dict:
    return {
        "case": f"cpu-{operator}-8x4",
        "family": "pool",
        "operator": operator,
        "title": "Stage",
        "shape": "8x4",
        "setting": "2x2s2",
        "dtype": "float32",
        "layout": "contiguous",
        "threads": threads,
        "variant": variant,
        "peer": "torch",
        "ours": {"eager": figures(ours)},
        "peers": {"torch": figures(torch_ms)},
        "minimal_bytes": 8_000_000,
        "copy_gbps": 10.0,
        "floor_ms": 0.8,
        "speedup": torch_ms / ours,
    }


DEVICE = {"kind": "cpu", "name": "A CPU", "slug": "cpu-a-cpu", "cores": 2, "instructions": "AVX2"}


def a_run(date: str, commit: str = "aaaa", modified: bool = False) -> dict:
    return {
        "date": date,
        "commit": commit,
        "modified": modified,
        "torch": "2.11.0",
        "segkern": "0.1.0",
        "malloc": "kept",
        "ceilings": {"1": {"copy_gbps": 10.0, "matmul_float32_tflops": 0.1}},
    }


@pytest.fixture
def content() -> dict:
    rows = [
        row("pool_forward", variant, threads, 2.0, 30.0 if threads == 1 else 1.5)
        for variant in ("offset", "packed")
        for threads in (1, 2)
    ]
    empty = {"schema": results.SCHEMA, "device": {}, "runs": {}, "rows": {}}
    return results.merge(empty, DEVICE, a_run("2025-01-02T03:04:05Z"), rows)


def test_partial_run_updates_only_its_rows(content):
    fresh = [row("pool_forward", "packed", 2, 1.0, 1.5), row("unpool_forward", "packed", 1, 1, 2)]
    merged = results.merge(content, DEVICE, a_run("2025-02-02T00:00:00Z", "bbbb"), fresh)
    dates = {key: merged["runs"][found["run"]]["commit"] for key, found in merged["rows"].items()}
    assert dates == {
        "cpu-pool_forward-8x4-1t-offset": "aaaa",
        "cpu-pool_forward-8x4-2t-offset": "aaaa",
        "cpu-pool_forward-8x4-1t-packed": "aaaa",
        "cpu-pool_forward-8x4-2t-packed": "bbbb",
        "cpu-unpool_forward-8x4-1t-packed": "bbbb",
    }
    assert len(content["rows"]) == 4


def test_whole_run_drops_what_is_no_longer_declared(content):
    fresh = [row("unpool_forward", "packed", 1, 1.0, 2.0)]
    declared = {"pool": {"cpu-unpool_forward-8x4"}}
    merged = results.merge(content, DEVICE, a_run("2025-02-02T00:00:00Z"), fresh, declared)
    assert list(merged["rows"]) == ["cpu-unpool_forward-8x4-1t-packed"]
    assert list(merged["runs"]) == ["2025-02-02T00:00:00Z"]


def test_save_is_atomic(tmp_path, content, monkeypatch):
    path = tmp_path / "device.json"
    results.save(path, content)
    assert results.load(path) == content
    before = path.read_bytes()

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results.save(path, {**content, "rows": {}})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["device.json"]


def test_load_refuses_another_schema(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"schema": 0}))
    with pytest.raises(ValueError, match=r"old\.json: schema must be"):
        results.load(path)


def test_rows_where_the_peer_wins_stay(content):
    block = tables.family_block("pool", [content])
    assert "| 30 / 1.5 | 2 / 2 | 15x / **0.75x** |" in block
    assert "level or ahead in 2 of 4 rows; the lowest ratio is 0.75x" in block
    assert "aaaa (2025-01-02)" in block
    full = tables.full_table(content)
    assert full.count("| pool forward |") == 4
    assert "**0.75x**" in full


def test_fill_replaces_marked_blocks_only(content):
    text = "top\n<!-- bench:pool:begin -->\nstale figures\n<!-- bench:pool:end -->\nbottom\n"
    filled = tables.fill(text, [content])
    assert filled.startswith("top\n<!-- bench:pool:begin -->\n")
    assert filled.endswith("<!-- bench:pool:end -->\nbottom\n")
    assert "stale figures" not in filled
    assert tables.fill(filled, [content]) == filled
    assert tables.fill("no markers", [content]) == "no markers"


def test_check_finds_an_edited_table(tmp_path, content, capsys):
    readme, folder = tmp_path / "README.md", tmp_path / "results"
    readme.write_text("<!-- bench:pool:begin -->\n<!-- bench:pool:end -->\n")
    results.save(folder / "cpu-a-cpu.json", content)
    arguments = ["--readme", str(readme), "--results", str(folder)]
    assert tables.main(arguments) == 0
    assert tables.main([*arguments, "--check"]) == 0
    readme.write_text(readme.read_text().replace("15x", "16x"))
    assert tables.main([*arguments, "--check"]) == 1
    assert "README.md" in capsys.readouterr().out


def test_tables_in_the_tree_are_generated():
    if not tables.README.exists() and not list(results.RESULTS.glob("*.json")):
        pytest.skip("neither README.md nor results in this tree")
    assert not tables.outdated(), "run `python -m bench.tables`"


def test_results_name_no_host_and_no_path():
    for path in results.RESULTS.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert os.uname().nodename not in text
        assert str(environment.ROOT) not in text


def test_filter_and_expand():
    pool = Case("pool", "pool_forward", (1, 2, 3, 4), "float32", "contiguous", "2x2s2", "Stage")
    half = Case("pool", "pool_forward", (1, 2, 3, 4), "float16", "contiguous", "2x2s2", "Stage")
    ids = [case.id for case in expand([pool, half], ["cuda", "cpu"], [1, 2])]
    assert ids == [
        "cuda-pool_forward-1x2x3x4-2x2s2-float32-contiguous",
        "cuda-pool_forward-1x2x3x4-2x2s2-float16-contiguous",
        "cpu-pool_forward-1x2x3x4-2x2s2-float32-contiguous-1t",
        "cpu-pool_forward-1x2x3x4-2x2s2-float32-contiguous-2t",
    ]
    assert matches(ids[0], "CUDA float32")
    assert not matches(ids[0], "cuda bfloat16")


def test_interleave_times_each_call_in_each_round():
    calls = []
    times = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, Once())
    assert {name: len(timing.rounds) for name, timing in times.items()} == {"a": 11, "b": 11}
    rounds = [calls[at : at + 2] for at in range(4, len(calls), 2)]
    assert all(sorted(pair) == ["a", "b"] for pair in rounds)
    assert ["a", "b"] in rounds
    assert ["b", "a"] in rounds


class Once(CpuClock):
    """A clock that runs a call once a round."""

    least = 0.0


def test_timing_statistics():
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert Timing((2.0, 1.0)).quartiles == (1.0, 2.0)


def test_peak_memory_counts_temporaries_and_results():
    size = 64 << 20

    def work() -> torch.Tensor:
        temporary = torch.ones(size, dtype=torch.uint8)
        return temporary[: size // 2].clone()

    peak = peak_extra_bytes(work, "cpu")
    if peak is None:
        pytest.skip("this system has no resettable memory mark")
    assert 1.4 * size < peak < 1.8 * size


def test_commit_tells_changes(tmp_path):
    def git(*command: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *command],
            check=True,
            capture_output=True,
        )

    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    (tmp_path / "bench" / "results").mkdir(parents=True)
    code, measured = tmp_path / "code.py", tmp_path / "bench" / "results" / "a.json"
    code.write_text("1")
    measured.write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    clean = environment.commit(tmp_path)
    assert len(clean["commit"]) == 12
    assert clean["modified"] is False
    measured.write_text("2")
    assert environment.commit(tmp_path) == clean
    code.write_text("2")
    assert environment.commit(tmp_path) == {**clean, "modified": True}
    assert environment.commit(tmp_path / "missing") == {"commit": None, "modified": None}


def test_slug_is_a_plain_file_name():
    assert environment.slug("cuda", "NVIDIA H200") == "cuda-nvidia-h200"
    assert environment.slug("cpu", "Intel(R) Xeon(R) @ 2.0GHz", "2 cores") == (
        "cpu-intel-xeon-2-0ghz-2-cores"
    )
