"""From a LossConfig to a Criterion."""

from __future__ import annotations

from vlformer_cli.config import LossConfig
from vlformer_cli.loss.criterion import Criterion
from vlformer_cli.loss.matcher import CostWeights


def build_criterion(config: LossConfig) -> Criterion:
    """The criterion with the config's weights and sampling."""
    return Criterion(
        weights=CostWeights(class_=config.class_weight, bce=config.bce_weight, dice=config.dice_weight),
        pointer_weight=config.pointer_weight,
        anchor_weight=config.anchor_weight,
        choice_weight=config.choice_weight,
        no_object=config.no_object,
        points=config.points,
        oversample=config.oversample,
        importance=config.importance,
    )
