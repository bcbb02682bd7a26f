"""The table of networks: measured, recorded and generated."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from bench import networks, results
from bench.timing import Effort
from segkern.models import create_model, get_weights
from segkern.models._flops import count_flops

QUICK = Effort(warmup=1, minimum=3, maximum=3, seconds=0.1)


def by_hand(name, size, **options):
    """Twice the multiplications of every convolution that ran, from the shapes it saw."""
    network = create_model(name, num_classes=11, **options).eval()
    total = 0

    def add(layer, inputs, output):
        nonlocal total
        taps = layer.weight.numel() // (layer.weight.shape[0])
        if isinstance(layer, torch.nn.ConvTranspose2d):
            total += 2 * inputs[0][0, 0].numel() * layer.weight.numel()
        else:
            total += 2 * output[0].numel() * taps

    for layer in network.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            layer.register_forward_hook(add)
    with torch.no_grad():
        network(torch.zeros(1, 3, *size))
    return total


@pytest.mark.parametrize("name", ["enet", "fc_densenet56", "linknet", "segnet_basic"])
def test_operations_are_those_of_the_convolutions(name):
    assert count_flops(name, (64, 96), num_classes=11) == by_hand(name, (64, 96))


def test_operations_of_our_kernels_count_too():
    """ESPNet-A: its pyramids run in one kernel of ours, whose products are these."""
    counted = count_flops("espnet_a", (64, 96), num_classes=11)
    with_pyramids = count_flops("espnet_a", (64, 96), num_classes=12)
    assert with_pyramids - counted == 2 * 128 * 8 * 12  # one class more on the 1/8 map
    assert count_flops("random_forest", (64, 96)) is None


def test_measured_rows_are_kept_by_network(tmp_path):
    row = networks.measure("enet_encoder", "cpu", size=(32, 32), effort=QUICK)
    assert row["median_ms"] > 0 and row["rounds"] == 3 and row["size"] == [32, 32]
    path = networks.store_rows(tmp_path, "cpu", [row], "default")
    networks.store_rows(tmp_path, "cpu", [{**row, "network": "enet"}], "default")
    networks.store_rows(tmp_path, "cpu", [{**row, "median_ms": 250.0}], "default")
    content = results.load(path)
    assert sorted(content["rows"]) == ["enet-float32", "enet_encoder-float32"]
    ((device, dtype, rows),) = networks.devices(tmp_path)
    assert dtype == "float32" and rows["enet_encoder"]["median_ms"] == 250.0


def test_the_table_holds_what_was_recorded_and_nothing_else(tmp_path):
    empty_head, empty = networks.lines(tmp_path)
    assert [cells[0] for cells in empty] == [f"`{name}`" for name in networks.names()]
    for cells in empty:
        if "camvid" not in get_weights(cells[0].strip("`")):
            assert cells[2:4] == ["", ""]
        assert cells[5] == ""
    run = {
        "network": "unet", "data": "camvid", "split": "val", "images": 101, "size": [360, 480],
        "absent_classes": "skip", "miou": 0.512, "epoch": 7, "seconds": 5400.0, "hardware": "A GPU",
    }  # fmt: skip
    others = [
        {**run, "miou": 0.9, "split": "test"},
        {**run, "miou": 0.9, "data": "synthetic"},
        {**run, "miou": 0.3},
    ]
    (tmp_path / networks.RUNS).write_text(json.dumps([*others, run]))
    counted = networks.count_all(["unet"], (64, 96))
    (tmp_path / networks.FLOPS).write_text(json.dumps(counted))
    measured = networks.measure("enet", "cpu", size=(32, 32), effort=QUICK)
    networks.store_rows(
        tmp_path, "cpu", [{**measured, "network": "unet", "median_ms": 250.0}], "default"
    )
    head, table = networks.lines(tmp_path)
    cells = next(cells for cells in table if cells[0] == "`unet`")
    assert cells[2] == "51.2 %"
    assert cells[3] == "101 images, 360x480, epoch 7, 1 h 30 min, A GPU"
    assert cells[4] == "31,031,810"
    assert cells[5] == f"{counted['flops']['unet'] / 1e9:.1f}"
    assert cells[6] == "4"
    assert len(head) == len(cells) == len(empty_head) + 2
    other = next(cells for cells in table if cells[0] == "`gcn`")
    assert other[2:4] == ["", ""] and other[5:] == ["", "", ""]


def test_options_are_shown_where_they_are_not_the_defaults(tmp_path):
    run = {
        "network": "fc_densenet56", "data": "camvid", "split": "val", "images": 3, "size": None,
        "absent_classes": "skip", "miou": 0.9, "epoch": 1, "seconds": None, "hardware": None,
        "options": {"layers": [4] * 11, "dropout": 0.0},
    }  # fmt: skip
    (tmp_path / networks.RUNS).write_text(json.dumps([run]))
    table = networks.lines(tmp_path)[1]
    cells = next(cells for cells in table if cells[0] == "`fc_densenet56`")
    assert cells[3] == "3 images, dropout 0.0, epoch 1"


@pytest.mark.parametrize("name", ["enet", "random_forest"])
def test_a_run_is_recorded(name, tmp_path, monkeypatch):
    if name == "random_forest":
        pytest.importorskip("sklearn")
        pytest.importorskip("skimage")
    from segkern.engine.train import fit

    monkeypatch.setenv("SEGKERN_CACHE", str(tmp_path))
    given = {} if name == "random_forest" else {"epochs": 1, "batch_size": 2}
    given |= {"model_options": {"trees": 3}} if name == "random_forest" else {}
    fit(
        name, tmp_path / "run", device="cpu", data="synthetic:32x48", limit_train=2, limit_val=2,
        progress=False, **given,
    )  # fmt: skip
    folder = tmp_path / "results"
    call = ["--results", str(folder), "record", str(tmp_path / "run"), "--hardware", "a desk"]
    assert networks.main(call) == 0
    assert networks.main(call) == 0
    first, second = json.loads((folder / networks.RUNS).read_text())
    assert first == second
    assert first["network"] == name and first["hardware"] == "a desk"
    assert first["images"] == 2 and 0 <= first["miou"] <= 1 and first["seconds"] >= 0
    assert first["peak_bytes"] > 2**20
    # Drawn scenes are no CamVid.
    assert networks.recorded(folder).keys() == networks.recorded(tmp_path / "none").keys()
    shutil.rmtree(folder)
