"""Weights files: what is written, what is read, and every way in which they do not fit."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from modeltester import build, run

from segkern.models import (
    WeightsError,
    _weights,
    create_model,
    get_weights,
    load_weights,
    read_card,
    save_weights,
)


@pytest.fixture
def enet():
    return build("enet", num_classes=11)


def _save(model, path, **card):
    card = {"config": model.config, **card}
    save_weights(path, model.state_dict(), {"card": json.dumps(card)})
    return path


def test_roundtrip_with_card(enet, tmp_path):
    path = _save(enet, tmp_path / "a.safetensors", input="imagenet", miou=0.5)
    assert read_card(path)["miou"] == 0.5
    loaded = create_model("enet", weights=str(path)).eval()
    assert loaded.config == enet.config
    assert loaded.recipe.input == "imagenet"
    assert torch.equal(run("enet", loaded, (24, 32)), run("enet", enet, (24, 32)))


def test_card_fields_may_be_spread_over_the_metadata(enet, tmp_path):
    path = tmp_path / "a.safetensors"
    save_weights(path, enet.state_dict(), {"config": json.dumps(enet.config), "licence": "CC0 1.0"})
    assert read_card(path) == {"config": enet.config, "licence": "CC0 1.0"}
    assert create_model("enet", weights=path).config == enet.config


def test_arguments_win_over_the_card(enet, tmp_path):
    path = _save(enet, tmp_path / "a.safetensors")
    assert create_model("enet", weights=path, pad_mode="zeros").config["pad_mode"] == "zeros"


def test_tensors_that_share_memory_or_are_not_contiguous(tmp_path):
    base = torch.arange(6.0).view(2, 3)
    state = {"a": base, "b": base, "c": base.t(), "d": base[:, 1]}
    save_weights(tmp_path / "a.safetensors", state)
    read, card = _weights.read_state_dict(tmp_path / "a.safetensors")
    assert card == {}
    assert all(torch.equal(read[key], state[key]) for key in state)


def test_a_failed_write_leaves_the_earlier_file(enet, tmp_path, monkeypatch):
    path = _save(enet, tmp_path / "a.safetensors")
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, create_model("enet").state_dict())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_permissions_are_those_of_any_new_file(enet, tmp_path):
    (tmp_path / "plain").touch()
    path = _save(enet, tmp_path / "a.safetensors")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_metadata_must_be_strings(enet, tmp_path):
    with pytest.raises(TypeError, match="metadata must map str to str, got float under 'miou'"):
        save_weights(tmp_path / "a.safetensors", enet.state_dict(), {"miou": 0.5})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pytorch_checkpoints(enet, tmp_path, wrapper, prefix):
    state = {prefix + key: value for key, value in enet.state_dict().items()}
    path = tmp_path / "a.pth"
    torch.save(state if wrapper is None else {"epoch": 3, wrapper: state}, path)
    loaded = create_model("enet", weights=path).eval()
    assert loaded.config["num_classes"] == 11
    assert torch.equal(run("enet", loaded, (24, 32)), run("enet", enet, (24, 32)))


def test_missing_left_over_and_misshapen_names_are_all_listed(enet, tmp_path):
    state = dict(enet.state_dict())
    gone = [key for key in state if key.startswith("encoder.down1.conv")]
    for key in gone:
        del state[key]
    state["extra.one"] = state["extra.two"] = torch.zeros(1)
    state["encoder.initial.act.weight"] = torch.zeros(7)
    save_weights(tmp_path / "a.safetensors", state)
    before = {key: value.clone() for key, value in enet.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(enet, tmp_path / "a.safetensors")
    for name in (*gone, "extra.one", "extra.two", "encoder.initial.act.weight: file (7,)"):
        assert name in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in enet.state_dict().items())

    report = load_weights(enet, tmp_path / "a.safetensors", strict=False)
    assert report.missing == gone
    assert report.unexpected == ["extra.one", "extra.two"]
    assert report.mismatched == ["encoder.initial.act.weight: file (7,), network (16,)"]


def test_another_number_of_classes_is_named(enet, tmp_path):
    path = _save(enet, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="for 11 classes and the network has 20"):
        create_model("enet", num_classes=20, weights=path)
    other = create_model("enet", num_classes=20)
    report = load_weights(other, path, strict=False)
    assert len(report.mismatched) == 2
    assert torch.equal(other.encoder.initial.conv.weight, enet.encoder.initial.conv.weight)


def test_counters_of_batch_norm_may_be_missing(enet, tmp_path):
    state = {k: v for k, v in enet.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "a.pth")
    load_weights(create_model("enet", num_classes=11), tmp_path / "a.pth")


class Payload:
    """Pickles to a call, as a malicious file would."""

    def __reduce__(self):
        return (os.mkdir, ("must-not-exist",))


def test_no_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Payload()}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="would run its code"):
        create_model("enet", weights=tmp_path / "a.pth")
    assert not (tmp_path / "must-not-exist").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither safetensors nor a PyTorch file"),
        (b"not a file of weights at all", "not loaded|neither safetensors"),
        (b"\x0c\0\0\0\0\0\0\0{ not a json", "broken safetensors"),
    ],
)
def test_broken_files(tmp_path, content, message):
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        create_model("enet", weights=path)


def test_a_truncated_file(enet, tmp_path):
    path = _save(enet, tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="a.safetensors"):
        create_model("enet", weights=path)


def test_other_contents(tmp_path):
    torch.save([1, 2], tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds no state dict, but a list"):
        create_model("enet", weights=tmp_path / "a.pth")
    torch.save({"weight": torch.zeros(1), "lr": 0.1, "step": 3}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="not tensors: lr, step"):
        create_model("enet", weights=tmp_path / "a.pth")


def test_tags(enet, tmp_path, monkeypatch):
    monkeypatch.setattr(_weights, "BUILTIN_FOLDER", tmp_path)
    with pytest.raises(WeightsError, match="neither a file nor a built-in tag; it has no tags"):
        create_model("enet", weights="camvid")
    _save(enet, tmp_path / "enet_camvid.safetensors")
    _save(enet, tmp_path / "enet_encoder_camvid.safetensors")
    assert get_weights("enet") == {"camvid": tmp_path / "enet_camvid.safetensors"}
    assert list(get_weights("enet_encoder")) == ["camvid"]
    assert get_weights("segnet") == {}
    assert create_model("enet", weights="camvid").config["num_classes"] == 11
    with pytest.raises(WeightsError, match="its tags are camvid"):
        create_model("enet", weights="cityscapes")


def test_builtin_weights_fit_and_have_a_card():
    from segkern.models import list_models

    for name in list_models():
        for tag, path in get_weights(name).items():
            assert path.stat().st_size < 8e6
            card = read_card(path)
            assert {"config", "input", "data", "licence", "protocol", "miou"} <= set(card)
            create_model(name, weights=tag)
