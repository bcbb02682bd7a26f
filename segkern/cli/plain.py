"""`segkern info` as plain text, for an installation without the `[train]` extra."""

from __future__ import annotations

from typing import Any


def info() -> int:
    """Print what `segkern.env()` says, one fact a line."""
    import segkern

    for line in describe(segkern.env()):
        print(line)
    return 0


def describe(env: dict[str, Any]) -> list[str]:
    """The lines of `segkern info`."""
    lines = ["versions"]
    width = max(len(name) for name in env["versions"])
    lines += [f"  {name:<{width}}  {value or '-'}" for name, value in env["versions"].items()]
    lines.append("native modules")
    for name, module in env["modules"].items():
        lines.append(
            f"  {name:<8}  "
            f"{'loaded' if module['loaded'] else 'not loaded: ' + str(module['reason'])}"
        )
    lines.append(f"compiled for  {', '.join(env['architectures']) or 'the CPU only'}")
    summary = env.get("build", {}).get("summary")
    if summary:
        lines.append(f"  {summary}")
    cpu = env.get("cpu", {})
    lines.append("devices")
    lines.append(f"  CPU     {cpu.get('machine', '?')}, {cpu.get('threads', '?')} threads")
    for device in env["devices"]:
        covered = "covered" if device.get("covered") else "not covered by what was compiled"
        lines.append(
            f"  GPU {device['index']}   {device['name']}, compute capability "
            f"{device['capability']}, "
            f"{device['memory_gib']} GiB, {covered}"
        )
    if env["reasons"]:
        lines.append("what cannot run, and why")
        lines += [f"  {reason}" for reason in env["reasons"]]
    return lines
