"""The box kernels on the CPU, against float64, in every schedule and sanitised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segkern.reference import roi as reference

from .arrays import to_array, to_double
from .harness import Call, check_orders, load, poisoned, run_sanitized

MODES = ["align", "pinv", "pinv_mean", "norm", "gather"]  # RoiWeights


def in_memory(tensor: torch.Tensor, channels_last: bool) -> torch.Tensor:
    return tensor.movedim(1, -1) if channels_last else tensor


def some_boxes(count, images, height, width, dtype):
    """Inside, over the border and of any size; then a NaN, no image, no area, far away."""
    generator = torch.Generator().manual_seed(count)
    size = torch.tensor([width, height], dtype=torch.float64)
    corner = (torch.rand(count, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.3) * size
    extent = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size
    image = torch.randint(images, (count, 1), generator=generator)
    rows = torch.cat([image, corner, corner + extent], 1)
    nan = float("nan")
    hard = [[0, nan, 1, 2, 3], [-1, 0, 0, 3, 3], [images, 0, 0, 3, 3], [0, 1, 2, 4, 2]]
    hard += [[0, 1e9, 0, 2e9, 4], [0, 90, 90, 99, 99]]
    return torch.cat([rows, torch.tensor(hard, dtype=torch.float64)]).to(dtype)


# maps, bins, mode, samples, aligned: bins beyond a block's (16; writing, 32), channels beyond its
# 64 and 32, windows beyond 32 pixels, one pixel.
CASES = [
    ((2, 5, 9, 11), (3, 2), "align", 2, True),
    ((1, 70, 4, 5), (2, 2), "align", 0, False),
    ((1, 2, 10, 19), (17, 33), "align", 1, True),
    ((1, 1, 3, 150), (2, 2), "align", 3, True),
    ((1, 3, 1, 1), (2, 3), "align", 2, True),
    ((2, 3, 9, 8), (4, 3), "pinv", 0, False),
    ((1, 3, 9, 8), (4, 3), "pinv_mean", 2, False),
    ((1, 9, 9, 8), (3, 35), "norm", 0, True),
    ((2, 3, 17, 12), (4, 5), "gather", 0, True),
    ((1, 2, 3, 90), (1, 1), "gather", 0, True),
]


def largest_of(matrices, values, shape):
    """(images, C, H, W) largest of what the boxes with a weight at a pixel write, and whose it is,
    -1 for none, from :func:`double_matrices`."""
    written = torch.einsum("kbip,kcb->kicp", matrices, values)
    covered = (matrices > 0).any(1)[:, :, None]
    candidates = torch.where(covered, written, -torch.inf)
    best, owner = candidates.max(0)  # the first of equals
    none = ~covered.any(0).expand_as(best)
    return best.masked_fill(none, 0.0).view(shape), owner.masked_fill(none, -1).view(shape)


def double_matrices(rois, bins, shape, mode, ratio, aligned):
    """(K, bins, images x pixels) of the transform of each box; zeros where it has no image."""
    images, _, height, width = shape
    found = torch.zeros(len(rois), bins[0] * bins[1], images, height * width, dtype=torch.float64)
    for n, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        finite = all(abs(v) < 1e8 for v in (x1, y1, x2, y2))
        if not (0 <= image < images) or not finite:
            continue
        options = {"mode": mode, "sampling_ratio": ratio, "aligned": aligned}
        down = reference.axis_matrix(y1, y2, 0.9, bins[0], height, **options)
        across = reference.axis_matrix(x1, x2, 0.9, bins[1], width, **options)
        found[n, :, int(image)] = torch.kron(down, across)
    return found


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_reading_and_writing(case, dtype, channels_last):
    shape, bins, mode, ratio, aligned = CASES[case]
    if dtype in (torch.float64, torch.float16) and case not in (0, 8):
        pytest.skip("the types differ in how elements are loaded alone")
    module = load("roi")
    name = str(dtype).removeprefix("torch.")
    images, channels, height, width = shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rois = some_boxes(5, images, height, width, wide)
    generator = torch.Generator().manual_seed(case)
    x = torch.randn(shape, generator=generator).to(dtype)
    values = torch.randn(len(rois), channels, *bins, generator=generator).to(dtype)
    given_map, given_bins = (to_array(in_memory(t, channels_last)) for t in (x, values))
    arguments = ([0.9], [], MODES.index(mode), ratio, aligned, channels_last)

    def run():
        out = poisoned(module, given_bins.shape, given_bins.dtype)
        none = np.zeros(0, np.int32)
        module.run(False, name, [given_map], to_array(rois), out, none, none, *arguments)
        total, mean, most = (poisoned(module, given_map.shape, given_map.dtype) for _ in range(3))
        counts = poisoned(module, (images, height, width), np.int32)
        owners = poisoned(module, given_map.shape, np.int32)
        module.run(True, name, [total], to_array(rois), given_bins, none, none, *arguments)
        module.run(True, name, [mean], to_array(rois), given_bins, counts, none, *arguments)
        module.run(True, name, [most], to_array(rois), given_bins, none, owners, *arguments)
        own = poisoned(module, given_bins.shape, given_bins.dtype)
        module.run(False, name, [given_map], to_array(rois), own, none, owners, *arguments)
        return [out, total, mean, counts, most, owners, own]

    out, total, mean, counts, most, owners, own = check_orders(module, run)
    matrices = double_matrices(rois.double(), bins, shape, mode, ratio, aligned)
    pixels = x.double().flatten(2)
    wanted_bins = torch.einsum("kbip,icp->kcb", matrices, pixels).view(values.shape)
    wanted = torch.einsum("kbip,kcb->icp", matrices, values.double().flatten(2)).view(shape)
    covered = (matrices > 0).any(1).sum(0).view(images, 1, height, width)
    assert torch.equal(torch.from_numpy(counts), covered[:, 0].int())
    largest, owner = largest_of(matrices, values.double().flatten(2), shape)
    owners = torch.from_numpy(owners)
    owners = (owners.movedim(-1, 1) if channels_last else owners).long()
    assert (owners == owner).float().mean() > 0.999, "rounding decides a few near-ties at most"
    assert torch.equal(owners < 0, covered.expand(shape) == 0)
    chosen = torch.nn.functional.one_hot(owners + 1, len(rois) + 1)[..., 1:].double()
    mine = torch.einsum("ichwk,ichw->kichw", chosen, x.double())
    wanted_own = torch.einsum("kbip,kicp->kcb", matrices, mine.flatten(3)).view(values.shape)
    # Positions are float32 where elements are not double.
    tolerance = torch.finfo(dtype).eps + (1e-12 if dtype == torch.float64 else 2e-5)
    for array, want in (
        (out, wanted_bins),
        (total, wanted),
        (mean, wanted / covered.clamp(min=1)),
        (most, largest),
        (own, wanted_own),
    ):
        found = to_double(array, dtype)
        found = found.movedim(-1, 1) if channels_last else found
        scale = max(want.abs().max().item(), 1.0)
        error = (found - want).abs().max().item()
        assert error <= tolerance * scale, f"{error} of {scale}"


@pytest.mark.parametrize("channels_last", [False, True])
def test_levels(channels_last):
    """Each box is read from and written to its own level alone, more than 256 boxes."""
    module = load("roi")
    rois = some_boxes(270, 2, 16, 16, torch.float32)[:270]
    x = [torch.randn(2, 3, 16 >> k, 16 >> k) for k in range(2)]
    maps = [to_array(in_memory(t, channels_last)) for t in x]
    values = torch.randn(270, 3, 2, 2)
    options = ([1.0, 0.5], [8.0], 0, 2, True, channels_last)
    out = to_array(in_memory(torch.zeros_like(values), channels_last))
    none = np.zeros(0, np.int32)
    module.run(False, "float32", maps, to_array(rois), out, none, none, *options)
    grads = [np.full_like(level, np.nan) for level in maps]
    given = to_array(in_memory(values, channels_last))
    module.run(True, "float32", grads, to_array(rois), given, none, none, *options)
    size = (rois[:, 3:] - rois[:, 1:3]).prod(1).sqrt()
    coarse = size >= 8
    assert 20 < coarse.sum() < 250
    found = torch.from_numpy(out)
    found = found.movedim(-1, 1) if channels_last else found
    for k, chosen in enumerate((~coarse, coarse)):
        leaf = x[k].double().requires_grad_()
        wanted = reference.roi_align(
            leaf, rois[chosen].double(), (2, 2), spatial_scale=0.5**k, sampling_ratio=2
        )
        wanted.backward(values[chosen].double())
        torch.testing.assert_close(found[chosen].double(), wanted, rtol=0, atol=1e-4)
        grad = torch.from_numpy(grads[k])
        grad = grad.movedim(-1, 1) if channels_last else grad
        torch.testing.assert_close(grad.double(), leaf.grad, rtol=0, atol=1e-3)


def test_sanitized():
    calls = []
    for shape, bins, mode, ratio, aligned in CASES:
        for last in (False, True):
            images, channels, height, width = shape
            rois = to_array(some_boxes(3, images, height, width, torch.float32))
            x = to_array(in_memory(torch.randn(shape), last))
            values = to_array(in_memory(torch.randn(len(rois), channels, *bins), last))
            counts = np.zeros((images, height, width), np.int32)
            options = ([0.9], [], MODES.index(mode), ratio, aligned, last)
            none = np.zeros(0, np.int32)
            for notes in ((counts, none), (none, np.zeros(x.shape, np.int32))):
                for write in (False, True):
                    arguments = (write, "float32", [x], rois, values, *notes, *options)
                    calls.append(Call("run", arguments, label=mode))
    for result in run_sanitized("roi", calls):
        assert not isinstance(result, RuntimeError), result
