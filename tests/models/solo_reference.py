"""SOLO by its definition, slowly: targets, resizing of masks, losses and detection.

Cells, pixels and instances are walked one by one, in exact fractions or float64; only convolutions
and interpolations are torch's.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import torch
from torch.nn import functional as F


def responsible_cells(box, mask, grid, padded):
    """Rows and columns of the cells of one instance, row by row."""
    pixels = np.argwhere(mask)
    width, height = (Fraction(float(box[i + 2])) - Fraction(float(box[i])) for i in (0, 1))
    spans = []
    for axis, side in ((0, height), (1, width)):
        centre = Fraction(int(pixels[:, axis].sum()), len(pixels))
        half = side / 10

        def cell(place, axis=axis):
            return math.floor(place * grid / padded[axis])

        own = cell(centre)
        first = max(0, cell(centre - half), own - 1)
        last = min(grid - 1, cell(centre + half), own + 1)
        spans.append(range(first, last + 1))
    return [(row, column) for row in spans[0] for column in spans[1]]


def assign(target, levels, padded):
    """Labels by level, row and column; and per level the list of (row, column, instance)."""
    labels = [np.zeros((level.grid, level.grid), dtype=np.int64) for level in levels]
    pairs = [[] for _ in levels]
    boxes, masks = target["boxes"].double().numpy(), target["masks"].numpy()
    for n, level in enumerate(levels):
        for instance, (box, mask) in enumerate(zip(boxes, masks)):
            size = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
            if not mask.any() or not level.smallest <= size <= level.largest:
                continue
            for row, column in responsible_cells(box, mask, level.grid, padded):
                labels[n][row, column] = int(target["labels"][instance])
                pairs[n].append((row, column, instance))
    return labels, pairs


def last_of_each_cell(pairs):
    """Pairs by (row, column), of each cell the last."""
    return sorted((*cell, instance) for cell, instance in {p[:2]: p[2] for p in pairs}.items())


def taps(side, stride):
    """First source pixel, second, and the second's share of 2048, of each pixel of the result."""
    length = max(1, math.floor(Fraction(side, stride) + Fraction(1, 2)))
    for i in range(length):
        place = Fraction(2 * i + 1, 2) * Fraction(side, length) - Fraction(1, 2)
        first = math.floor(place)
        part = round(2048 * (place - first))
        if first < 0 or first >= side - 1:
            part = 0
        clamp = lambda k: min(max(k, 0), side - 1)  # noqa: E731
        yield clamp(first), clamp(first + 1), part


def shrink(mask, stride, size):
    """One mask, pixel by pixel."""
    canvas = np.zeros(size, dtype=np.uint8)
    for i, (top, bottom, down) in enumerate(taps(mask.shape[0], stride)):
        for j, (left, right, along) in enumerate(taps(mask.shape[1], stride)):
            rows = [
                (2048 - along) * int(mask[y, left]) + along * int(mask[y, right])
                for y in (top, bottom)
            ]
            total = (((2048 - down) * (rows[0] >> 4)) >> 16) + ((down * (rows[1] >> 4)) >> 16)
            canvas[i, j] = (total + 2) >> 2
    return canvas


def run(model, images, targets=None):
    """The batch's sizes, targets in its pixels, P2 to P6's head output; no gradient."""
    with torch.no_grad():
        batch, resized = model.transform(images, targets)
        pyramid = model.backbone(batch.tensors)
        finest = F.avg_pool2d(pyramid[0], 2)
        coarsest = F.interpolate(pyramid[4], size=pyramid[3].shape[-2:], mode="bilinear")
        maps = [finest, *pyramid[1:4], coarsest]
        return batch, resized, model.run_head(pyramid, [maps[n] for n in model.used_levels])


def all_masks(model, output, image):
    """Of each level the probabilities of all its cells' masks, (S, S, h, w) at its own size."""
    masks = []
    for n, level in enumerate(model.levels):
        if hasattr(output, "kernels"):
            kernels = output.kernels[n][image].double()
            if model.kernel_size == 3:
                weight = kernels.flatten(1).T.reshape(level.cells, -1, 3, 3)
                drawn = F.conv2d(output.features[image, None].double(), weight, padding=1)[0]
            else:
                features = output.features[image].double()
                drawn = torch.einsum("eij,ehw->ijhw", kernels, features).flatten(0, 1)
        elif hasattr(output, "x"):
            x, y = (maps[n][image].double().sigmoid() for maps in (output.x, output.y))
            masks.append((x, y))
            continue
        else:
            conv = model.head.masks[n].double()
            large = F.interpolate(
                output.features[n][image, None].double(), scale_factor=2, mode="bilinear"
            )
            drawn = conv(large)[0].detach()
            conv.float()
        masks.append(drawn.sigmoid().unflatten(0, (level.grid, level.grid)))
    return masks


