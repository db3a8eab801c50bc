"""The pixel decoder: picture features meet the words, then each other, and become mask features.

Letters: B images, N expressions, T word tokens, D hidden, Y X cells of a grid, S cells of all levels, L levels,
M mask features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlformer_cli.model.attention import (
    Attention,
    FeedForward,
    MaskedGroupNorm,
    downsample_valid,
    is_whole,
    per_expression,
    upsample_valid,
)
from vlformer_cli.model.backbone import STRIDES
from vlformer_cli.model.deform_attn import DeformableAttention, LevelShapes, cell_places
from vlformer_cli.model.nearness import Nearness
from vlformer_cli.model.position import sine_position_2d
from vlformer_cli.model.text_encoder import Words
from vlformer_cli.types import Pointed

GROUPS = 32  # of every group norm, as in Mask2Former's pixel decoder


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What is computed once per image, however many expressions ask about it. Levels: strides 8, 16, 32."""

    levels: tuple[Tensor, ...]
    """BSD each, projected."""
    queries: tuple[Tensor, ...]
    """BSD for each attention of the early fusion: what asks the words."""
    lateral: Tensor
    """BMYX at stride 4."""
    positions: tuple[Tensor, ...]
    """BDYX each: the sine position of the level's cells."""
    level_position: Tensor
    """BSD: positions of all levels, with the level's embedding."""
    valid4: Tensor
    """BYX bool at stride 4, True on the picture."""
    valids: tuple[Tensor, ...]
    """BYX bool each."""

    @property
    def shapes(self) -> LevelShapes:
        """Height and width of the levels."""
        return tuple((valid.shape[-2], valid.shape[-1]) for valid in self.valids)


@dataclass(frozen=True, slots=True)
class MaskFeatures:
    """Mask features whose last layer, a 1x1 convolution, is applied to the few query embeddings and not to each cell.

    e . (W x + b) = (W^T e) . x + e . b.
    """

    feat: Tensor
    """NMYX at stride 4, zero on padding: the input of the last layer."""
    weight: Tensor
    """MM."""
    bias: Tensor
    """M."""

    def dot(self, embed_NQM: Tensor) -> Tensor:
        """NQYX: mask logits, the dot product of each query's embedding with each cell's features."""
        asked_NQM = embed_NQM @ self.weight.to(embed_NQM.dtype)
        logits_NQP = asked_NQM @ self.feat.flatten(2) + (embed_NQM @ self.bias.to(embed_NQM.dtype))[..., None]
        return logits_NQP.unflatten(2, self.feat.shape[-2:])

    def resized(self, size: Sequence[int]) -> MaskFeatures:
        """On another grid, without gradients.

        Bilinear resizing commutes with the dot product: it is done once per level instead of once per block's masks.
        """
        feat = F.interpolate(self.feat.detach(), size=list(size), mode="bilinear", align_corners=False)
        return MaskFeatures(feat, self.weight.detach(), self.bias.detach())


@dataclass(frozen=True, slots=True)
class PixelFeatures:
    """What the pixel decoder hands to the VL-transformer blocks."""

    levels: tuple[Tensor, ...]
    """NDYX each, coarse to fine: strides 32, 16, 8."""
    positions: tuple[Tensor, ...]
    """NDYX each: the sine position of each level's cells."""
    pads: tuple[Tensor, ...]
    """NYX bool each, True = padding."""
    masks: MaskFeatures
    pointed: Pointed | None
    """In training only."""

    def to(self, dtype: torch.dtype) -> PixelFeatures:
        """With levels and mask features of this type."""
        masks = MaskFeatures(*(x.to(dtype) for x in (self.masks.feat, self.masks.weight, self.masks.bias)))
        return replace(self, levels=tuple(level.to(dtype) for level in self.levels), masks=masks)


