"""nn.GaussianCRF: its pairwise values, its start, its gradients, and that it learns."""

from __future__ import annotations

import pytest
import torch

from segkern import nn, ops
from segkern.ops.gaussian_crf import PAIRWISE


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_layer(pairwise, levels):
    """Zero at the start; then the operator over its own edges; and every gradient is right."""
    sizes = [(5, 4), (2, 2)][:levels]
    layer = nn.GaussianCRF(
        [3, 2][:levels], 3, pairwise=pairwise, repeats=2, output="average", tolerance=1e-14
    ).double()
    generator = torch.Generator().manual_seed(0)
    features, unary = (
        [
            torch.randn(1, c, *size, generator=generator).double().requires_grad_()
            for c, size in zip(channels, sizes)
        ]
        for channels in ([3, 2], [3, 3])
    )
    centre = torch.eye(3).double() - 0.5 if pairwise == "reduced" else torch.eye(3).double() / 10
    start = torch.einsum("ab,nbhw->nahw", centre @ centre, unary[0])
    if levels == 1:
        torch.testing.assert_close(layer(features, unary), start)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    once = ops.gaussian_crf(unary, *layer.edges(features), pairwise=pairwise, tolerance=1e-14)
    twice = ops.gaussian_crf(once, *layer.edges(features), pairwise=pairwise, tolerance=1e-14)
    wanted = twice[0]
    if levels == 2:
        rows, columns = torch.arange(5) * 2 // 5, torch.arange(4) * 2 // 4
        wanted = (wanted + twice[1][:, :, rows][..., columns]) / 2
    torch.testing.assert_close(layer(features, unary), wanted)
    names = [name for name, _ in layer.named_parameters()]

    def run(*values):
        given = dict(zip(names, values))
        return torch.func.functional_call(
            layer, given, (list(values[len(names) :][:levels]), list(values[-levels:]))
        )

    leaves = [p.detach().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, [*leaves, *features, *unary], fast_mode=True)


def test_layer_stays_definite_whatever_the_features():
    for pairwise in PAIRWISE:
        layer = nn.GaussianCRF([4, 4], 5, pairwise=pairwise, check=True)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=100.0)
        features = [torch.randn(2, 4, 9, 7), torch.randn(2, 4, 4, 3)]
        unary = [torch.randn(2, 5, 9, 7), torch.randn(2, 5, 4, 3)]
        assert bool(layer(features, unary).isfinite().all())
        layer.definite = None
        with pytest.raises(RuntimeError, match="positive definite"):
            layer(features, unary)


def test_layer_learns():
    """A map in two halves under heavy noise; the features tell where the border is."""
    generator = torch.Generator().manual_seed(0)
    target = torch.zeros(4, 12, 12, dtype=torch.long)
    target[:, :, 6:] = 1
    features = torch.nn.functional.one_hot(target, 2).permute(0, 3, 1, 2).float()
    noise = torch.randn(4, 2, 12, 12, generator=generator)
    unary = 10 * (features + 2 * noise)
    layer = nn.GaussianCRF(2, 2)
    optimizer = torch.optim.Adam(layer.parameters(), 0.2)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.cross_entropy(layer(features, unary), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0], losses


def test_layer_arguments():
    for keywords, message in (
        ({"in_channels": []}, "in_channels"),
        ({"num_labels": 0}, "num_labels"),
        ({"num_labels": 1, "pairwise": "reduced"}, "num_labels must be at least 2"),
        ({"pairwise": "x"}, "pairwise"),
        ({"diagonal": -1.0}, "diagonal"),
        ({"definite": 1.0}, "definite"),
        ({"repeats": 0}, "repeats"),
        ({"output": "coarsest"}, "output"),
    ):
        with pytest.raises(ValueError, match=f"GaussianCRF: .*{message}"):
            nn.GaussianCRF(**{"in_channels": 2, "num_labels": 3, **keywords})
    layer = nn.GaussianCRF(2, 3)
    with pytest.raises(ValueError, match="unary must be"):
        layer(torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4))
    with pytest.raises(ValueError, match="features must have 1 levels"):
        layer([torch.rand(1, 2, 4, 4)] * 2, torch.rand(1, 3, 4, 4))
    assert "pairwise='potts'" in repr(layer)