def mask_of(of_level, row, column, size=None):
    """One cell's probabilities, of decoupled maps the product."""
    if isinstance(of_level, tuple):
        x, y = of_level[0][column], of_level[1][row]
        return enlarged(x, size) * enlarged(y, size)
    return enlarged(of_level[row, column], size)


def enlarged(mask, size):
    if size is None:
        return mask
    return F.interpolate(mask[None, None], size=tuple(size), mode="bilinear")[0, 0]


def losses(model, images, targets):
    """Both losses of a batch."""
    batch, resized, output = run(model, images, targets)
    padded = tuple(batch.tensors.shape[-2:])
    category, positive, terms = 0.0, 0, []
    for image, target in enumerate(resized):
        labels, pairs = assign(target, model.levels, padded)
        masks = all_masks(model, output, image)
        for n, level in enumerate(model.levels):
            scores = output.category[n][image].double().sigmoid()
            wanted = F.one_hot(torch.from_numpy(labels[n]), model.num_classes)[..., 1:]
            p = scores.permute(1, 2, 0)
            loss = torch.where(
                wanted == 1, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log()
            )
            category += loss.sum().item()
            positive += int((labels[n] > 0).sum())
            is_v2 = hasattr(output, "kernels")
            stride = 4 if is_v2 else level.stride // 2
            size = (padded[0] // stride, padded[1] // stride)
            for row, column, instance in pairs[n] if is_v2 else last_of_each_cell(pairs[n]):
                p = mask_of(masks[n], row, column)
                q = torch.from_numpy(shrink(target["masks"][instance].numpy(), stride, size))
                assert p.shape == q.shape
                below = (p**2).sum() + 0.001 + (q.double() ** 2).sum() + 0.001
                terms.append(1 - 2 * (p * q).sum().item() / below.item())
    return category / (positive + 1), 3 * sum(terms) / max(len(terms), 1), len(terms)


def detect(model, images):
    """Instances of each image as a list of (label, score, mask)."""
    batch, _, output = run(model, images)
    padded = tuple(batch.tensors.shape[-2:])
    quarter = (padded[0] // 4, padded[1] // 4)
    results = []
    for image in range(len(images)):
        masks = all_masks(model, output, image)
        found = []
        for n, level in enumerate(model.levels):
            scores = output.category[n][image].double().sigmoid().numpy()
            for row in range(level.grid):
                for column in range(level.grid):
                    for label in range(scores.shape[0]):
                        near = scores[
                            label, max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1
                        ]
                        score = scores[label, row, column]
                        if score < near.max() or score <= 0.1:
                            continue
                        soft = mask_of(masks[n], row, column, quarter)
                        binary = soft > 0.5
                        area = int(binary.sum())
                        if area > level.stride:
                            quality = (soft * binary).sum().item() / area
                            found.append((label + 1, score * quality, soft))
        found.sort(key=lambda each: -each[1])
        kept = sorted(matrix_nms(found[:500]), key=lambda each: -each[1])[:100]
        height, width = batch.sizes[image]
        results.append(
            [
                (label, score, enlarged(enlarged(soft, padded)[:height, :width], size) > 0.5)
                for (label, score, soft) in kept
                for size in [batch.original[image]]
            ]
        )
    return results


def matrix_nms(found):
    """Decayed, those of at least 0.05."""
    count = len(found)
    binary = [soft > 0.5 for _, _, soft in found]
    overlap = np.zeros((count, count))
    for j in range(count):
        for i in range(j):
            if found[i][0] == found[j][0]:
                shared = int((binary[i] & binary[j]).sum())
                overlap[i, j] = shared / (int(binary[i].sum()) + int(binary[j].sum()) - shared)
    kept = []
    for j in range(count):
        decay = 1.0
        for i in range(count):
            covered = overlap[:, i].max()
            decay = min(decay, math.exp(-2 * overlap[i, j] ** 2) / math.exp(-2 * covered**2))
        label, score, soft = found[j]
        if score * decay >= 0.05:
            kept.append((label, score * decay, soft))
    return kept
