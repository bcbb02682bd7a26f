"""Where the time of the networks goes, by kind of operation and by piece of the network.

``python -m bench.pieces [NAME...] [--device cpu|cuda] [--scale S]`` runs each network once in
training (batch 2, forward and backward) and once in prediction (batch 1) under torch's profiler, at
the paper's size times S, and keeps the shares below bench/results/pieces.
``python -m bench.tables`` writes them into docs/networks.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bench import environment, results
from segkern.models import create_model

FOLDER = results.RESULTS / "pieces"

# Height and width of the paper's training images.
SIZES = {
    "fcn8s": (500, 500),
    "unet": (388, 388),  # 572 with its mirrored border
    "fc_densenet103": (224, 224),
    "linknet": (512, 1024),
    "pspnet": (473, 473),
    "refinenet": (512, 512),
    "gfrnet": (360, 480),
    "gcn": (512, 512),
    "danet": (768, 768),
    "crfasrnn": (500, 500),
}

REPEATS = 5

# Modules that could be operators, by class; none of them lies within another.
PIECES = {
    "PyramidPooling": "pyramid pooling",
    "ChainedPooling": "chained pooling",
    "RefinementUnit": "gates and refinement units",
    "GlobalConvolution": "1xk + kx1 pairs",
    "BoundaryRefinement": "boundary refinement",
    "PositionAttention": "position attention",
    "ChannelAttention": "channel attention",
    "BilinearUpsample": "bilinear deconvolutions",
    "CRFAsRNN": "CRF-as-RNN",
    "Decoder": "decoders",
    "DenseBlock": "dense blocks",
}

# Kinds of operations by parts of their names; the first that fits counts.
KINDS: dict[str, tuple[str, ...]] = {
    "our kernels": ("segkern::",),
    "convolution": ("conv", "mkldnn_linear"),
    "norm": ("batch_norm", "layer_norm"),
    "pooling": ("pool",),
    "up-sampling": ("upsample",),
    "matrix product, softmax": ("mm", "matmul", "softmax", "einsum"),
    "copies, concatenation": (
        "cat",
        "copy",
        "clone",
        "contiguous",
        "index",
        "slice",
        "pad",
        "fill",
    ),
    "activations": ("relu", "threshold", "clamp", "sigmoid", "tanh", "dropout", "bernoulli"),
    "sums, products": ("add", "mul", "sub", "div", "sum", "mean", "square", "pow"),
}
OTHER = "other"


def kind_of(operation: str) -> str:
    """The kind of a torch operation by its name."""
    for kind, parts in KINDS.items():
        if any(part in operation for part in parts):
            return kind
    return OTHER


def shares(
    network: nn.Module, image: torch.Tensor, training: bool, repeats: int = REPEATS
) -> dict[str, float]:
    """Share of the time of each kind of operation, of a pass or of a training step.

    The least time of each kind over ``repeats`` steps counts: other programs only add.
    """
    network.train(training)
    activities = [ProfilerActivity.CPU]
    if image.is_cuda:
        activities.append(ProfilerActivity.CUDA)

    def step() -> None:
        with torch.set_grad_enabled(training):
            outputs = network(image)
            if training:
                sum(output.float().square().mean() for output in outputs.values()).backward()
        if image.is_cuda:
            torch.cuda.synchronize()

    step()
    times: dict[str, float] = {}
    for _ in range(repeats):
        with profile(activities=activities) as profiler:
            step()
        found: dict[str, float] = {}
        for event in profiler.key_averages():
            own = event.self_device_time_total if image.is_cuda else event.self_cpu_time_total
            found[kind_of(event.key)] = found.get(kind_of(event.key), 0.0) + own
        times = {kind: min(spent, times.get(kind, spent)) for kind, spent in found.items()}
    total = sum(times.values())
    return {kind: times.get(kind, 0.0) / total for kind in (*KINDS, OTHER)}


@torch.inference_mode()
def pieces(network: nn.Module, image: torch.Tensor, repeats: int = REPEATS) -> dict[str, float]:
    """Share of the pieces in the time of a forward pass, least times over ``repeats`` passes."""
    network.eval()
    spent: dict[str, float] = {}
    best: dict[str, float] = {}
    total = float("inf")
    started: dict[int, float] = {}

    def now() -> float:
        if image.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin(module: nn.Module, _: object) -> None:
        started[id(module)] = now()

    def end(module: nn.Module, *_: object) -> None:
        name = PIECES[type(module).__name__]
        spent[name] = spent.get(name, 0.0) + now() - started[id(module)]

    hooks = []
    for module in network.modules():
        if type(module).__name__ in PIECES:
            hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    network(image)
    for _ in range(repeats):
        spent.clear()
        before = now()
        network(image)
        total = min(total, now() - before)
        best = {name: min(seconds, best.get(name, seconds)) for name, seconds in spent.items()}
    for hook in hooks:
        hook.remove()
    return {name: min(1.0, seconds / total) for name, seconds in best.items()}


def measure(
    name: str,
    device: str = "cpu",
    *,
    size: tuple[int, int] | None = None,
    repeats: int = REPEATS,
    **options: Any,
) -> dict[str, Any]:
    """Shares of one network."""
    torch.manual_seed(0)
    height, width = size or SIZES[name]
    network = create_model(name, **options).to(device, memory_format=torch.channels_last)
    images = torch.rand(2, 3, height, width, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    return {
        "network": name,
        "size": [height, width],
        "threads": torch.get_num_threads() if device == "cpu" else None,
        "repeats": repeats,
        "training": shares(network, images, True, repeats),
        "prediction": shares(network, images[:1], False, repeats),
        "pieces": pieces(network, images[:1], repeats),
    }


def store(folder: Path, device: str, row: Mapping[str, Any]) -> Path:
    """Put the shares of a network into the file of this machine."""
    described = environment.describe_device(device)
    path = folder / f"{described['slug']}.json"
    content = results.load(path)
    run = environment.describe_run(device, "default")
    rows = {**content["rows"], row["network"]: {**row, "run": run["date"]}}
    used = {kept["run"] for kept in rows.values()}
    runs = {**content["runs"], run["date"]: run}
    runs = {key: runs[key] for key in sorted(used)}
    results.save(
        path,
        {
            "schema": results.SCHEMA,
            "device": described,
            "runs": runs,
            "rows": dict(sorted(rows.items())),
        },
    )
    return path


def block(folder: Path = FOLDER) -> str:
    """The tables for docs/networks.md, by :mod:`bench.tables`."""
    from bench.tables import markdown

    text = []
    for path in sorted(folder.glob("*.json")):
        content = results.load(path)
        rows = content["rows"].values()
        threads = {row["threads"] for row in rows} - {None}
        counted = f", {'/'.join(map(str, sorted(threads)))} thread" if threads else ""
        text += [f"**{content['device']['name']}**{counted}", ""]
        head = ["network", "size", "", *(kind for kind in (*KINDS, OTHER))]
        lines = []
        for row in rows:
            for what in ("training", "prediction"):
                cells = [f"`{row['network']}`", "x".join(map(str, row["size"])), what]
                lines.append([*cells, *(_percent(row[what][kind]) for kind in (*KINDS, OTHER))])
        text += [*markdown(head, lines, words=3), ""]
        lines = [
            [f"`{row['network']}`", piece, _percent(share)]
            for row in rows
            for piece, share in sorted(row["pieces"].items(), key=lambda item: -item[1])
        ]
        text += [*markdown(["network", "piece", "share of a forward pass"], lines, words=2), ""]
    return "\n".join(text or ["Nothing measured yet.", ""])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.pieces",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", choices=[*SIZES, []], metavar="NAME")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the paper's size")
    # One thread is no default: with it torch takes other convolutions for a batch of one.
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=REPEATS, help="the least time counts")
    parser.add_argument("--results", type=Path, default=FOLDER, metavar="DIR")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name in options.names or SIZES:
        # Sizes that a pyramid of 1/8 cells takes: (n - 1) mod 8 = 0 where the paper's has it.
        size = tuple(int((n - 1) * options.scale) // 8 * 8 + (n % 2) for n in SIZES[name])
        size = SIZES[name] if options.scale == 1 else size
        store(
            options.results,
            options.device,
            measure(name, options.device, size=size, repeats=options.repeats),
        )
        print(name, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
