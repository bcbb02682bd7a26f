"""Forests: the trees of scikit-learn, their features beside plain loops, tiles, files."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from segkern.models import WeightsError, create_model, save_weights
from segkern.models import _forest as forest_file
from segkern.models._forest import Forest, MissingExtra, rounded_down
from segkern.models._pixels import draw_pixels, pixels_per_image
from segkern.models.random_forest import pixel_features
from segkern.models.texton_forest import PATCH, draw_pairs, draw_rectangles, pair_features, to_lab

ensemble = pytest.importorskip("sklearn.ensemble")
pytest.importorskip("skimage")

NAMES = ("random_forest", "texton_forest")
LIGHT = {
    "random_forest": {"trees": 7, "depth": 5, "share": 0.5},
    "texton_forest": {"trees": 3, "depth": 5, "tests": 40, "bag_tests": 30, "reach": 9},
}


class Pictures:
    """Noise in blocks, whose label is in its colour; label 2 is rare and 1 in 9 is ignored."""

    def __init__(self, count=3, size=(33, 41)):
        generator = torch.Generator().manual_seed(3)
        self.items = []
        for _ in range(count):
            blocks = torch.rand(3, 6, 7, generator=generator)
            image = torch.nn.functional.interpolate(blocks[None], size=size)[0]
            mask = (image[0] > 0.5).long()
            mask[image[1] > 0.85] = 2
            mask[::3, ::3] = 255
            noise = 0.1 * torch.rand(3, *size, generator=generator)
            self.items.append(((image + noise).clamp(0, 1), mask))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def fitted(name, monkeypatch=None, **options):
    """A fitted network, and the scikit-learn forests that it was made from."""
    kept = []
    if monkeypatch is not None:
        original = Forest.from_sklearn.__func__

        def watched(cls, grown, classes):
            kept.append(grown)
            return original(cls, grown, classes)

        monkeypatch.setattr(Forest, "from_sklearn", classmethod(watched))
    network = create_model(name, num_classes=4, **{**LIGHT[name], **options})
    done = network.fit(Pictures(), seed=1)
    assert done["pixels"] > 0 and done["nodes"] > 3 * network.options.trees
    return network, kept


@pytest.mark.parametrize("kind", ["RandomForestClassifier", "ExtraTreesClassifier"])
def test_stored_trees_are_scikit_learns(kind):
    """The same leaf for every row and tree, the same bits of every probability."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(9000, 6)).astype(np.float32)
    rows[:, 3] = np.round(rows[:, 3])  # values that meet thresholds between them
    labels = (rows[:, 0] + rows[:, 3] > 0).astype(int) + 2 * (rows[:, 1] > 1)
    grown = getattr(ensemble, kind)(9, max_depth=7, random_state=0).fit(rows[:3000], labels[:3000])
    own = Forest.from_sklearn(grown, 5)
    table = torch.from_numpy(rows)
    starts = own.roots.numpy()
    assert np.array_equal(own.leaves(table).numpy() - starts, grown.apply(rows))
    expected = np.zeros((len(rows), 5))
    expected[:, grown.classes_] = grown.predict_proba(rows)
    assert np.array_equal(own.probabilities(table).numpy(), expected)
    # Rows on the thresholds themselves, one step below and above them.
    tree = grown.estimators_[0].tree_
    inner = tree.feature >= 0
    edges = tree.threshold[inner].astype(np.float32)
    for value in (np.nextafter(edges, -np.inf), edges, np.nextafter(edges, np.inf)):
        near = np.repeat(value[:, None], 6, axis=1).astype(np.float32)
        found = own.probabilities(torch.from_numpy(near)).numpy()
        assert np.array_equal(found[:, grown.classes_], grown.predict_proba(near))


def test_thresholds_are_rounded_down():
    wide = np.array([0.1, 1 / 3, -0.1, 2.0, 1e-40])
    down = rounded_down(wide)
    assert down.dtype == np.float32
    assert (down.astype(np.float64) <= wide).all()
    assert (np.nextafter(down, np.float32(np.inf)).astype(np.float64) > wide).all()


def test_random_forest_predicts_what_scikit_learn_does(monkeypatch):
    network, (grown,) = fitted("random_forest", monkeypatch)
    image = Pictures()[0][0]
    rows = pixel_features(image.numpy()).reshape(-1, 77)
    scores = network(image[None])["out"][0]
    assert scores.shape == (4, 33, 41) and scores.dtype == torch.float64
    expected = np.zeros((len(rows), 4))
    expected[:, grown.classes_] = grown.predict_proba(rows)
    found = scores.exp().permute(1, 2, 0).reshape(-1, 4).numpy()
    assert np.abs(found - expected).max() < 2e-12
    assert np.array_equal(scores.argmax(0).ravel().numpy(), expected.argmax(1))
    assert grown.max_depth == 5 and len(grown.estimators_) == 7


