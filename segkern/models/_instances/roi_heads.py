"""The second stage of Mask R-CNN: which proposals are trained on, losses, and detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segkern import ops
from segkern.models._instances.boxes import (
    at_least,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
)
from segkern.models._instances.images import ImageList, Target
from segkern.models._instances.matching import match_boxes, sample_boxes
from segkern.nn.roi import PyramidRoIAlign

# Overlap from which a proposal is for an object.
OBJECT_OVERLAP = 0.5
CODE_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
# Detections with a shorter side, in pixels, are dropped.
LEAST_SIDE = 1e-2


class Detections(NamedTuple):
    """Detections of one image in the batch's pixels, by falling score.

    Attributes:
        boxes: (n, 4).
        labels: int64 (n,), from 1.
        scores: (n,).
        masks: (n, h, w), probabilities on a grid over the box.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    masks: Tensor


class MaskFeatures(NamedTuple):
    """What the mask head makes of the boxes it works on.

    Attributes:
        boxes: (K_i, 4) of each image, in the batch's pixels: in training the proposals for an
            object among those drawn, in evaluation the detections.
        features: (sum of K_i, C, h, w), before the mask predictor.
    """

    boxes: list[Tensor]
    features: Tensor


class Sampled(NamedTuple):
    """Proposals of one image that are trained on.

    Attributes:
        boxes: (n, 4).
        match: int64 (n,), the object of each; of no meaning where the label is 0.
        labels: int64 (n,), 0 for background.
    """

    boxes: Tensor
    match: Tensor
    labels: Tensor


