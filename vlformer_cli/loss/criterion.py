"""The loss: one query is matched to the referent after every block; class CE, BCE and dice on sampled points.

Letters: N expressions, Q queries, K points, Y X cells, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlformer_cli.loss.matcher import NO_OBJECT, REFERENT, CostWeights, dice_loss, match
from vlformer_cli.loss.points import random_points, read_points, uncertain_points
from vlformer_cli.types import Batch, Prediction, VLFormerOutput


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars, summed over the blocks (and the dense head, times its weight), before their weights, except `total`."""

    total: Tensor
    class_: Tensor
    bce: Tensor
    dice: Tensor

    def detached(self) -> Losses:
        """The same numbers without the graph that led to them."""
        return Losses(*(getattr(self, name).detach() for name in self.__slots__))


class Criterion(nn.Module):
    """`criterion(output, batch) -> Losses`."""

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

    def forward(self, output: VLFormerOutput, batch: Batch) -> Losses:
        """Means over expressions; expressions that mean nothing add to the class loss alone."""
        truth_NHW = batch.masks.float()
        meant_N = batch.masks.flatten(1).any(1)
        extent_N2 = valid_extent(batch.pixel_valid)[batch.image_index]
        last = Prediction(output.class_logits, output.mask_logits)
        parts = [self._block(p, truth_NHW, meant_N, extent_N2) for p in (*output.earlier, last)]
        class_, bce, dice = (torch.stack(part).sum() for part in zip(*parts, strict=True))
        if output.dense_logits is not None:
            dense_bce, dense_dice = self._mask_losses(output.dense_logits.float(), truth_NHW, meant_N, extent_N2)
            bce, dice = bce + self.dense_weight * dense_bce, dice + self.dense_weight * dense_dice
        total = self.weights.class_ * class_ + self.weights.bce * bce + self.weights.dice * dice
        return Losses(total, class_, bce, dice)

    def _block(
        self, prediction: Prediction, truth_NHW: Tensor, meant_N: Tensor, extent_N2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Class, BCE and dice loss of one block's predictions."""
        class_logits_NQ2, logits_NQYX = prediction.class_logits.float(), prediction.mask_logits.float()
        place_NK2 = random_points(extent_N2, self.points)
        truth_NK = read_points(truth_NHW[:, None], place_NK2)[:, 0]
        with torch.no_grad():
            query_N = match(read_points(logits_NQYX, place_NK2), truth_NK, class_logits_NQ2, self.weights)
        expression_N = torch.arange(len(query_N), device=query_N.device)
        label_NQ = torch.full(class_logits_NQ2.shape[:2], NO_OBJECT, device=query_N.device)
        label_NQ[expression_N, query_N] = torch.where(meant_N, REFERENT, NO_OBJECT)
        class_loss = F.cross_entropy(class_logits_NQ2.flatten(0, 1), label_NQ.flatten(), weight=self.class_weights)
        return class_loss, *self._mask_losses(logits_NQYX[expression_N, query_N], truth_NHW, meant_N, extent_N2)

    def _mask_losses(
        self, logits_NYX: Tensor, truth_NHW: Tensor, meant_N: Tensor, extent_N2: Tensor
    ) -> tuple[Tensor, Tensor]:
        """BCE and dice of the matched masks, at points where they are least certain."""
        place_NK2 = uncertain_points(
            logits_NYX, extent_N2, self.points, oversample=self.oversample, importance=self.importance
        )
        logits_NK = read_points(logits_NYX[:, None], place_NK2)[:, 0]
        truth_NK = read_points(truth_NHW[:, None], place_NK2)[:, 0]
        bce_N = F.binary_cross_entropy_with_logits(logits_NK, truth_NK, reduction="none").mean(1)
        share_N = meant_N / meant_N.sum().clamp(min=1)
        return (bce_N * share_N).sum(), (dice_loss(logits_NK, truth_NK) * share_N).sum()


def valid_extent(pixel_valid_BHW: Tensor) -> Tensor:
    """B2: width and height of the valid part as fractions of the canvas."""
    height, width = pixel_valid_BHW.shape[1:]
    return torch.stack([pixel_valid_BHW.any(1).sum(1) / width, pixel_valid_BHW.any(2).sum(1) / height], 1)
