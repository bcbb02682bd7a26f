"""The tests that every registered network passes, and the files they compare with.

A network gets all of them by being registered: ``test_networks.py`` runs each check on each name.
A network whose sizes are particular has a row in ``CASES``. The golden file of a network holds its
state-dict names and shapes and the logits of seeded weights; write it, after looking at what
changed, with

    python tests/models/modeltester.py NAME...
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segkern.models import Recipe, create_model, get_entry, list_models, save_weights
from segkern.nn import FrozenBatchNorm2d

GOLDEN = Path(__file__).parent / "golden"

# Logits kept of each network, spread evenly over the output.
SAMPLES = 24

TRACED = ("compile", "compile_training", "export")


@dataclass(frozen=True)
class Case:
    """What a network is tested with. Sizes are (height, width).

    Attributes:
        size: The usual size; small, and valid without padding.
        odd_sizes: Sizes that are no multiples of anything.
        export_sizes: The size a network is exported at, and another that the export must take.
        export_multiple: Export height and width as multiples of this; 1 lets torch find the range.
        stride: Ratio of input to output size, rounded up.
        options: Options that make the network light enough to run here; the parameter count and
            the state-dict names are those of the network without them.
        batch: Images of a training batch.
        exact: Whether float64 is affordable, in which results are compared to 1e-9; otherwise
            they are in float32, where near ties of the pooling windows may fall differently.
        traced: Which of the checks that trace the network are made. They cost most of the time
            here, so networks of parts that others have leave some to those.
    """

    size: tuple[int, int] = (64, 80)
    odd_sizes: tuple[tuple[int, int], ...] = ((45, 61), (1, 1), (17, 120))
    export_sizes: tuple[tuple[int, int], tuple[int, int]] = ((72, 80), (96, 112))
    export_multiple: int = 1
    stride: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    batch: int = 2
    exact: bool = True
    traced: tuple[str, ...] = TRACED


RESNET = {"width": 1 / 16, "backbone": "resnet17", "multi_grid": (1,)}

FCN = {"width": 1 / 64}

DILATION = Case(size=(24, 32), odd_sizes=((19, 33),), options={"width": 1 / 64}, traced=("export",))

FC_DENSENET = Case(
    odd_sizes=((45, 61), (5, 33)),
    options={"growth_rate": 2, "first_channels": 4, "layers": (1,) * 11},
    traced=(),
)

CASES = {
    "crfasrnn": Case(
        size=(40, 56),
        odd_sizes=((45, 61), (1, 1)),
        options={"width": 1 / 64, "bilateral": (8.0, 40.0, 0.5), "iterations": 3},
        # The CRF is computed in float32.
        exact=False,
        traced=(),
    ),
    "deconvnet": Case(
        size=(193, 196),
        odd_sizes=((211, 193), (20, 31)),
        export_sizes=((257, 260), (263, 277)),
        options={"fc_channels": 16},
        exact=False,
    ),
    "deep_parsing_network": Case(
        size=(32, 40),
        odd_sizes=((21, 45), (1, 1)),
        export_sizes=((32, 40), (48, 24)),
        export_multiple=8,
        options={"fc_channels": 16},
    ),
    "deeplabv1": Case(size=(65, 81), options={"width": 1 / 16}, traced=("export",)),
    "deeplabv2": Case(
        size=(65, 81),
        odd_sizes=((45, 61),),
        export_sizes=((80, 96), (96, 64)),
        export_multiple=16,
        options={"width": 1 / 16, "backbone": "resnet17"},
        traced=("export",),
    ),
    "deeplabv3": Case(size=(65, 81), options=RESNET, traced=("export",)),
    "deeplabv3_cascade": Case(size=(65, 81), options=RESNET, traced=()),
    "deeplabv3plus": Case(
        size=(65, 81),
        options={"width": 1 / 16, "backbone": "xception20"},
        traced=("compile", "export"),
    ),
    "dilation8": DILATION,
    "dilation10": dataclasses.replace(DILATION, traced=("compile_training",)),
    "dilation_frontend": dataclasses.replace(DILATION, traced=()),
    "enet": Case(export_multiple=8),
    "enet_encoder": Case(export_multiple=8, stride=8),
    "espnet": Case(
        export_multiple=8, options={"p": 1, "q": 1}, traced=("compile_training", "export")
    ),
    "fcn8s": Case(
        size=(40, 56),
        odd_sizes=((45, 61), (1, 1)),
        export_sizes=((64, 96), (96, 64)),
        export_multiple=32,
        options=FCN,
        traced=("export",),
    ),
    "fcn16s": Case(size=(40, 56), odd_sizes=((33, 21),), options=FCN, traced=()),
    "fcn32s": Case(size=(40, 56), odd_sizes=((33, 21),), options=FCN, traced=()),
    "patch_cnn": Case(size=(36, 52), options={"width": 1 / 12}, traced=("export",)),
    "unet": Case(
        size=(36, 52),
        odd_sizes=((45, 61), (1, 1)),
        export_sizes=((32, 48), (64, 32)),
        export_multiple=16,
        options={"width": 1 / 32},
        traced=("export",),
    ),
    **{
        name: Case(export_multiple=8, stride=8, options={"p": 1, "q": 1}, traced=())
        for name in ("espnet_a", "espnet_b", "espnet_c")
    },
    "danet": Case(size=(65, 81), options=RESNET, traced=("export",)),
    "fc_densenet103": dataclasses.replace(FC_DENSENET, traced=("compile_training",)),
    "fc_densenet56": FC_DENSENET,
    "fc_densenet67": dataclasses.replace(
        FC_DENSENET, export_multiple=32, export_sizes=((64, 96), (96, 64)), traced=("export",)
    ),
    "gcn": Case(
        export_multiple=32,
        export_sizes=((64, 96), (96, 64)),
        options={"width": 1 / 16, "backbone": "resnet17", "kernel_size": 5},
        traced=("export",),
    ),
    "gfrnet": Case(
        odd_sizes=((45, 61), (1, 1)), options={"width": 1 / 16}, traced=("compile_training",)
    ),
    "linknet": Case(
        size=(64, 96),
        export_multiple=32,
        export_sizes=((64, 96), (96, 64)),
        options={"width": 1 / 8},
        traced=("export",),
    ),
    "pspnet": Case(
        size=(65, 81),
        export_sizes=((80, 96), (96, 64)),
        export_multiple=16,
        options={"width": 1 / 16, "backbone": "resnet17"},
        traced=("compile_training", "export"),
    ),
    "refinenet": Case(
        odd_sizes=((45, 61), (1, 1)),
        options={"width": 1 / 16, "backbone": "resnet17"},
        traced=("export",),
    ),
}


def networks() -> list[str]:
    """Names of the networks of pixel classes that gradients train; others have tests elsewhere."""
    return [
        name
        for name in list_models()
        if get_entry(name).task == "semantic" and get_entry(name).recipe.optimizer != "fit"
    ]


def case_of(name: str) -> Case:
    """The row of a network, or the usual one."""
    return CASES.get(name, Case())


def build(
    name: str,
    device: torch.device | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    **options,
) -> nn.Module:
    """A light network with seeded weights, in evaluation mode."""
    model = create_model(name, **{**case_of(name).options, **options})
    seed_weights(model)
    return model.to(device, dtype).eval()


def seed_weights(model: nn.Module) -> None:
    """Fill every tensor from a generator seeded by its name, the running statistics too.

    The values depend on no global state and on no other tensor, so that a golden file survives
    a reordering.
    """
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if tensor.dim() > 1:
                values *= math.sqrt(2 / tensor[0].numel())
            elif key.endswith("running_var"):
                values = 1 + 0.2 * values.abs()
            elif key.endswith(".weight"):
                values = 1 + 0.1 * values
            else:
                values *= 0.1
            tensor.copy_(values)


def images(
    name: str, size: tuple[int, int], batch: int = 1, channels: int = 3, like: Tensor | None = None
) -> Tensor:
    """Random images in the range of the network's recipe, on the device and dtype of ``like``."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch, channels, *size, generator=generator, dtype=torch.float64)
    mode = get_entry(name).recipe.input
    if mode.startswith(("bgr", "caffe", "rgb")):
        image = 255 * image - (0 if mode == "bgr" else 100)
    like = torch.empty(0) if like is None else like
    return image.to(like.device, like.dtype)