class PixelDecoder(nn.Module):
    """Projection, early fusion with the words, a deformable-attention encoder, and an FPN step to stride 4."""

    def __init__(
        self,
        *,
        inputs: Sequence[nn.Module],
        fusion: EarlyFusion,
        encoder: Sequence[nn.Module],
        to_mask: FinestLevel,
        pointer: Pointer | None,
        anchors: Pointer | None,
        nearness: Nearness | None,
        dim: int,
        add_position: bool,
        mix_levels: bool,
    ) -> None:
        """`inputs`: for strides 8, 16, 32. `add_position`: the sine position is part of the features from the start.

        `mix_levels`: before the words come in, each level becomes the mean of all, so that what the words multiply
        holds the fine levels' colours and the coarse levels' kinds at once. `anchors` finds what the words name beside
        the referent, and `nearness`, given with it, adds to each cell how near that is.
        """
        super().__init__()
        self.inputs, self.fusion, self.encoder = nn.ModuleList(inputs), fusion, nn.ModuleList(encoder)
        self.to_mask, self.pointer, self.anchors, self.nearness = to_mask, pointer, anchors, nearness
        self.dim, self.add_position, self.mix_levels = dim, add_position, mix_levels
        self.level_embed = nn.Parameter(torch.randn(len(self.inputs), dim), requires_grad=len(self.encoder) > 0)

    def look(self, features: Sequence[Tensor], pixel_valid_BHW: Tensor) -> ImageFeatures:
        """The part that needs no words. `features`: BCYX at strides 4, 8, 16, 32."""
        valid4_BYX, *valids = [downsample_valid(pixel_valid_BHW, stride) for stride in STRIDES]
        positions = [sine_position_2d(valid, self.dim).to(features[0].dtype) for valid in valids]
        projected = [layer(x, valid) for layer, x, valid in zip(self.inputs, features[1:], valids, strict=True)]
        if self.add_position:
            projected = [x + position * v[:, None] for x, position, v in zip(projected, positions, valids, strict=True)]
        if self.mix_levels:
            projected = mixed(projected, valids)
        levels = tuple(_flat([x]) for x in projected)
        return ImageFeatures(
            levels=levels,
            queries=self.fusion.queries(levels),
            lateral=self.to_mask.look(features[0], valid4_BYX),
            positions=tuple(positions),
            level_position=_flat([p + e[:, None, None] for p, e in zip(positions, self.level_embed, strict=True)]),
            valid4=valid4_BYX,
            valids=tuple(valids),
        )

    def forward(self, seen: ImageFeatures, words: Words, image_index_N: Tensor) -> PixelFeatures:
        """The part that needs the words, for each expression."""
        fused_NSD = self.fusion(seen.levels, seen.queries, words, image_index_N)
        x_NSD, anchors_NYX = self._placed(fused_NSD, seen, seen.shapes, image_index_N)
        pointed = self._pointed(x_NSD, anchors_NYX, seen.shapes) if self.training else None
        place_SL2 = cell_places(seen.shapes, STRIDES[1:], x_NSD.device)
        pad_NS = per_expression(~torch.cat([valid.flatten(1) for valid in seen.valids], 1), image_index_N)
        level_position_NSD = per_expression(seen.level_position, image_index_N)
        for layer in self.encoder:
            x_NSD = layer(x_NSD, level_position_NSD, place_SL2, seen.shapes, pad_NS)
        levels = _unflat(x_NSD, seen.shapes)
        masks = self.to_mask(seen.lateral, levels[0], seen.valid4, seen.valids[0], image_index_N)
        return PixelFeatures(
            levels=tuple(reversed(levels)),
            positions=tuple(per_expression(p, image_index_N) for p in reversed(seen.positions)),
            pads=tuple(~per_expression(v, image_index_N) for v in reversed(seen.valids)),
            masks=masks,
            pointed=pointed,
        )

    def point(self, seen: ImageFeatures, words: Words, image_index_N: Tensor) -> Pointed:
        """What the pointer says, without running what comes after it."""
        cells = seen.levels[0].shape[1]
        fused_NPD = self.fusion.scaled(0, seen.levels[0], seen.queries[0][:, :cells], words, image_index_N)
        x_NPD, anchors_NYX = self._placed(fused_NPD, seen, seen.shapes[:1], image_index_N)
        pointed = self._pointed(x_NPD, anchors_NYX, seen.shapes)
        assert pointed is not None, "there is no pointer"
        return pointed

    def _placed(
        self, fused_NSD: Tensor, seen: ImageFeatures, shapes: LevelShapes, image_index_N: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Features of the cells of `shapes` with how near each is to the anchors, and the anchors' logits NYX."""
        if self.anchors is None or self.nearness is None:
            return fused_NSD, None
        anchors_NYX = _on_finest(self.anchors, fused_NSD, shapes)
        strides = STRIDES[1 : 1 + len(shapes)]
        return fused_NSD + self.nearness(anchors_NYX, seen.valids[0], shapes, strides, image_index_N), anchors_NYX

    def _pointed(self, x_NSD: Tensor, anchors_NYX: Tensor | None, shapes: LevelShapes) -> Pointed | None:
        return None if self.pointer is None else Pointed(_on_finest(self.pointer, x_NSD, shapes), anchors_NYX)


def _on_finest(head: nn.Module, x_NSD: Tensor, shapes: LevelShapes) -> Tensor:
    """NYX: what a head says of the cells of the first level."""
    height, width = shapes[0]
    logits_NP: Tensor = head(x_NSD[:, : height * width])
    return logits_NP.unflatten(1, (height, width))


class Pointer(nn.Module):
    """Says of each cell whether the words mean it, or name it: a norm, a hidden layer with a residual, a logit."""

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.norm, self.expand, self.contract = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.out = nn.Linear(dim, 1)

    def forward(self, fused_NPD: Tensor) -> Tensor:
        """NP."""
        x_NPD = self.norm(fused_NPD)
        return self.out(x_NPD + self.contract(F.relu(self.expand(x_NPD))))[..., 0]


class ProjectedLevel(nn.Module):
    """1x1 convolution to D channels and a group norm."""

    def __init__(self, *, channels: int, dim: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, dim, kernel_size=1), MaskedGroupNorm(GROUPS, dim)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x_BCYX: Tensor, cell_valid_BYX: Tensor) -> Tensor:
        """BDYX, zero on padding."""
        return self.norm(self.conv(x_BCYX), cell_valid_BYX)