def test_texton_forest_predicts_what_scikit_learn_does(monkeypatch):
    """Both stages, the second on rectangles averaged here pixel by pixel."""
    network, (textons, bags) = fitted("texton_forest", monkeypatch)
    image = Pictures()[0][0].numpy()
    height, width = image.shape[1:]
    planes = to_lab(image)
    rows = pair_table(planes, network.pairs.numpy())
    leaves = textons.apply(rows).reshape(height, width, -1)
    shares = np.zeros((height, width, 4))
    shares[..., textons.classes_] = textons.predict_proba(rows).reshape(height, width, -1)
    paths = [tree.decision_path(rows).toarray() for tree in textons.estimators_]
    starts = network.textons.roots.tolist()
    table = np.zeros((height * width, 30), dtype=np.float32)
    for place, (what, top, left, bottom, right) in enumerate(network.rectangles.tolist()):
        if what < 0:
            plane = shares[..., -1 - what]
        else:
            tree = max(i for i, start in enumerate(starts) if start <= what)
            plane = paths[tree][:, what - starts[tree]].reshape(height, width)
        for at in range(height * width):
            row, column = divmod(at, width)
            cut = plane[
                min(max(row + top, 0), height) : max(row + bottom, 0),
                min(max(column + left, 0), width) : max(column + right, 0),
            ]
            table[at, place] = cut.mean() if cut.size else 0
    found = network._bag_features(
        leaves + starts, torch.from_numpy(shares), np.arange(30), np.arange(height * width)
    )
    assert np.abs(found - table).max() < 1e-6
    expected = np.zeros((height * width, 4))
    expected[:, bags.classes_] = bags.predict_proba(found)
    scores = network(torch.from_numpy(image)[None])["out"][0]
    assert np.abs(scores.exp().reshape(4, -1).T.numpy() - expected).max() < 2e-12
    single = create_model("texton_forest", num_classes=4, stages=1, **LIGHT["texton_forest"])
    single.pairs, single.textons = network.pairs, network.textons
    first = single(torch.from_numpy(image)[None])["out"][0].exp().permute(1, 2, 0).numpy()
    assert np.abs(first - shares).max() < 2e-12


def pair_table(planes, tests):
    """Pair tests by padding the image and shifting it."""
    height, width = planes.shape[1:]
    padded = np.pad(planes, ((0, 0), (PATCH, PATCH), (PATCH, PATCH)), mode="reflect")

    def moved(row, column, channel):
        rows = slice(PATCH + row, PATCH + row + height)
        return padded[channel, rows, PATCH + column : PATCH + column + width]

    table = np.empty((height, width, len(tests)), dtype=np.float32)
    for place, (kind, *places) in enumerate(tests.tolist()):
        a, b = moved(*places[:3]), moved(*places[3:])
        table[..., place] = [a, a + b, a - b, np.abs(a - b)][kind]
    return table.reshape(-1, len(tests))


def test_pair_features():
    generator = np.random.default_rng(0)
    planes = generator.normal(size=(3, 14, 19)).astype(np.float32)
    tests = draw_pairs(60, 3, generator)
    assert set(tests[:, 0].tolist()) == {0, 1, 2, 3}
    used, at = np.array([3, 0, 59]), np.array([0, 100, 265])
    found = pair_features(planes, tests, used, at)
    assert np.array_equal(found, pair_table(planes, tests)[at][:, used])


def test_rectangles_lie_within_reach():
    drawn = draw_rectangles(500, 9, 20, 4, np.random.default_rng(0))
    assert drawn[:, 0].min() == -4 and drawn[:, 0].max() == 19
    assert np.abs(drawn[:, 1:]).max() == 9
    assert (drawn[:, 1] < drawn[:, 3]).all() and (drawn[:, 2] < drawn[:, 4]).all()


@pytest.mark.parametrize("name", NAMES)
def test_tiles_are_the_whole_image(name):
    network, _ = fitted(name)
    network.tile = 80
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 97, 171, generator=generator)
    whole = network(image)["out"]
    tiled = torch.full_like(whole, torch.nan)
    for top, left, scores in network.tiles(image):
        tiled[..., top : top + scores.shape[2], left : left + scores.shape[3]] = scores
    # A filter response that rounds differently may fall to the other side of a threshold.
    assert ((tiled - whole).abs().amax(1) < 1e-9).float().mean() > 0.999


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_images_and_other_channels(name, size, channels):
    network = create_model(name, num_classes=4, in_channels=channels, **LIGHT[name])
    pictures = Pictures()
    pictures.items = [(image[:channels], mask) for image, mask in pictures.items]
    network.fit(pictures, seed=0)
    scores = network(torch.rand(2, channels, *size))["out"]
    assert scores.shape == (2, 4, *size) and scores.isfinite().all()
    with pytest.raises(ValueError, match=f"{name}: input must have {channels} channels"):
        network(torch.rand(1, channels + 1, 5, 5))


