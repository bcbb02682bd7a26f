"""Built-in weights packed from a run, found by their tag and as good as their card says."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from bench import pack, weights
from segkern.engine.evaluate import evaluate
from segkern.engine.train import fit
from segkern.models import _weights as weights_file
from segkern.models import create_model, get_weights, read_card


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGKERN_CACHE", str(folder))
        fit(
            "enet_encoder", folder / "run", device="cpu", data="synthetic:32x48", limit_train=4,
            limit_val=3, batch_size=2, epochs=1, progress=False, class_weights="none",
        )  # fmt: skip
    return folder / "run"


def test_packed_weights_are_found_by_their_tag(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weights_file, "BUILTIN_FOLDER", tmp_path)
    assert pack.main([str(run), "street", "--folder", str(tmp_path)]) == 0
    assert "enet_encoder_street.safetensors" in capsys.readouterr().out
    path = get_weights("enet_encoder")["street"]
    with safe_open(str(path), framework="pt") as file:
        kinds = {name: file.get_tensor(name).dtype for name in file.keys()}
    assert all(
        kind == (torch.float32 if "running_" in name else torch.float16)
        for name, kind in kinds.items()
        if "num_batches" not in name
    )
    loaded = create_model("enet_encoder", weights="street")
    exact = create_model("enet_encoder", weights=run / "best.safetensors")
    assert loaded.config == exact.config
    for name, value in exact.state_dict().items():
        own = loaded.state_dict()[name]
        assert own.dtype == value.dtype
        torch.testing.assert_close(own, value, rtol=1e-3, atol=1e-6)
    card = read_card(path)
    assert card["precision"] == "float16"
    # The card's figure is that of the file, not of the weights before they were rounded.
    measured = evaluate(path, "synthetic:32x48", limit=3, pictures=0)
    assert card["miou"] == measured["miou"]
    assert weights.lines()[0][0] == "`enet_encoder:street`"


def test_what_is_refused(run, tmp_path, capsys):
    with pytest.raises(ValueError, match="takes 0.8 MB in half precision, more than 0.1"):
        pack.pack(run, "street", folder=tmp_path, largest=100_000)
    with pytest.raises(ValueError, match="tag must be of letters"):
        pack.pack(run, "my_street", folder=tmp_path)
    with pytest.raises(ValueError, match="x.weight has weights beyond float16"):
        pack.halved({"x.weight": torch.tensor([1e5])})
    assert pack.main([str(run), "a/b", "--folder", str(tmp_path)]) == 2
    assert "tag must be" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
