"""The loss: one query is matched to the referent after every block; class CE, BCE and dice on sampled points.

Letters: N expressions, Q queries, K points, Y X cells, H W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlformer_cli.loss.matcher import NO_OBJECT, REFERENT, CostWeights, dice_loss, match
from vlformer_cli.loss.points import StepPoints, read_points, uncertain_draws
from vlformer_cli.types import Batch, Pointed, Prediction, VLFormerOutput

SAME = 1e-4  # squared distance of two referents' covers, as a part of their squares, below which they are one
IGNORED = -100
"""The label of a row that no expression is in."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars, before their weights but for the first and last: of all blocks, and the pointer's times its weight."""

    total: Tensor
    class_: Tensor
    bce: Tensor
    dice: Tensor
    choice: Tensor
    """Which of the picture's referents is meant, as the pointer sees it."""
    anchors: Tensor
    """Of the anchors: BCE, dice and choice together, with their weights."""


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
        pointer_weight: float,
        anchor_weight: float,
        choice_weight: float,
        no_object: float,
        points: int,
        oversample: float,
        importance: float,
    ) -> None:
        super().__init__()
        self.pointer_weight, self.anchor_weight, self.choice_weight = pointer_weight, anchor_weight, choice_weight
        self.weights, self.points, self.oversample, self.importance = weights, points, oversample, importance
        self.register_buffer("class_weights", torch.tensor([1.0, no_object]), persistent=False)

    def forward(self, output: VLFormerOutput, batch: Batch, counts: Counts | None = None) -> Losses:
        """Sums over expressions, divided by `counts` (None: this batch's own, so that they are means).

        Expressions that mean nothing add to the class loss alone, and to the anchors' BCE.
        """
        counts = counts or Counts.of(batch)
        truth = Truth.of(batch)
        last = Prediction(output.class_logits, output.mask_logits)
        parts = [self._block(p, truth, counts) for p in (*output.earlier, last)]
        class_, bce, dice = (torch.stack(part).sum() for part in zip(*parts, strict=True))
        if output.pointed is None:
            return self._weighted(class_, bce, dice, torch.zeros_like(bce), torch.zeros_like(bce))
        pointed = self._pointer_losses(output.pointed, truth, counts)
        return self._weighted(class_, bce + pointed[0], dice + pointed[1], *pointed[2:])

    def point_counts(self, blocks: int) -> list[int]:
        """How many points each call of the step's draws, in order, where so many blocks predict."""
        uncertain = uncertain_draws(self.points, oversample=self.oversample, importance=self.importance)
        return [self.points, *uncertain] * blocks

    def of_pointer(self, pointed: Pointed, batch: Batch, counts: Counts | None = None) -> Losses:
        """The losses of the pointer and the anchors alone."""
        bce, dice, choice, anchors = self._pointer_losses(pointed, Truth.of(batch), counts or Counts.of(batch))
        return self._weighted(torch.zeros_like(bce), bce, dice, choice, anchors)

    def _weighted(self, class_: Tensor, bce: Tensor, dice: Tensor, choice: Tensor, anchors: Tensor) -> Losses:
        return Losses(
            self.weights.class_ * class_ + self._joined(bce, dice, choice) + anchors, class_, bce, dice, choice, anchors
        )

    def _joined(self, bce: Tensor, dice: Tensor, choice: Tensor) -> Tensor:
        return self.weights.bce * bce + self.weights.dice * dice + self.choice_weight * choice

    def _pointer_losses(self, pointed: Pointed, truth: Truth, counts: Counts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """BCE, dice and choice of the pointer, and all that of the anchors as one, over all cells: they are few.

        A cell's truth is how much of it the referent covers. Where anchors are known, they and the referents compete.
        """
        logits_NP = pointed.referent.float().flatten(1)
        grid = (pointed.referent.shape[-2], pointed.referent.shape[-1])
        cover_NP = _cover(truth.masks_NHW, grid)
        valid_NP = F.adaptive_max_pool2d(truth.valid_NHW[:, None].float(), grid).flatten(1)
        share_N = self.pointer_weight * truth.meant_N / counts.meant.clamp(min=1)
        bce, dice = ((loss_N * share_N).sum() for loss_N in _cell_losses(logits_NP, cover_NP, valid_NP))
        if pointed.anchors is None or truth.anchors_NHW is None or truth.anchors_known_N is None:
            choice = (choice_loss(logits_NP, cover_NP, truth.image_index_N) * share_N).sum()
            return bce, dice, choice, torch.zeros_like(bce)
        anchors_NP, anchor_cover_NP = pointed.anchors.float().flatten(1), _cover(truth.anchors_NHW, grid)
        choice_N, anchor_choice_N = choice_loss(
            torch.cat([logits_NP, anchors_NP]), torch.cat([cover_NP, anchor_cover_NP]), truth.image_index_N.repeat(2)
        ).chunk(2)
        anchor_bce_N, anchor_dice_N = _cell_losses(anchors_NP, anchor_cover_NP, valid_NP)
        there_N = anchor_cover_NP.any(1)
        joined_N = self._joined(
            anchor_bce_N * truth.anchors_known_N, anchor_dice_N * there_N, anchor_choice_N * there_N
        )
        anchors = self.anchor_weight * joined_N.sum() / counts.meant.clamp(min=1)
        return bce, dice, (choice_N * share_N).sum(), anchors

    def _block(self, prediction: Prediction, truth: Truth, counts: Counts) -> tuple[Tensor, Tensor, Tensor]:
        """Class, BCE and dice loss of one block's predictions."""
        class_logits_NQ2, logits_NQYX = prediction.class_logits.float(), prediction.mask_logits.float()
        place_NK2 = truth.points.random(truth.extent_N2, self.points)
        truth_NK = read_points(truth.masks_NHW[:, None], place_NK2, truth.extent_N2)[:, 0]
        with torch.no_grad():
            logits_NQK = read_points(logits_NQYX, place_NK2, truth.extent_N2)
            query_N = match(logits_NQK, truth_NK, class_logits_NQ2, self.weights)
        class_loss = self._class_loss(class_logits_NQ2, query_N, truth, counts)
        expression_N = torch.arange(len(query_N), device=query_N.device)
        return class_loss, *self._mask_losses(logits_NQYX[expression_N, query_N], truth, counts)

    def _class_loss(self, class_logits_NQ2: Tensor, query_N: Tensor, truth: Truth, counts: Counts) -> Tensor:
        """Cross-entropy with the weights of the two classes, divided by the sum of the weights of all labels."""
        label_NQ = torch.full(class_logits_NQ2.shape[:2], NO_OBJECT, device=query_N.device)
        label_NQ[torch.arange(len(query_N), device=query_N.device), query_N] = torch.where(
            truth.meant_N, REFERENT, NO_OBJECT
        )
        if truth.asked_N is not None:
            label_NQ = label_NQ.masked_fill(~truth.asked_N[:, None], IGNORED)
        total = F.cross_entropy(
            class_logits_NQ2.flatten(0, 1),
            label_NQ.flatten(),
            weight=self.class_weights,
            reduction="sum",
            ignore_index=IGNORED,
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
    valid_NHW: Tensor
    image_index_N: Tensor
    points: StepPoints
    asked_N: Tensor | None
    anchors_NHW: Tensor | None
    anchors_known_N: Tensor | None

    @classmethod
    def of(cls, batch: Batch) -> Truth:
        """That of a batch."""
        return cls(
            masks_NHW=batch.masks.float(),
            meant_N=batch.masks.flatten(1).any(1),
            extent_N2=valid_extent(batch.pixel_valid)[batch.image_index],
            valid_NHW=batch.pixel_valid[batch.image_index],
            image_index_N=batch.image_index,
            points=StepPoints(batch.draw, batch.slots, batch.places),
            asked_N=batch.asked,
            anchors_NHW=None if batch.anchors is None else batch.anchors.float(),
            anchors_known_N=batch.anchors_known,
        )


def _cover(masks_NHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """NP: how much of each cell is the mask's."""
    return F.adaptive_avg_pool2d(masks_NHW[:, None], grid).flatten(1)


def _cell_losses(logits_NP: Tensor, cover_NP: Tensor, valid_NP: Tensor) -> tuple[Tensor, Tensor]:
    """N each: BCE and dice over the cells of the picture."""
    bce_NP = F.binary_cross_entropy_with_logits(logits_NP, cover_NP, reduction="none")
    dice_N = dice_loss(logits_NP.masked_fill(valid_NP == 0, -math.inf), cover_NP)
    return (bce_NP * valid_NP).sum(1) / valid_NP.sum(1), dice_N


def choice_loss(logits_NP: Tensor, cover_NP: Tensor, image_index_N: Tensor) -> Tensor:
    """N: cross-entropy over the referents of the expressions about one picture, each by its mean logit within its mask.

    It is about which words make the difference, where a mask's own loss is mostly about what is background. 0 for an
    expression that means nothing, or whose referent is the only one. `cover_NP`: how much of a cell is the referent's.
    """
    area_N, square_N = cover_NP.sum(1), cover_NP.square().sum(1)
    mean_NN = logits_NP @ (cover_NP / area_N.clamp(min=1e-6)[:, None]).T
    itself_NN = torch.eye(len(area_N), dtype=torch.bool, device=area_N.device)
    means_NN = (area_N[:, None] > 0) & (area_N > 0)
    rival_NN = (image_index_N[:, None] == image_index_N) & means_NN | itself_NN
    distance_NN = square_N[:, None] + square_N - 2 * cover_NP @ cover_NP.T
    same_NN = rival_NN & (distance_NN <= SAME * (square_N[:, None] + square_N)) | itself_NN
    # several expressions with one referent make one rival and not several
    share_NN = mean_NN - same_NN.sum(1).log()
    everyone_N = share_NN.masked_fill(~rival_NN, -math.inf).logsumexp(1)
    meant_N = share_NN.masked_fill(~same_NN, -math.inf).logsumexp(1)
    return everyone_N - meant_N


def valid_extent(pixel_valid_BHW: Tensor) -> Tensor:
    """B2: width and height of the valid part as fractions of the canvas."""
    height, width = pixel_valid_BHW.shape[1:]
    return torch.stack([pixel_valid_BHW.any(1).sum(1) / width, pixel_valid_BHW.any(2).sum(1) / height], 1)
