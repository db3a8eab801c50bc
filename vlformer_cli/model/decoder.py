"""The VL-transformer decoder: learned queries through the blocks, and the heads after every one.

Letters: N expressions, Q queries, D hidden, Y X cells of a grid, P = Y * X, M mask features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlformer_cli.model.pixel_decoder import MaskFeatures, PixelFeatures
from vlformer_cli.model.text_encoder import Words
from vlformer_cli.model.vl_block import VLBlock
from vlformer_cli.types import Prediction, VLFormerOutput


class Decoder(nn.Module):
    """Block i looks at level i mod 3, coarse to fine, where the mask after block i - 1 lets it."""

    def __init__(self, *, blocks: Sequence[VLBlock], heads: Heads, num_queries: int, num_levels: int, dim: int) -> None:
        super().__init__()
        self.blocks, self.heads = nn.ModuleList(blocks), heads
        self.query_feat = nn.Parameter(torch.randn(num_queries, dim))
        self.query_position = nn.Parameter(torch.randn(num_queries, dim))
        self.level_embed = nn.Parameter(torch.randn(num_levels, dim))

    def forward(self, pixels: PixelFeatures, words: Words) -> VLFormerOutput:
        """Full-size masks of the earlier blocks are computed in training alone, where the loss asks for them."""
        levels = [level + embed[:, None, None] for level, embed in zip(pixels.levels, self.level_embed, strict=True)]
        values = [_tokens(level) for level in levels]
        keys = [_tokens(level + position) for level, position in zip(levels, pixels.positions, strict=True)]
        coarse_masks = [pixels.masks.resized(level.shape[-2:]) for level in levels]
        query_NQD = self.query_feat.expand(words.feat.shape[0], -1, -1)
        blocked_NQP = pixels.pads[0].flatten(1)[:, None]
        asked: list[tuple[Tensor, Tensor]] = []
        for number, block in enumerate(self.blocks):
            level = number % len(levels)
            query_NQD = block(query_NQD, self.query_position, keys[level], values[level], words, blocked_NQP)
            class_logits_NQ2, mask_embed_NQM = self.heads(query_NQD)
            asked.append((class_logits_NQ2, mask_embed_NQM))
            if number + 1 < len(self.blocks):
                following = (number + 1) % len(levels)
                blocked_NQP = attention_block(mask_embed_NQM, coarse_masks[following], pixels.pads[following])
        *earlier, last = _predictions(asked if self.training else asked[-1:], pixels.masks)
        return VLFormerOutput(last.class_logits, last.mask_logits, tuple(earlier), pixels.pointed)


def _predictions(asked: Sequence[tuple[Tensor, Tensor]], masks: MaskFeatures) -> list[Prediction]:
    """Of several blocks' class logits and mask embeddings.

    All masks come of one product: the gradient of the features, the largest tensor of all, is then made once and not
    once for each block.
    """
    embeds = [embed_NQM for _, embed_NQM in asked]
    mask_logits = masks.dot(torch.cat(embeds, 1)).split([embed.shape[1] for embed in embeds], 1)
    return [Prediction(classes, logits) for (classes, _), logits in zip(asked, mask_logits, strict=True)]


class Heads(nn.Module):
    """Norm, then referent / no-object logits and the mask embedding of each query."""

    def __init__(self, *, dim: int, mask_dim: int) -> None:
        super().__init__()
        self.norm, self.classes = nn.LayerNorm(dim), nn.Linear(dim, 2)
        self.mask_embed = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, mask_dim)
        )

    def forward(self, query_NQD: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits NQ2 and mask embedding NQM."""
        query_NQD = self.norm(query_NQD)
        return self.classes(query_NQD), self.mask_embed(query_NQD)


def attention_block(mask_embed_NQM: Tensor, masks: MaskFeatures, pad_NYX: Tensor) -> Tensor:
    """NQP bool, True where a query may not look: outside its mask (one with an empty mask sees all), and on padding."""
    outside_NQP = masks.dot(mask_embed_NQM.detach()).flatten(2) < 0
    pad_N1P = pad_NYX.flatten(1)[:, None]
    sees_nothing_NQ1 = (outside_NQP | pad_N1P).all(-1, keepdim=True)
    return (outside_NQP & ~sees_nothing_NQ1) | pad_N1P


def _tokens(x_NDYX: Tensor) -> Tensor:
    return x_NDYX.flatten(2).transpose(1, 2)
