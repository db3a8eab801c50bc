"""The optimiser's groups, the learning-rate schedule and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from vlformer_cli.config import TrainConfig
from vlformer_cli.model.vlformer import VLFormer

EMA_WARMUP = 10.0  # the average's decay is at most (1 + n) / (10 + n) after n updates, so that it forgets the start


def build_optimizer(model: VLFormer, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over what is trained: the backbone slower, no decay on norms, biases, embeddings and learned queries."""
    groups = []
    backbone = {id(p) for p in model.backbone.parameters()}
    no_decay = {id(p) for p in _without_decay(model)}
    trained = [p for p in model.parameters() if p.requires_grad]
    for in_backbone in (False, True):
        for decays in (False, True):
            chosen = [p for p in trained if (id(p) in backbone, id(p) not in no_decay) == (in_backbone, decays)]
            lr = config.lr * (config.backbone_lr_scale if in_backbone else 1.0)
            groups.append({"params": chosen, "lr": lr, "base_lr": lr, "weight_decay": config.weight_decay * decays})
    return torch.optim.AdamW([g for g in groups if g["params"]], fused=True)


def _without_decay(model: VLFormer) -> list[nn.Parameter]:
    embeddings = [p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    named = [
        p
        for name, p in model.named_parameters()
        if any(part in name for part in ("embedding", "level_embed", "decoder.query", "position_bias", "pos_embed"))
    ]
    return [*embeddings, *vectors, *named]


class Schedule:
    """The factor of the learning rate at a step: linear warm-up, then steps or a cosine; anew after `words_first`."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def scale(self, step: int) -> float:
        """The factor at `step` (from 0)."""
        config = self.config
        if step < config.words_first:
            return config.words_first_lr_scale * self._within(step, config.words_first)
        return self._within(step - config.words_first, config.steps - config.words_first)

    def _within(self, step: int, steps: int) -> float:
        """The factor at a step of a stage of so many."""
        config = self.config
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        if config.schedule == "step":
            return warm * 0.1 ** sum(step >= at * steps for at in config.drop_at)
        progress = min(1.0, step / max(1, steps))
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return warm * (config.final_lr_scale + (1 - config.final_lr_scale) * cosine)


def average_of(model: VLFormer, decay: float) -> AveragedModel | None:
    """The exponential moving average of the weights; None for a decay of 0."""
    if not decay:
        return None

    @torch.no_grad()
    def update(average: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        now = min(decay, (1 + int(count)) / (EMA_WARMUP + int(count)))
        torch._foreach_lerp_(list(average), list(current), 1 - now)

    return AveragedModel(model, multi_avg_fn=update)