class EarlyFusion(nn.Module):
    """x * attention(query x, key words + position, value words): each cell is scaled by what the words say of it."""

    def __init__(self, *, attentions: Sequence[Attention]) -> None:
        """One attention that all levels share, or one for each."""
        super().__init__()
        self.attentions = nn.ModuleList(attentions)

    def queries(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """BSD for each attention: what asks the words. Needs no words: once per image."""
        parts = self._parts(levels)
        return tuple(_attention(a).query_proj(x) for a, x in zip(self.attentions, parts, strict=True))

    def forward(
        self, levels: Sequence[Tensor], queries: Sequence[Tensor], words: Words, image_index_N: Tensor
    ) -> Tensor:
        """NSD from BSD of each level and the `queries` of them."""
        parts = zip(self._parts(levels), queries, strict=True)
        return torch.cat([self.scaled(n, x, query, words, image_index_N) for n, (x, query) in enumerate(parts)], 1)

    def scaled(self, number: int, x_BSD: Tensor, query_BSD: Tensor, words: Words, image_index_N: Tensor) -> Tensor:
        """NSD: cells times what the attention of this number gives."""
        query_NSD = per_expression(query_BSD, image_index_N)
        scale_NSD = _attention(self.attentions[number]).attend(query_NSD, words.key, words.feat, words.pad[:, None])
        return per_expression(x_BSD, image_index_N) * scale_NSD

    def _parts(self, levels: Sequence[Tensor]) -> Sequence[Tensor]:
        return levels if len(self.attentions) > 1 else [torch.cat(list(levels), 1)]


def _attention(module: nn.Module) -> Attention:
    assert isinstance(module, Attention)
    return module


class EncoderLayer(nn.Module):
    """Deformable self-attention over all levels, then a feed-forward layer, each with residual and norm."""

    def __init__(self, *, attention: DeformableAttention, feed_forward: FeedForward, dim: int) -> None:
        super().__init__()
        self.attention, self.feed_forward, self.norm = attention, feed_forward, nn.LayerNorm(dim)

    def forward(
        self, x_NSD: Tensor, position_NSD: Tensor, place_SL2: Tensor, shapes: LevelShapes, pad_NS: Tensor
    ) -> Tensor:
        """NSD."""
        update_NSD = self.attention(x_NSD + position_NSD, x_NSD, place_SL2, shapes, pad_NS)
        return self.feed_forward(self.norm(x_NSD + update_NSD))


class FinestLevel(nn.Module):
    """The FPN step: stride-4 picture features plus the upsampled stride-8 level, smoothed, to mask features.

    M channels throughout: this runs at the finest grid once per expression and costs M * M per cell.
    """

    def __init__(self, *, channels: int, dim: int, mask_dim: int) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(channels, mask_dim, kernel_size=1, bias=False)
        self.lateral_norm = MaskedGroupNorm(GROUPS, mask_dim)
        self.narrow = nn.Conv2d(dim, mask_dim, kernel_size=1) if mask_dim != dim else nn.Identity()
        self.smooth = nn.Conv2d(mask_dim, mask_dim, kernel_size=3, padding=1, bias=False)
        self.smooth_norm = MaskedGroupNorm(GROUPS, mask_dim)
        self.out = nn.Conv2d(mask_dim, mask_dim, kernel_size=1)

    def look(self, fine_BCYX: Tensor, valid4_BYX: Tensor) -> Tensor:
        """BMYX: the part that needs no words, channels last as the coarse level that is added to it."""
        lateral_BMYX = self.lateral_norm(self.lateral(fine_BCYX), valid4_BYX)
        return lateral_BMYX.contiguous(memory_format=torch.channels_last)

    def forward(
        self, lateral_BMYX: Tensor, coarse_NDYX: Tensor, valid4_BYX: Tensor, valid8_BYX: Tensor, image_index_N: Tensor
    ) -> MaskFeatures:
        """At stride 4."""
        valid4_NYX, valid8_NYX = per_expression(valid4_BYX, image_index_N), per_expression(valid8_BYX, image_index_N)
        merged_NMYX = self._merged(per_expression(lateral_BMYX, image_index_N), coarse_NDYX, valid8_NYX)
        smooth_NMYX = self.smooth_norm(self.smooth(_on_picture(merged_NMYX, valid4_NYX)), valid4_NYX)
        feat_NMYX = F.relu(smooth_NMYX, inplace=True)
        _lay_out_gradient(feat_NMYX)
        assert self.out.bias is not None
        return MaskFeatures(feat_NMYX, self.out.weight.flatten(1), self.out.bias)

    def _merged(self, lateral_NMYX: Tensor, coarse_NDYX: Tensor, valid8_NYX: Tensor) -> Tensor:
        """NMYX. On its own, so that the upsampled level, as large as the result, is gone before the convolution."""
        size = (lateral_NMYX.shape[-2], lateral_NMYX.shape[-1])
        coarse_NMYX = upsample_valid(self.narrow(coarse_NDYX), valid8_NYX, size)
        return lateral_NMYX + coarse_NMYX.to(lateral_NMYX.dtype)


def _lay_out_gradient(x_NCYX: Tensor) -> None:
    """The gradient of a map that is channels last will be so too, or what is before it would read memory across."""
    if x_NCYX.requires_grad and x_NCYX.is_contiguous(memory_format=torch.channels_last):
        x_NCYX.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))


