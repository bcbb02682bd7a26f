"""What a recipe says of the optimiser's steps: accumulated gradients, steps in epochs, RMSprop."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_runs import TINY
from torch import nn

from segkern.engine.errors import EngineError
from segkern.engine.loader import EpochBatches, TrainLoader, parts_of_step
from segkern.engine.loading import load_trained
from segkern.engine.optim import RMSpropWithin, parameter_groups
from segkern.engine.settings import TrainSettings, resolve
from segkern.engine.state import RunState
from segkern.engine.train import Job, fit
from segkern.metrics import SegmentationMetrics

# Without batch norm or dropout a step is the same however its images are taken.
OPTIONS = {"width": 0.0625, "dropout": 0.0, "padding": "same"}
RUN = {**TINY, "data": "synthetic:32x32", "model_options": OPTIONS, "loss_reduction": "batch"}
RUN |= {"lr": 1e-5, "elastic": "none", "device": "cpu", "progress": False, "limit_val": 1}


def weights(run) -> dict[str, torch.Tensor]:
    return load_trained(run, "cpu").network.state_dict()


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    whole = fit("unet", tmp_path / "whole", **RUN)
    parts = fit("unet", tmp_path / "parts", micro_batch=2, **RUN)
    assert (whole.steps, whole.epochs) == (parts.steps, parts.epochs) == (6, 2)
    expected = weights(tmp_path / "whole")
    for key, value in weights(tmp_path / "parts").items():
        torch.testing.assert_close(value, expected[key], atol=1e-6, rtol=1e-5)
    losses = [
        np.genfromtxt(tmp_path / name / "metrics.csv", delimiter=",", names=True)["train_loss"]
        for name in ("whole", "parts")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_run_of_parts_that_was_stopped_goes_on_with_the_same_numbers(tmp_path):
    given = {**RUN, "micro_batch": 2}
    fit("unet", tmp_path / "whole", **given)
    fit("unet", tmp_path / "parts", max_steps=2, **given)  # within the first epoch
    fit("unet", tmp_path / "parts", resume=True, max_steps=6)
    expected = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)["state_dict"]
    found = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_batches_of_a_step_in_parts():
    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 27

        def __getitem__(self, index):
            return index

        def set_epoch(self, epoch):
            pass

    state = RunState()
    make = {"batch_size": 8, "seed": 3, "state": state, "collate_fn": list}
    whole = list(TrainLoader(Numbers(), **make))
    batches = EpochBatches(27, 8, 3, micro_batch=2)
    loader = TrainLoader(Numbers(), parts=parts_of_step(8, 2), batches=batches, **make)
    found = list(loader)
    assert loader.steps_per_epoch == 3 and len(loader) == len(found) == 12
    assert [sum(found[i : i + 4], []) for i in (0, 4, 8)] == whole
    state.batch = 2
    assert len(loader) == 4 and sum(loader, []) == whole[2]


def test_parts_of_a_step():
    assert parts_of_step(20, 1) == 20 and parts_of_step(20, None) == 1
    assert parts_of_step(4, 8) == 1 and parts_of_step(16, 4, world=2) == 2
    with pytest.raises(EngineError, match=r"micro_batch must divide the images of a step \(10\)"):
        parts_of_step(10, 4)


def test_steps_in_epochs(tmp_path):
    fit(
        "enet_encoder", tmp_path / "run", device="cpu", lr=0.01, schedule="step", step_epochs=1,
        gamma=0.5, **{**TINY, "epochs": 3, "limit_train": 4, "limit_val": 1},
    )  # fmt: skip
    table = np.genfromtxt(tmp_path / "run" / "metrics.csv", delimiter=",", names=True)
    assert table["lr"].tolist() == [0.005, 0.0025, 0.00125]  # of the step that follows
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["recipe"]
    assert (stored["step_epochs"], stored["step_size"]) == (1, 0)


def test_a_run_ends_when_its_score_no_longer_rises(tmp_path, monkeypatch):
    scores = iter([0.1, 0.3, 0.3, 0.2, 0.9])
    measure = SegmentationMetrics.compute

    def compute(self):
        return {**measure(self), "miou": next(scores)}

    monkeypatch.setattr(SegmentationMetrics, "compute", compute)
    given = {**TINY, "epochs": 9, "limit_train": 4, "limit_val": 1, "device": "cpu"}
    result = fit("enet_encoder", tmp_path / "run", patience=2, **given)
    assert (result.reason, result.epochs, result.best_epoch) == ("patience", 4, 2)
    assert fit("enet_encoder", tmp_path / "run", resume=True).reason == "complete"
    result = fit("enet_encoder", tmp_path / "run", resume=True, patience=0, epochs=5)
    assert (result.reason, result.best_epoch) == ("epochs", 5)
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 6


def test_steps_are_in_epochs_or_in_iterations():
    def steps(**given):
        recipe = resolve("enet", "x", given).recipe
        return recipe["step_epochs"], recipe["step_size"]

    assert steps() == (100, 0)
    assert steps(step_size=50) == (0, 50)
    assert steps(step_epochs=3) == (3, 0)
    with pytest.raises(EngineError, match="step_size or step_epochs must be at least 1 and the"):
        steps(step_epochs=3, step_size=50)


def test_settings_of_earlier_runs_have_the_old_meaning():
    settings = resolve("espnet", "x", {"data": "camvid:d"})
    old = settings.to_json()
    for name in ("passes", "step_epochs", "micro_batch", "rotate", "blur", "crop_pad"):
        del old["recipe"][name]
    old["recipe"]["step_size"] = 7
    recipe = TrainSettings.from_json(json.loads(json.dumps(old))).recipe
    assert (recipe["passes"], recipe["micro_batch"], recipe["crop_pad"]) == ((), None, "random")
    again = TrainSettings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again == settings and again.recipe["passes"][0] == (1.5, 1.5, 100)


def test_rmsprop_with_its_eps_under_the_root():
    numbers = np.random.default_rng(0)
    start, grads = numbers.normal(size=(2, 5)), numbers.normal(size=(4, 2, 5)) * 1e-3
    parameters = [nn.Parameter(torch.tensor(row)) for row in start]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(parameters, (0.02, 0.0))]
    optimizer = RMSpropWithin(groups, lr=0.01, alpha=0.9, eps=1e-6)
    w, square = start.copy(), np.zeros_like(start)
    for grad in grads:
        for parameter, row in zip(parameters, grad):
            parameter.grad = torch.tensor(row)
        optimizer.step()
        whole = grad + np.array([[0.02], [0.0]]) * w
        square = 0.9 * square + 0.1 * whole**2
        w -= 0.01 * whole / np.sqrt(square + 1e-6)
        for parameter, row in zip(parameters, w):
            np.testing.assert_allclose(parameter.detach().numpy(), row, rtol=1e-12)
    again = RMSpropWithin(groups, lr=0.01, alpha=0.9, eps=1e-6)
    again.load_state_dict(optimizer.state_dict())
    kept = again.state[parameters[1]]["square_avg"]
    np.testing.assert_allclose(kept.numpy(), square[1], rtol=1e-12)


def test_shifts_of_norms_that_are_not_decayed():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU(4))
    decayed = {
        id(p): group["weight_decay"]
        for group in parameter_groups(network, lr=1, weight_decay=0.1, norm_shift_decay=False)
        for p in group["params"]
    }
    assert len(decayed) == len(list(network.parameters()))
    undecayed = [name for name, p in network.named_parameters() if not decayed[id(p)]]
    assert undecayed == ["1.bias"]


def test_images_of_a_pass_are_made_of_the_files_pixels(tmp_path):
    masks, photos = np.random.default_rng(0).integers(0, 2, (2, 64, 96)).astype(np.uint8)
    for part, values in (("images", photos * 200), ("masks", masks)):
        for split in ("train", "val"):
            (tmp_path / part / split).mkdir(parents=True)
            Image.fromarray(values).save(tmp_path / part / split / "one.png")
    given = {"data": f"folder:{tmp_path}", "size": (32, 48), "batch_size": 1, "device": "cpu"}
    given |= {"passes": ((2, 2, 0), (0.5, 1, 0)), "vertical_flip": False}
    job = Job(resolve("espnet_c", tmp_path / "run", given), resume=False, show=None)
    image, mask = job.train_set[0]
    assert np.array_equal(image[0].numpy(), photos * 200) and np.array_equal(mask.numpy(), masks)
    job.train_set.set_epoch(3)
    assert job.train_set[0][1].shape == (16, 48)
    assert job.val_set[0][1].shape == (32, 48)
