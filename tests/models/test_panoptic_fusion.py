"""The panoptic fusion against hand-made cases and a pixel-by-pixel implementation."""

from __future__ import annotations

import pytest
import torch

from segkern.models._instances.fusion import fuse_panoptic


def rows(*texts):
    """Masks of one row: 'x' is in the mask."""
    return torch.tensor([[[letter == "x" for letter in text]] for text in texts])


def fused(masks, labels, scores, semantic=None, **options):
    semantic = torch.zeros(masks.shape[1:], dtype=torch.int64) if semantic is None else semantic
    options = {"num_stuff": 3, "stuff_area": 2, **options}
    return fuse_panoptic(masks, torch.tensor(labels), torch.tensor(scores), semantic, **options)


def test_the_better_instance_keeps_its_pixels():
    ids, segments = fused(rows(".xxxx...", "xxx....."), [4, 2], [0.6, 0.9])
    assert ids.tolist() == [[1, 1, 1, 2, 2, 0, 0, 0]]
    scores = [segment.pop("score") for segment in segments]
    assert scores == pytest.approx([0.9, 0.6])
    assert segments == [
        {"id": 1, "label": 2, "isthing": True, "area": 3},
        {"id": 2, "label": 4, "isthing": True, "area": 2},
    ], "exactly half of the lesser one is taken, which is not too much"


def test_too_much_overlap_low_scores_and_no_pixels_leave_an_instance_out():
    masks = rows("xxx.....", "xx.x....", "....xx..", "........", "......xx")
    ids, segments = fused(masks, [1, 1, 1, 1, 1], [0.9, 0.8, 0.5, 0.7, 0.49])
    assert ids.tolist() == [[1, 1, 1, 0, 2, 2, 0, 0]]
    assert [s["area"] for s in segments] == [3, 2]
    assert ids.tolist() != fused(masks, [1] * 5, [0.9] * 5, overlap=0.7)[0].tolist()


def test_the_first_of_equal_scores_comes_first():
    ids, _ = fused(rows("xx..", ".xx."), [1, 1], [0.7, 0.7], overlap=1.0)
    assert ids.tolist() == [[1, 1, 2, 0]]


def test_stuff_gets_free_pixels_if_they_are_enough():
    semantic = torch.tensor([[3, 3, 0, 0, 1, 1, 2, 3]])
    ids, segments = fused(rows("x.x....."), [2], [0.9], semantic)
    assert ids.tolist() == [[1, 3, 1, 0, 2, 2, 0, 3]], "class 2 has one pixel, things none"
    assert [(s["label"], s["isthing"], s["score"], s["area"]) for s in segments[1:]] == [
        (1, False, None, 2),
        (3, False, None, 2),
    ]
    everything, _ = fused(rows("x.x....."), [2], [0.9], semantic, stuff_area=1)
    assert everything.tolist() == [[1, 4, 1, 0, 2, 2, 3, 4]]


def test_precedence():
    """A tie (2) over a person (1): it takes the person's pixels, not the dog's (3)."""
    masks, labels, scores = rows("xxxx..", "....xx", ".xx.x."), [1, 3, 2], [0.9, 0.8, 0.7]
    without, segments = fused(masks, labels, scores)
    assert without.tolist() == [[1, 1, 1, 1, 2, 2]] and len(segments) == 2
    ids, segments = fused(masks, labels, scores, precedence=[(2, 1)])
    assert ids.tolist() == [[1, 3, 3, 1, 2, 2]]
    assert [(s["label"], s["area"]) for s in segments] == [(1, 2), (3, 2), (2, 2)]
    reverse, _ = fused(masks, labels, scores, precedence=[(1, 2)])
    assert torch.equal(reverse, without)
    swallowed, segments = fused(rows("xx.", "xxx"), [1, 2], [0.9, 0.8], precedence=[(2, 1)])
    assert swallowed.tolist() == [[1, 1, 1]], "a segment without pixels is not listed"
    assert [s["label"] for s in segments] == [2]


