"""Region proposals: a small head on every level of a pyramid, its losses, and its best boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segkern import ops
from segkern.models._instances.anchors import Anchors
from segkern.models._instances.boxes import (
    at_least,
    box_iou,
    clip_boxes,
    decode_boxes,
    encode_boxes,
)
from segkern.models._instances.images import ImageList, Target
from segkern.models._instances.matching import match_boxes, sample_boxes

# Boxes below and from these overlaps are background and objects.
LOW, HIGH = 0.3, 0.7
POSITIVE_SHARE = 0.5
NMS_THRESHOLD = 0.7
# Proposals with a shorter side, in pixels, are dropped.
LEAST_SIDE = 1e-3
CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class RPNHead(nn.Module):
    """Scores and offsets of the anchors of each pixel, with one set of weights for all levels.

    Args:
        channels: of the levels.
        anchors: a pixel.
        depth: 3x3 convolutions before.

    Forward takes a list of (N, channels, H, W) and returns logits (N, H * W * anchors) and offsets
    (N, H * W * anchors, 4) of each, in the order of :class:`Anchors`; it is `predict` of `hidden`,
    the maps after the 3x3 convolutions, which networks that need them call one by one.
    """

    def __init__(self, channels: int, anchors: int, depth: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True))
                for _ in range(depth)
            )
        )
        self.cls_logits = nn.Conv2d(channels, anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, 4 * anchors, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return self.predict(self.hidden(maps))

    def hidden(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self.conv(level) for level in maps]

    def predict(self, hidden: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, offsets = [], []
        for features in hidden:
            logits.append(self.cls_logits(features).permute(0, 2, 3, 1).flatten(1))
            flat = self.bbox_pred(features).permute(0, 2, 3, 1)
            offsets.append(flat.reshape(flat.shape[0], -1, 4))
        return logits, offsets


class RegionProposals(nn.Module):
    """Region proposal network.

    Args:
        channels: Of the levels.
        anchors: Of the pyramid.
        depth: 3x3 convolutions of the head.
        before: Proposals of a level before suppression, in training and in evaluation.
        after: Proposals of an image after it, likewise.
        samples: Anchors of an image that are trained on, half of them objects at most.
        beta: Where the loss of offsets turns from quadratic to linear; 0 is linear throughout.

    Forward takes the batch, its pyramid, targets in training, and the head's hidden maps where they
    are there already; it returns the proposals of each
    image, (K_i, 4) by falling score, and in training the losses ``loss_objectness`` and
    ``loss_rpn_box_reg``, both divided by the number of anchors drawn. Of the anchors only the best
    are decoded, and only those trained on are encoded. Ren et al., arXiv:1506.01497.
    """

    def __init__(
        self,
        channels: int,
        anchors: Anchors,
        *,
        depth: int = 1,
        before: tuple[int, int] = (2000, 1000),
        after: tuple[int, int] = (2000, 1000),
        samples: int = 256,
        beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        self.anchors = anchors
        self.before, self.after, self.samples, self.beta = before, after, samples, beta
        self.head = RPNHead(channels, anchors.per_pixel, depth)

    def forward(
        self,
        batch: ImageList,
        maps: Sequence[Tensor],
        targets: Sequence[Target] | None = None,
        hidden: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        logits, offsets = self.head(maps) if hidden is None else self.head.predict(hidden)
        anchors = self.anchors(batch.tensors.shape[-2:], maps)
        proposals = self._propose(batch, logits, offsets, anchors)
        if not self.training:
            return proposals, {}
        return proposals, self._losses(logits, offsets, torch.cat(anchors), targets)

    @torch.no_grad()
    def _propose(
        self,
        batch: ImageList,
        logits: Sequence[Tensor],
        offsets: Sequence[Tensor],
        anchors: Sequence[Tensor],
    ) -> list[Tensor]:
        before, after = (
            pair[0] if self.training else pair[1] for pair in (self.before, self.after)
        )
        scores, boxes, levels = [], [], []
        for i, (level, offset, anchor) in enumerate(zip(logits, offsets, anchors, strict=True)):
            best, index = level.float().topk(min(before, level.shape[1]), dim=1)
            chosen = offset.gather(1, index[..., None].expand(-1, -1, 4))
            scores.append(best)
            boxes.append(decode_boxes(chosen, anchor[index], CODE_WEIGHTS))
            levels.append(torch.full_like(index[0], i))
        all_scores, all_boxes = torch.cat(scores, 1).sigmoid(), torch.cat(boxes, 1)
        level = torch.cat(levels)
        kept = []
        for score, box, size in zip(all_scores, all_boxes, batch.sizes, strict=True):
            box = clip_boxes(box, size)
            score = score.masked_fill(~at_least(box, LEAST_SIDE), -math.inf)
            index, count = ops.batched_nms(box, score, level, NMS_THRESHOLD, post=after)
            kept.append((box, index, count))
        # One wait for the device, for all images.
        counts = torch.stack([count for _, _, count in kept]).tolist()
        return [box[index[:n]] for (box, index, _), n in zip(kept, counts, strict=True)]

    def _losses(
        self,
        logits: Sequence[Tensor],
        offsets: Sequence[Tensor],
        anchors: Tensor,
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        scores, codes = torch.cat(logits, 1).float(), torch.cat(offsets, 1).float()
        positives, negatives, wanted = [], [], []
        for i, target in enumerate(targets):
            boxes = target["boxes"].to(anchors.dtype)
            match, kind = match_boxes(box_iou(boxes, anchors), LOW, HIGH, low_quality=True)
            positive, negative = sample_boxes(kind, self.samples, POSITIVE_SHARE)
            wanted.append(encode_boxes(boxes[match[positive]], anchors[positive], CODE_WEIGHTS))
            first = i * len(anchors)
            positives.append(positive + first)
            negatives.append(negative + first)
        positive, negative = torch.cat(positives), torch.cat(negatives)
        drawn = max(1, len(positive) + len(negative))
        scores = scores.flatten()[torch.cat((positive, negative))]
        labels = torch.cat((torch.ones_like(positive), torch.zeros_like(negative))).to(scores)
        objectness = F.binary_cross_entropy_with_logits(scores, labels, reduction="sum") / drawn
        box = F.smooth_l1_loss(
            codes.flatten(0, 1)[positive], torch.cat(wanted), beta=self.beta, reduction="sum"
        )
        return {"loss_objectness": objectness, "loss_rpn_box_reg": box / drawn}