@pytest.mark.parametrize("name", NAMES)
def test_an_unfitted_forest_knows_nothing(name):
    scores = create_model(name)(torch.rand(1, 3, 5, 6))["out"]
    assert torch.allclose(scores.exp(), torch.full_like(scores, 1 / 11))


@pytest.mark.parametrize("name", NAMES)
def test_the_seed_decides(name):
    first, _ = fitted(name)
    again, _ = fitted(name)
    state = again.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in first.state_dict().items())
    other = create_model(name, num_classes=4, **LIGHT[name])
    other.fit(Pictures(), seed=2)
    image = Pictures()[0][0][None]
    assert not torch.equal(other(image)["out"], first(image)["out"])


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load(name, tmp_path):
    network, _ = fitted(name)
    path = tmp_path / "forest.safetensors"
    config = json.loads(json.dumps(network.config))
    save_weights(path, network.state_dict(), {"card": json.dumps({"config": config})})
    loaded = create_model(name, weights=path)
    assert loaded.config == network.config
    image = Pictures()[0][0][None]
    assert torch.equal(loaded(image)["out"], network(image)["out"])
    with pytest.raises(WeightsError, match="of another shape"):
        create_model(name, weights=path, nodes=12)


def test_files_that_hold_no_trees_are_refused(tmp_path):
    """Loops and indices beyond the tables would hang or crash a prediction."""
    network, _ = fitted("texton_forest")
    first = int((network.textons.feature >= 0).nonzero()[0])
    config = {"card": json.dumps({"config": network.config})}
    for key, index, value in (
        ("textons.left", first, first),
        ("textons.left", first, 10**6),
        ("textons.right", first, -1),
        ("textons.roots", 0, 10**6),
        ("textons.feature", first, 40),
        ("textons.share", (0, 0), torch.nan),
        ("pairs", (0, 3), 3),
        ("pairs", (0, 1), PATCH + 1),
        ("rectangles", (0, 0), -5),
        ("rectangles", (0, 1), 10),
    ):
        state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        state[key][index] = value
        path = tmp_path / "bad.safetensors"
        save_weights(path, state, config)
        with pytest.raises(ValueError, match="Forest: |texton_forest: "):
            create_model("texton_forest", weights=path)


def test_pixels_are_drawn_by_class():
    labels = np.zeros((40, 50), dtype=np.int64)
    labels[:4, :5] = 1
    labels[10] = 255
    for sampling, share in (("stratified", 20 / 1950), ("balanced", 0.5)):
        at = draw_pixels(labels, 100, np.random.default_rng(0), sampling=sampling)
        assert len(set(at.tolist())) == len(at) and abs(len(at) - 100) <= 40
        found = labels.ravel()[at]
        assert 255 not in found
        assert (found == 1).sum() == min(max(1, round(100 * share)), 20)
    assert len(draw_pixels(np.full((3, 3), 255), 5, np.random.default_rng(0))) == 0
    assert pixels_per_image(10, 400, 1000) == 100
    assert pixels_per_image(2, 400, 1000) == 400


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_bounded_by_the_pixels_drawn(name):
    network = create_model(name, num_classes=4, **LIGHT[name], largest=90)
    assert network.fit(Pictures(count=6), seed=0)["pixels"] <= 90 + 6 * 4


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_fit(name):
    pictures = Pictures(count=1)
    pictures.items[0][1].fill_(255)
    with pytest.raises(ValueError, match=f"{name}: no training image has a labelled pixel"):
        create_model(name).fit(pictures)


@pytest.mark.parametrize("name", NAMES)
def test_without_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtra, match=f"{name}: needs scikit-learn"):
        forest_file.import_classic(name)
    with pytest.raises(MissingExtra, match="segkern\\[classic\\]"):
        create_model(name).fit(Pictures())


@pytest.mark.parametrize("name", ["random_forest", "texton_forest"])
@pytest.mark.parametrize(
    "option, message",
    [
        ({"trees": 0}, "trees must be an int of at least 1, got 0"),
        ({"depth": 0}, "depth must be an int of at least 1, got 0"),
        ({"nodes": -1}, "nodes must be an int of at least 0, got -1"),
        ({"share": 0.0}, "share must be above 0 and at most 1, got 0.0"),
    ],
)
def test_numbers_are_checked(name, option, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        create_model(name, **option)


def test_options_are_checked():
    with pytest.raises(ValueError, match="sampling must be one of"):
        create_model("random_forest", sampling="all")
    with pytest.raises(ValueError, match="stages must be one of"):
        create_model("texton_forest", stages=3)
    with pytest.raises(ValueError, match="random_forest has none; refine"):
        create_model("random_forest", crf=True)
    assert dataclasses.asdict(create_model("random_forest").options)["trees"] == 50
