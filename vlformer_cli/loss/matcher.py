"""Which query means the referent: the cheapest one, found on the device without a host round trip.

With one referent per expression, bipartite matching is an argmin over the queries (`tests/test_loss.py` compares with
scipy's `linear_sum_assignment`). Letters: N expressions, Q queries, K sampled points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

REFERENT, NO_OBJECT = 0, 1


@dataclass(frozen=True, slots=True)
class CostWeights:
    """How much each part of the matching cost, and of the loss, counts."""

    class_: float
    bce: float
    dice: float


def matching_cost(logits_NQK: Tensor, truth_NK: Tensor, class_logits_NQ2: Tensor, weights: CostWeights) -> Tensor:
    """NQ: the cost of giving the referent to each query (Mask2Former, arXiv 2112.01527, as in MaskFormer, eq. 2)."""
    probability_NQ = class_logits_NQ2.softmax(-1)[..., REFERENT]
    truth_NQK = truth_NK[:, None].expand_as(logits_NQK)
    bce_NQ = F.binary_cross_entropy_with_logits(logits_NQK, truth_NQK, reduction="none").mean(-1)
    return weights.bce * bce_NQ + weights.dice * dice_loss(logits_NQK, truth_NQK) - weights.class_ * probability_NQ


@torch.no_grad()
def match(logits_NQK: Tensor, truth_NK: Tensor, class_logits_NQ2: Tensor, weights: CostWeights) -> Tensor:
    """N int64: the matched query of each expression."""
    return matching_cost(logits_NQK, truth_NK, class_logits_NQ2, weights).argmin(1)


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum p + sum t + 1) over the last dimension.

    V-Net (arXiv 1606.04797), with plain sums below and a 1 for empty masks, as in MaskFormer.
    """
    probability = logits.sigmoid()
    overlap = (probability * truth).sum(-1)
    return 1 - (2 * overlap + 1) / (probability.sum(-1) + truth.sum(-1) + 1)