def mixed(levels: Sequence[Tensor], valids: Sequence[Tensor]) -> list[Tensor]:
    """Each level BDYX (strides 8, 16, 32) as the mean of all on its grid; padding has no weight and stays 0."""
    means = []
    for valid in valids:
        size = (valid.shape[-2], valid.shape[-1])
        parts = [_on_grid(x, own, size) for x, own in zip(levels, valids, strict=True)]
        means.append(_on_picture(sum(parts[1:], parts[0]) / len(parts), valid))
    return means


def _on_grid(x_BDYX: Tensor, valid_BYX: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear to a finer grid, the mean of valid cells to a coarser one."""
    if size[0] >= x_BDYX.shape[-2]:
        return upsample_valid(x_BDYX, valid_BYX, size)
    step = x_BDYX.shape[-2] // size[0]
    share_B1YX = F.avg_pool2d(valid_BYX[:, None].to(x_BDYX.dtype), step)
    return F.avg_pool2d(x_BDYX, step) / share_B1YX.clamp(min=1e-6)


def _on_picture(x_NCYX: Tensor, valid_NYX: Tensor) -> Tensor:
    """Zero on padding."""
    return x_NCYX if is_whole(valid_NYX) else x_NCYX * valid_NYX[:, None]


def _flat(levels: Sequence[Tensor]) -> Tensor:
    """BDYX of each level -> BSD, in that order in memory too: products with it are several times as fast."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in levels], 1).contiguous()


def _unflat(x_NSD: Tensor, shapes: LevelShapes) -> list[Tensor]:
    """NSD -> NDYX of each level, channels last, which for one expression too is to be seen from the strides."""
    parts = x_NSD.split([h * w for h, w in shapes], 1)
    return [part.unflatten(1, shape).permute(0, 3, 1, 2) for part, shape in zip(parts, shapes, strict=True)]