def out_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    stride = case_of(name).stride
    return (-(-size[0] // stride), -(-size[1] // stride))


def parameter_of(model: nn.Module) -> Tensor:
    return next(model.parameters())


@torch.no_grad()
def run(name: str, model: nn.Module, size: tuple[int, int], batch: int = 1) -> Tensor:
    """The logits of seeded images."""
    channels = model.config["in_channels"]
    return model(images(name, size, batch, channels, parameter_of(model)))["out"]


def precise(name: str) -> torch.dtype:
    return torch.float64 if case_of(name).exact else torch.float32


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Largest difference at most ``tolerance`` times the spread of what is expected.

    In float32 a correlation of 0.999 is asked for instead: one pooling index that falls
    differently moves its value, and few scores change by much.
    """
    assert actual.shape == expected.shape
    if expected.dtype != torch.float64:
        assert correlation(actual, expected) > 0.999
        return
    spread = expected.double().std().item()
    difference = (actual.double() - expected.double()).abs().max().item()
    assert difference <= tolerance * spread, f"differ by {difference:.3g}, spread {spread:.3g}"


def correlation(actual: Tensor, expected: Tensor) -> float:
    pair = torch.stack([actual.flatten().double(), expected.flatten().double()])
    return torch.corrcoef(pair)[0, 1].item()


def check_forward(name: str, device: torch.device) -> None:
    case = case_of(name)
    model = build(name, device)
    output = model(images(name, case.size, case.batch, like=parameter_of(model)))
    assert set(output) >= {"out"}
    scores = output["out"]
    classes = get_entry(name).num_classes
    assert scores.shape == (case.batch, classes, *out_size(name, case.size))
    assert scores.isfinite().all()
    # Seeded weights must not let the logits die out, or no other check here means anything.
    assert scores.std() > 1e-3


def check_backward(name: str, device: torch.device) -> None:
    case = case_of(name)
    model = build(name, device).train()
    frozen = {
        f"{key}.{buffer}"
        for key, module in model.named_modules()
        if isinstance(module, FrozenBatchNorm2d)
        for buffer, _ in module.named_buffers()
    }
    before = {key: value.clone() for key, value in model.named_buffers() if key not in frozen}
    outputs = model(images(name, case.size, case.batch, like=parameter_of(model)))
    trained = [outputs[key] for key in get_entry(name).recipe.outputs if key in outputs]
    loss = torch.zeros((), device=device)
    for scores in trained:
        target = torch.randint(scores.shape[1], scores[:, 0].shape, device=device)
        loss = loss + nn.functional.cross_entropy(scores, target)
    loss.backward()
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, f"{key} has no gradient"
        assert parameter.grad.isfinite().all(), f"{key} has a gradient that is not finite"
        if parameter.dim() > 1:
            assert parameter.grad.abs().max() > 0, f"{key} has no gradient but zeros"
    after = dict(model.named_buffers())
    moved = [key for key, value in before.items() if not torch.equal(value, after[key])]
    assert len(moved) == len(before), "a running statistic did not move"


def check_odd_sizes(name: str, device: torch.device) -> None:
    model = build(name, device)
    for size in case_of(name).odd_sizes:
        scores = run(name, model, size)
        assert tuple(scores.shape[-2:]) == out_size(name, size)
        assert scores.isfinite().all()


def check_channels_and_classes(name: str, device: torch.device) -> None:
    case = case_of(name)
    for channels, classes in ((1, 2), (4, 1)):
        model = build(name, device, in_channels=channels, num_classes=classes)
        scores = run(name, model, case.size)
        assert scores.shape == (1, classes, *out_size(name, case.size))
        with pytest.raises(ValueError, match=f"{channels} channels"):
            model(images(name, case.size, channels=channels + 1, like=parameter_of(model)))


def check_parameters(name: str, device: torch.device) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == get_entry(name).parameters


def check_names(name: str, device: torch.device) -> None:
    with torch.device("meta"):
        model = create_model(name)
    names = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert names == read_golden(name)["state_dict"]


def check_logits(name: str, device: torch.device) -> None:
    golden = read_golden(name)["logits"]
    scores = golden_scores(name, device)
    assert list(scores.shape) == golden["shape"]
    assert scores.mean().item() == pytest.approx(golden["mean"], rel=1e-6, abs=1e-9)
    assert scores.std().item() == pytest.approx(golden["std"], rel=1e-6)
    kept = torch.tensor(golden["samples"], dtype=torch.float64)
    assert_same(samples_of(scores).cpu(), kept, 1e-6)


def check_repeats(name: str, device: torch.device) -> None:
    """The same bits twice, and an image's scores do not depend on its company."""
    case = case_of(name)
    model = build(name, device, precise(name))
    first, second = (run(name, model, case.size) for _ in range(2))
    assert torch.equal(first, second)
    together = run(name, model, case.size, batch=2)
    assert_same(first, together[:1])


def check_channels_last(name: str, device: torch.device) -> None:
    case = case_of(name)
    model = build(name, device, precise(name))
    expected = run(name, model, case.size)
    model = model.to(memory_format=torch.channels_last)
    image = images(name, case.size, like=parameter_of(model))
    with torch.no_grad():
        scores = model(image.to(memory_format=torch.channels_last))["out"]
    assert scores.is_contiguous(memory_format=torch.channels_last)
    assert_same(scores, expected)


def check_autocast(name: str, device: torch.device) -> None:
    case = case_of(name)
    model = build(name, device)
    expected = run(name, model, case.size)
    with torch.autocast(device.type, torch.bfloat16):
        scores = run(name, model, case.size)
    assert scores.dtype in (torch.bfloat16, torch.float32)
    assert scores.isfinite().all()
    assert correlation(scores, expected) > 0.9


def skip_unless_traced(name: str, check: str) -> None:
    if check not in case_of(name).traced:
        pytest.skip(f"{check} of {name} is left to networks of the same parts")


def check_compile(name: str, device: torch.device) -> None:
    """One graph without breaks, for any size."""
    skip_unless_traced(name, "compile")
    torch._dynamo.reset()
    case = case_of(name)
    model = build(name, device, precise(name))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=True)
    for size in case.export_sizes:
        assert_same(run(name, compiled, size), run(name, model, size))
    torch._dynamo.reset()


def check_compile_training(name: str, device: torch.device) -> None:
    """Forward and backward in one graph each, with the gradients of the plain network."""
    skip_unless_traced(name, "compile_training")
    torch._dynamo.reset()
    case = case_of(name)
    image = images(name, case.size, case.batch, like=torch.empty(0, device=device))
    gradients = []
    for backend in (None, "aot_eager"):
        model = build(name, device).train()
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0
        forward = (
            model if backend is None else torch.compile(model, backend=backend, fullgraph=True)
        )
        sum(scores.square().mean() for scores in forward(image).values()).backward()
        taken = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        gradients.append(torch.cat(taken))
    torch._dynamo.reset()
    similarity = nn.functional.cosine_similarity(*gradients, dim=0)
    assert similarity > 0.999


def check_export(name: str, device: torch.device) -> None:
    skip_unless_traced(name, "export")
    case = case_of(name)
    model = build(name, device, precise(name))
    if case.export_multiple == 1:
        dims = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    else:
        height, width = torch.export.Dim("h", min=2, max=512), torch.export.Dim("w", min=2, max=512)
        dims = {2: case.export_multiple * height, 3: case.export_multiple * width}
    image = images(name, case.export_sizes[0], like=parameter_of(model))
    program = torch.export.export(model, (image,), dynamic_shapes=(dims,))
    for size in case.export_sizes:
        image = images(name, size, like=parameter_of(model))
        with torch.no_grad():
            exported = program.module()(image)["out"]
        assert_same(exported, run(name, model, size))


def check_save_and_load(name: str, device: torch.device, folder: Path) -> None:
    case = case_of(name)
    model = build(name, device, num_classes=5)
    config = json.loads(json.dumps(model.config))
    assert create_model(**config).config == model.config
    path = folder / f"{name}.safetensors"
    save_weights(path, model.state_dict(), {"card": json.dumps({"config": config})})
    loaded = create_model(name, weights=path).to(device).eval()
    assert loaded.config == model.config
    assert torch.equal(run(name, loaded, case.size), run(name, model, case.size))


def check_recipe(name: str, device: torch.device) -> None:
    entry = get_entry(name)
    assert isinstance(entry.recipe, Recipe)
    assert entry.recipe.source
    assert entry.paper
    assert create_model(name, **case_of(name).options).recipe == entry.recipe
    assert dataclasses.replace(entry.recipe, lr=1.0).lr == 1.0


CHECKS: dict[str, Callable[..., None]] = {
    key.removeprefix("check_"): value
    for key, value in dict(globals()).items()
    if key.startswith("check_")
}


def golden_scores(name: str, device: torch.device) -> Tensor:
    """In float64: near ties of the pooling windows would fall differently in float32."""
    return run(name, build(name, device, torch.float64), case_of(name).size)


def samples_of(scores: Tensor) -> Tensor:
    flat = scores.flatten()
    return flat[torch.linspace(0, flat.numel() - 1, SAMPLES).long()]


def read_golden(name: str) -> dict[str, Any]:
    path = GOLDEN / f"{name}.json"
    if not path.is_file():
        pytest.fail(f"no golden file: run `python tests/models/modeltester.py {name}`")
    return json.loads(path.read_text())


def write_golden(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    scores = golden_scores(name, torch.device("cpu"))
    golden = {
        "logits": {
            "size": list(case_of(name).size),
            "shape": list(scores.shape),
            "mean": scores.mean().item(),
            "std": scores.std().item(),
            "samples": samples_of(scores).tolist(),
        },
        "state_dict": {key: list(value.shape) for key, value in model.state_dict().items()},
    }
    lines = [f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in golden["state_dict"].items()]
    logits = json.dumps(golden["logits"], indent=4).replace("\n", "\n  ")
    body = ",\n".join(lines)
    text = f'{{\n  "logits": {logits},\n  "state_dict": {{\n{body}\n  }}\n}}\n'
    assert json.loads(text) == golden
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / f"{name}.json").write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the golden files of networks.")
    parser.add_argument("names", nargs="+", choices=networks(), metavar="NAME")
    for each in parser.parse_args().names:
        write_golden(each)
        print(f"wrote {GOLDEN / each}.json")
