"""The loss: one query is matched to the referent after every block; class CE, BCE and dice on sampled points.

Letters: N expressions, Q queries, K points, Y X cells, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlformer_cli.loss.matcher import NO_OBJECT, REFERENT, CostWeights, dice_loss, match
from vlformer_cli.loss.points import StepPoints, read_points
from vlformer_cli.types import Batch, Prediction, VLFormerOutput


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars, summed over the blocks (and the dense head, times its weight), before their weights, except `total`."""

    total: Tensor
    class_: Tensor
    bce: Tensor
    dice: Tensor


@dataclass(frozen=True, slots=True)
class Counts:
    """What means are taken over. In training: of the whole step, all processes and forwards together."""

    expressions: Tensor
    """Scalar float."""
    meant: Tensor
    """Scalar float: how many of them mean something."""

    @classmethod
    def of(cls, batch: Batch) -> Counts:
        """Those of one batch."""
        meant = batch.masks.flatten(1).any(1).sum().float()
        return cls(torch.full_like(meant, len(batch.masks)), meant)

    @classmethod
    def on_host(cls, batches: Iterable[Batch]) -> tuple[float, float]:
        """Both numbers, of several batches together."""
        own = [cls.of(batch) for batch in batches]
        return sum(float(c.expressions) for c in own), sum(float(c.meant) for c in own)

    @classmethod
    def from_numbers(cls, expressions: float, meant: float) -> Counts:
        """Those of a step, known on the host."""
        return cls(torch.tensor(expressions, dtype=torch.float32), torch.tensor(meant, dtype=torch.float32))

    def to(self, device: torch.device) -> Counts:
        """The same on another device."""
        return Counts(self.expressions.to(device), self.meant.to(device))


class Criterion(nn.Module):
    """`criterion(output, batch) -> Losses`; the places that it looks at are a function of `batch.draw` and slots."""

    class_weights: Tensor

    def __init__(
        self,
        *,
        weights: CostWeights,
        dense_weight: float,
        no_object: float,
        points: int,
        oversample: float,
        importance: float,
    ) -> None:
        super().__init__()
        self.dense_weight = dense_weight
        self.weights, self.points, self.oversample, self.importance = weights, points, oversample, importance
        self.register_buffer("class_weights", torch.tensor([1.0, no_object]), persistent=False)

    def forward(self, output: VLFormerOutput, batch: Batch, counts: Counts | None = None) -> Losses:
        """Sums over expressions, divided by `counts` (None: this batch's own, so that they are means).

        Expressions that mean nothing add to the class loss alone.
        """
        counts = counts or Counts.of(batch)
        truth = Truth(
            masks_NHW=batch.masks.float(),
            meant_N=batch.masks.flatten(1).any(1),
            extent_N2=valid_extent(batch.pixel_valid)[batch.image_index],
            points=StepPoints(batch.draw, batch.slots),
        )
        last = Prediction(output.class_logits, output.mask_logits)
        parts = [self._block(p, truth, counts) for p in (*output.earlier, last)]
        class_, bce, dice = (torch.stack(part).sum() for part in zip(*parts, strict=True))
        if output.dense_logits is not None:
            dense_bce, dense_dice = self._mask_losses(output.dense_logits.float(), truth, counts)
            bce, dice = bce + self.dense_weight * dense_bce, dice + self.dense_weight * dense_dice
        total = self.weights.class_ * class_ + self.weights.bce * bce + self.weights.dice * dice
        return Losses(total, class_, bce, dice)

    def _block(self, prediction: Prediction, truth: Truth, counts: Counts) -> tuple[Tensor, Tensor, Tensor]:
        """Class, BCE and dice loss of one block's predictions."""
        class_logits_NQ2, logits_NQYX = prediction.class_logits.float(), prediction.mask_logits.float()
        place_NK2 = truth.points.random(truth.extent_N2, self.points)
        truth_NK = read_points(truth.masks_NHW[:, None], place_NK2, truth.extent_N2)[:, 0]
        with torch.no_grad():
            logits_NQK = read_points(logits_NQYX, place_NK2, truth.extent_N2)
            query_N = match(logits_NQK, truth_NK, class_logits_NQ2, self.weights)
        class_loss = self._class_loss(class_logits_NQ2, query_N, truth.meant_N, counts)
        expression_N = torch.arange(len(query_N), device=query_N.device)
        return class_loss, *self._mask_losses(logits_NQYX[expression_N, query_N], truth, counts)

    def _class_loss(self, class_logits_NQ2: Tensor, query_N: Tensor, meant_N: Tensor, counts: Counts) -> Tensor:
        """Cross-entropy with the weights of the two classes, divided by the sum of the weights of all labels."""
        label_NQ = torch.full(class_logits_NQ2.shape[:2], NO_OBJECT, device=query_N.device)
        label_NQ[torch.arange(len(query_N), device=query_N.device), query_N] = torch.where(meant_N, REFERENT, NO_OBJECT)
        total = F.cross_entropy(
            class_logits_NQ2.flatten(0, 1), label_NQ.flatten(), weight=self.class_weights, reduction="sum"
        )
        referent, no_object = self.class_weights
        return total / (counts.meant * (referent - no_object) + counts.expressions * label_NQ.shape[1] * no_object)

    def _mask_losses(self, logits_NYX: Tensor, truth: Truth, counts: Counts) -> tuple[Tensor, Tensor]:
        """BCE and dice of the matched masks, at points where they are least certain."""
        place_NK2 = truth.points.uncertain(
            logits_NYX, truth.extent_N2, self.points, oversample=self.oversample, importance=self.importance
        )
        logits_NK = read_points(logits_NYX[:, None], place_NK2, truth.extent_N2)[:, 0]
        truth_NK = read_points(truth.masks_NHW[:, None], place_NK2, truth.extent_N2)[:, 0]
        bce_N = F.binary_cross_entropy_with_logits(logits_NK, truth_NK, reduction="none").mean(1)
        share_N = truth.meant_N / counts.meant.clamp(min=1)
        return (bce_N * share_N).sum(), (dice_loss(logits_NK, truth_NK) * share_N).sum()


@dataclass(frozen=True, slots=True)
class Truth:
    """What the predictions are compared with, and where."""

    masks_NHW: Tensor
    meant_N: Tensor
    extent_N2: Tensor
    points: StepPoints


def valid_extent(pixel_valid_BHW: Tensor) -> Tensor:
    """B2: width and height of the valid part as fractions of the canvas."""
    height, width = pixel_valid_BHW.shape[1:]
    return torch.stack([pixel_valid_BHW.any(1).sum(1) / width, pixel_valid_BHW.any(2).sum(1) / height], 1)