class RoIHeads(nn.Module):
    """Box and mask heads over the proposals of a pyramid.

    Args:
        box_head, box_predictor, mask_head, mask_predictor: The layers, see
            :mod:`segkern.models._instances.heads`.
        box_pool, mask_pool: Read the bins of boxes.
        samples: Proposals of an image that are trained on.
        positive_share: Of objects among them, at most.
        beta: Where the loss of offsets turns from quadratic to linear.
        score_threshold: Detections must score more.
        nms_threshold: Overlap above which the lesser of two detections of a class goes.
        detections: Most of an image.

    Forward takes the batch, its pyramid, the proposals of each image, and targets in training. In
    training it returns no detections and the losses ``loss_classifier``, ``loss_box_reg``,
    ``loss_mask``; in evaluation the :class:`Detections` of each image and no losses. `run` is the
    same with the :class:`MaskFeatures`. He et al., arXiv:1703.06870.
    """

    def __init__(
        self,
        box_head: nn.Module,
        box_predictor: nn.Module,
        mask_head: nn.Module,
        mask_predictor: nn.Module,
        *,
        box_pool: PyramidRoIAlign,
        mask_pool: PyramidRoIAlign,
        samples: int = 512,
        positive_share: float = 0.25,
        beta: float = 1 / 9,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        detections: int = 100,
    ) -> None:
        super().__init__()
        self.box_head, self.box_predictor = box_head, box_predictor
        self.mask_head, self.mask_predictor = mask_head, mask_predictor
        self.box_pool, self.mask_pool = box_pool, mask_pool
        self.samples, self.positive_share, self.beta = samples, positive_share, beta
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.detections = detections

    def forward(
        self,
        batch: ImageList,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor]]:
        return self.run(batch, maps, proposals, targets)[:2]

    def run(
        self,
        batch: ImageList,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
    ) -> tuple[list[Detections], dict[str, Tensor], MaskFeatures]:
        if self.training:
            sampled = [self._sample(*pair) for pair in zip(proposals, targets, strict=True)]
            losses = self._box_losses(maps, sampled, targets)
            loss, seen = self._mask_loss(maps, sampled, targets)
            return [], {**losses, "loss_mask": loss}, seen
        boxes, labels, scores = self._detect(maps, proposals, batch.sizes)
        seen = self._mask_features(maps, boxes)
        masks = self._masks(seen, labels)
        found = [Detections(*each) for each in zip(boxes, labels, scores, masks, strict=True)]
        return found, {}, seen

    @torch.no_grad()
    def _sample(self, proposals: Tensor, target: Target) -> Sampled:
        """Proposals and, at their end, the objects' own boxes; in that order of those drawn."""
        objects = target["boxes"].to(proposals.dtype)
        boxes = torch.cat((proposals, objects))
        match, kind = match_boxes(box_iou(objects, boxes), OBJECT_OVERLAP, OBJECT_OVERLAP)
        drawn = torch.cat(sample_boxes(kind, self.samples, self.positive_share)).sort()[0]
        match, kind = match[drawn], kind[drawn]
        labels = match if len(objects) == 0 else target["labels"][match]
        return Sampled(boxes[drawn], match, labels.masked_fill(kind != 1, 0))

    def _box_losses(
        self, maps: Sequence[Tensor], sampled: Sequence[Sampled], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        bins = self.box_pool(maps, [each.boxes for each in sampled])
        logits, offsets = self.box_predictor(self.box_head(bins))
        logits, offsets = logits.float(), offsets.float()
        labels = torch.cat([each.labels for each in sampled])
        positive = labels.nonzero()[:, 0]
        channel = labels[positive] if offsets.shape[1] > 1 else torch.zeros_like(positive)
        wanted = []
        for each, target in zip(sampled, targets, strict=True):
            own = each.labels.nonzero()[:, 0]
            objects = target["boxes"].to(each.boxes.dtype)[each.match[own]]
            wanted.append(encode_boxes(objects, each.boxes[own], CODE_WEIGHTS))
        box = F.smooth_l1_loss(
            offsets[positive, channel], torch.cat(wanted), beta=self.beta, reduction="sum"
        )
        return {
            "loss_classifier": F.cross_entropy(logits, labels),
            "loss_box_reg": box / len(labels),
        }

    def _mask_loss(
        self, maps: Sequence[Tensor], sampled: Sequence[Sampled], targets: Sequence[Target]
    ) -> tuple[Tensor, MaskFeatures]:
        """Mean cross-entropy of the masks of the objects' classes, over the proposals for one."""
        chosen = [each.labels.nonzero()[:, 0] for each in sampled]
        boxes = [each.boxes[own] for each, own in zip(sampled, chosen, strict=True)]
        labels = torch.cat([each.labels[own] for each, own in zip(sampled, chosen, strict=True)])
        seen = self._mask_features(maps, boxes)
        if len(labels) == 0:
            layers = (*self.mask_head.parameters(), *self.mask_predictor.parameters())
            return sum(parameter.sum() * 0 for parameter in layers), seen
        logits = self.mask_predictor(seen.features, labels).float()
        wanted = [
            crop_masks(target["masks"], box, each.match[own], logits.shape[-1])
            for target, box, each, own in zip(targets, boxes, sampled, chosen, strict=True)
        ]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(wanted)), seen

    def _mask_features(self, maps: Sequence[Tensor], boxes: list[Tensor]) -> MaskFeatures:
        return MaskFeatures(boxes, self.mask_head(self.mask_pool(maps, boxes)))

    def _detect(
        self,
        maps: Sequence[Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Boxes, labels and scores of each image."""
        bins = self.box_pool(maps, proposals)
        logits, offsets = self.box_predictor(self.box_head(bins))
        scores = logits.float().softmax(-1)
        # Pairs of a proposal and a class, of the whole batch; only their boxes are decoded.
        row, label = (scores[:, 1:] > self.score_threshold).nonzero(as_tuple=True)
        label = label + 1
        score = scores[row, label]
        channel = label if offsets.shape[1] > 1 else torch.zeros_like(label)
        box = decode_boxes(offsets[row, channel], torch.cat(list(proposals))[row], CODE_WEIGHTS)
        counts = [len(own) for own in proposals]
        ends = torch.tensor(counts, device=row.device).cumsum(0)
        pairs = torch.searchsorted(row, ends).diff(prepend=ends.new_zeros(1)).tolist()
        kept = []
        for own_box, own_score, own_label, size in zip(
            box.split(pairs), score.split(pairs), label.split(pairs), sizes, strict=True
        ):
            own_box = clip_boxes(own_box, size)
            ranked = own_score.masked_fill(~at_least(own_box, LEAST_SIDE), -math.inf)
            index, count = ops.batched_nms(
                own_box, ranked, own_label, self.nms_threshold, post=self.detections
            )
            kept.append((own_box, own_label, own_score, index, count))
        found = torch.stack([each[-1] for each in kept]).tolist()
        results = [
            (b[index[:n]], la[index[:n]], s[index[:n]])
            for (b, la, s, index, _), n in zip(kept, found, strict=True)
        ]
        boxes, labels, scores = (list(each) for each in zip(*results, strict=True))
        return boxes, labels, scores

    def _masks(self, seen: MaskFeatures, labels: Sequence[Tensor]) -> list[Tensor]:
        logits = self.mask_predictor(seen.features, torch.cat(list(labels)))
        return list(logits.float().sigmoid().split([len(own) for own in seen.boxes]))


def crop_masks(masks: Tensor, boxes: Tensor, match: Tensor, size: int) -> Tensor:
    """The masks of objects within boxes, on a grid of ``size`` a side.

    Args:
        masks: (G, H, W) uint8 or bool.
        boxes: (n, 4) in pixels of the masks.
        match: int64 (n,), the mask of each box.

    Returns:
        (n, size, size) float32, the part of each cell that is covered: RoIAlign's mean of one
        sample a pixel, not aligned, as torchvision.
    """
    # Only masks with a box are made float.
    used, place = torch.unique(match, return_inverse=True)
    rois = torch.cat((place[:, None].to(boxes.dtype), boxes), 1)
    return ops.roi_align(masks[used][:, None].float(), rois, size, aligned=False)[:, 0]


def paste(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Masks over boxes as (n, 1, H, W) images of values from 0 to 1, as torchvision makes them.

    A mask (n, m, m) gets a rim of zeros, its box grows with it about its centre, the corners are
    cut to whole pixels, the last included, and the mask is interpolated at the pixels' centres.
    """
    padded = F.pad(masks, (1, 1, 1, 1))
    grown = padded.shape[-1] / masks.shape[-1]
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * grown
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    first, last = (centre - half).trunc(), (centre + half).trunc()
    whole = torch.cat((first, torch.maximum(last, first) + 1), 1)
    return ops.paste_masks(padded, whole, size, threshold=None)[:, None]