def test_probabilities_count_from_a_half():
    values = torch.tensor([[[0.5, 0.49, 1.0, 0.0]]])
    assert fused(values, [1], [0.9])[0].tolist() == [[1, 0, 1, 0]]


@pytest.mark.parametrize("shape", [(0, 4, 5), (2, 0, 5), (0, 0, 0)])
def test_nothing(shape):
    ids, segments = fused(torch.zeros(shape).bool(), [1] * shape[0], [0.9] * shape[0])
    assert ids.shape == shape[1:] and not ids.any() and segments == []


def slow(masks, labels, scores, semantic, num_stuff, threshold, overlap, stuff_area, precedence):
    """The rule of the function's docstring, pixel by pixel."""
    owner: dict[tuple[int, int], int] = {}
    places = [tuple(place) for place in torch.ones(semantic.shape).nonzero().tolist()]
    things = []
    for i in sorted(range(len(labels)), key=lambda i: (-scores[i], i)):
        own = [place for place in places if masks[i][place]]
        if scores[i] < threshold or not own:
            continue
        taken = [
            place
            for place in own
            if place in owner and (labels[i], labels[owner[place]]) not in precedence
        ]
        if len(taken) / len(own) > overlap:
            continue
        things.append(i)
        owner.update({place: i for place in own if place not in taken})
    ids, segments = {}, []
    for i in things:
        own = [place for place in places if owner.get(place) == i]
        if own:
            segments.append((len(segments) + 1, labels[i], True, scores[i], len(own)))
            ids.update({place: len(segments) for place in own})
    for kind in range(1, num_stuff + 1):
        own = [place for place in places if place not in owner and semantic[place] == kind]
        if own and len(own) >= stuff_area:
            segments.append((len(segments) + 1, kind, False, None, len(own)))
            ids.update({place: len(segments) for place in own})
    found = torch.zeros(semantic.shape, dtype=torch.int64)
    for place, key in ids.items():
        found[place] = key
    return found, segments


@pytest.mark.parametrize("seed", range(12))
def test_random_scenes(seed):
    g = torch.Generator().manual_seed(seed)
    height, width, count = 9, 41, 12
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        y, x = (int(torch.randint(n, (1,), generator=g)) for n in (height - 2, width - 4))
        h, w = (int(torch.randint(1, n, (1,), generator=g)) for n in (5, 16))
        mask[y : y + h, x : x + w] = torch.rand(mask[y : y + h, x : x + w].shape, generator=g) < 0.8
    labels = torch.randint(1, 4, (count,), generator=g)
    scores = torch.randint(3, 10, (count,), generator=g) / 10  # with ties
    semantic = torch.randint(0, 4, (height, width), generator=g)
    precedence = [(), [(2, 1)], [(1, 2), (2, 1), (3, 1)]][seed % 3]
    given = {"num_stuff": 3, "overlap": 0.4, "stuff_area": 80, "precedence": precedence}
    ids, segments = fuse_panoptic(masks, labels, scores, semantic, **given)
    wanted, listed = slow(
        masks, labels.tolist(), scores.tolist(), semantic, 3, 0.5, 0.4, 80, precedence
    )
    assert torch.equal(ids, wanted)
    keys = ("id", "label", "isthing", "score", "area")
    assert [tuple(segment[key] for key in keys) for segment in segments] == listed
    assert sum(thing for *_, thing, _, _ in listed) >= 3


def test_wrong_shapes():
    masks = torch.zeros(2, 3, 4).bool()
    with pytest.raises(ValueError, match="fuse_panoptic: masks, labels and scores must be"):
        fused(masks, [1], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"fuse_panoptic: semantic must be \(3, 4\)"):
        fused(masks, [1, 1], [0.5, 0.5], torch.zeros(4, 3).long())
    with pytest.raises(ValueError, match="fuse_panoptic: semantic must be from 0 to 3, got 7"):
        fused(masks, [1, 1], [0.5, 0.5], torch.full((3, 4), 7))
