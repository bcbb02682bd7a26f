"""AUNet's blocks against formulas written out in float64, values and gradients."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch.nn import functional as F

from segkern.models._instances import attention, background
from segkern.models._instances.attention import (
    BackgroundSelect,
    MaskAttention,
    ProposalAttention,
)
from segkern.models._instances.background import (
    BackgroundBranch,
    background_loss,
    classes_of_pixels,
    enlarge,
)
from segkern.reference import roi as reference


def size_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


def randomised(module):
    """In float64, with weights large enough that every part matters."""
    module = module.double()
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data.normal_(generator=generator).mul_(0.5)
    return module


def selected(features, select):
    """What the selection makes of (N, C, H, W), by matrix products."""
    n, c, height, width = features.shape
    means = features.sum((2, 3)) / (height * width)
    w1, b1 = select.squeeze.weight.view(-1, c), select.squeeze.bias
    w2, b2 = select.excite.weight.view(c, -1), select.excite.bias
    hidden = torch.clamp(means @ w1.T + b1, min=0)
    return features * (1 / (1 + torch.exp(-(hidden @ w2.T + b2)))).view(n, c, 1, 1)


def attended(features, found, layer):
    weight = layer.weight.view(-1)
    logits = torch.einsum("nchw,c->nhw", found, weight)[:, None] + layer.bias
    mask = 1 / (1 + torch.exp(-logits))
    return features * (1 - mask) + features


def test_parameters():
    assert size_of(ProposalAttention(256, 256)) == 8_721
    assert size_of(MaskAttention(128, 256)) == 257 + 2_184
    assert size_of(BackgroundSelect(256)) == 8_464
    assert size_of(BackgroundBranch(256, 128, 54)) == 1_630_774
    extra = 4 * size_of(ProposalAttention(256, 256)) + size_of(MaskAttention(128, 256))
    assert 1_630_774 + extra == 1_668_099


def test_proposal_attention():
    block = randomised(ProposalAttention(32, 6, reduction=8))
    features = torch.randn(2, 32, 5, 7, dtype=torch.float64, requires_grad=True)
    proposals = torch.randn(2, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    out = block(features, proposals)
    wanted = selected(attended(features, proposals, block.attend), block.select)
    torch.testing.assert_close(out, wanted)
    grad = torch.randn_like(out)
    leaves = (features, proposals, *block.parameters())
    for got, want in zip(
        torch.autograd.grad(out, leaves, grad, retain_graph=True),
        torch.autograd.grad(wanted, leaves, grad),
    ):
        assert want.abs().max() > 1e-4
        torch.testing.assert_close(got, want)


def test_gradients_of_the_attention_by_hand():
    """dS = (2 - M) dS' and dM = -sum over channels of S dS', with the selection cut out."""
    block = randomised(ProposalAttention(16, 3, reduction=8))
    block.select = torch.nn.Identity()
    features = torch.randn(1, 16, 4, 3, dtype=torch.float64, requires_grad=True)
    proposals = torch.randn(1, 3, 4, 3, dtype=torch.float64)
    grad = torch.randn_like(features)
    block(features, proposals).backward(grad)
    mask = torch.sigmoid(block.attend(proposals)).detach()
    torch.testing.assert_close(features.grad, (2 - mask) * grad)
    d_mask = -(features.detach() * grad).sum(1, keepdim=True)
    d_logits = d_mask * mask * (1 - mask)
    torch.testing.assert_close(block.attend.bias.grad, d_logits.sum()[None])
    torch.testing.assert_close(
        block.attend.weight.grad.flatten(), (d_logits * proposals).sum((0, 2, 3))
    )


BOXES = [
    torch.tensor([[2.0, 3.0, 40.0, 30.0], [10.0, 8.0, 60.0, 44.0]], dtype=torch.float64),
    torch.tensor([[0.0, 0.0, 20.0, 20.0]], dtype=torch.float64),
]


@pytest.mark.parametrize("mode", ["gather", "norm", "pinv"])
@pytest.mark.parametrize("roi_reduction", ["mean", "sum", "max"])
def test_mask_attention_is_the_plain_reading(mode, roi_reduction):
    """One channel brought back equals all channels brought back and then reduced, gradients too."""
    options = {"spatial_scale": 0.25, "mode": mode, "roi_reduction": roi_reduction}
    block = randomised(MaskAttention(32, 5, reduction=8, **options))
    features = torch.randn(2, 32, 12, 16, dtype=torch.float64, requires_grad=True)
    rois = torch.randn(3, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    out = block(features, rois, BOXES)
    rows = torch.cat(
        [F.pad(boxes, (1, 0), value=float(image)) for image, boxes in enumerate(BOXES)]
    )
    found = reference.roi_upsample(
        rois,
        rows,
        (2, 12, 16),
        spatial_scale=0.25,
        mode=mode,
        reduction=roi_reduction,
        aligned=mode == "norm",
    )
    wanted = selected(attended(features, found, block.attend), block.select)
    torch.testing.assert_close(out, wanted)
    grad = torch.randn_like(out)
    leaves = (features, rois, *block.parameters())
    for got, want in zip(
        torch.autograd.grad(out, leaves, grad, retain_graph=True),
        torch.autograd.grad(wanted, leaves, grad),
    ):
        assert want.abs().max() > 1e-4
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("roi_reduction", ["mean", "max"])
def test_mask_attention_without_boxes(roi_reduction):
    block = randomised(MaskAttention(16, 5, reduction=8, roi_reduction=roi_reduction))
    features = torch.randn(2, 16, 4, 4, dtype=torch.float64, requires_grad=True)
    rois = torch.zeros(0, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    out = block(features, rois, [torch.zeros(0, 4, dtype=torch.float64)] * 2)
    zeros = torch.zeros(2, 5, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(out, selected(attended(features, zeros, block.attend), block.select))
    out.sum().backward()
    assert rois.grad.shape == rois.shape and features.grad.abs().sum() > 0
    assert block.attend.bias.grad.abs() > 0 and not block.attend.weight.grad.any()


def test_wrong_options():
    with pytest.raises(ValueError, match="BackgroundSelect: channels must be at least reduction"):
        BackgroundSelect(8)
    with pytest.raises(ValueError, match="MaskAttention: mode must be"):
        MaskAttention(16, 4, mode="max")
    with pytest.raises(ValueError, match="MaskAttention: roi_reduction must be"):
        MaskAttention(16, 4, roi_reduction="min")
    with pytest.raises(ValueError, match="BackgroundBranch: channels must be a multiple of 32"):
        BackgroundBranch(8, 48, 3)


def test_background_branch():
    """Against the layers applied one by one: convolution, normalisation by groups, doubling."""
    branch = randomised(BackgroundBranch(6, 32, 5))
    maps = [torch.randn(2, 6, 16 >> k, 24 >> k, dtype=torch.float64) for k in range(4)]
    total = torch.zeros(2, 32, 16, 24, dtype=torch.float64)
    for doublings, (level, path) in enumerate(zip(maps, branch.scales)):
        convs = [layer for layer in path if isinstance(layer, torch.nn.Conv2d)]
        norms = [layer for layer in path if isinstance(layer, torch.nn.GroupNorm)]
        assert len(convs) == len(norms) == max(1, doublings)
        for conv, norm in zip(convs, norms):
            assert conv.bias is None and norm.num_groups == 32
            level = F.conv2d(level, conv.weight, padding=1)
            # Groups of one channel here.
            mean = level.mean((2, 3), keepdim=True)
            spread = (level - mean).square().mean((2, 3), keepdim=True)
            level = (level - mean) / (spread + 1e-5).sqrt()
            level = level * norm.weight[:, None, None] + norm.bias[:, None, None]
            level = level.clamp(min=0)
            if doublings:
                level = doubled(doubled(level).mT).mT
        total += level
    torch.testing.assert_close(branch.fuse(maps), total)
    wanted = torch.einsum("nchw,kc->nkhw", total, branch.predict.weight[:, :, 0, 0])
    torch.testing.assert_close(branch(maps), wanted + branch.predict.bias[:, None, None])


def doubled(x):
    """Twice as long along the last axis: new centres lie a quarter from the old ones."""
    before = torch.cat([x[..., :1], x[..., :-1]], -1)
    after = torch.cat([x[..., 1:], x[..., -1:]], -1)
    pairs = torch.stack([0.25 * before + 0.75 * x, 0.75 * x + 0.25 * after], -1)
    return pairs.flatten(-2)


def test_background_loss():
    logits = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    semantic = [torch.randint(0, 3, (7, 5)), torch.randint(0, 3, (8, 8))]
    semantic[0][2:4] = 255
    terms = []
    for own, labels in zip(logits, semantic):
        for (y, x), label in zip(torch.ones_like(labels).nonzero(), labels.flatten()):
            if label != 255:
                terms.append(-own[:, y, x].log_softmax(0)[label])
    assert len(terms) == 5 * 5 + 64
    torch.testing.assert_close(
        background_loss(logits, semantic).double(), sum(terms) / len(terms), rtol=1e-6, atol=0
    )
    nothing = background_loss(logits, [torch.full((8, 8), 255)] * 2)
    nothing.backward()
    assert nothing == 0 and not logits.grad.any()


def test_classes_of_pixels():
    logits = torch.randn(2, 4, 8, 12)
    same, larger = classes_of_pixels(logits, [(8, 12), (6, 5)], [(8, 12), (12, 10)])
    assert torch.equal(same, logits[0].argmax(0))
    wanted = doubled(doubled(logits[1, :, :6, :5]).mT).mT.argmax(0)
    assert larger.dtype == torch.int64 and torch.equal(larger, wanted)
    assert enlarge(logits).shape == (2, 4, 32, 48)


@pytest.mark.parametrize("module", [attention, background])
def test_examples(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted >= 4
