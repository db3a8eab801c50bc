"""timm's Swin for export: the same numbers, with sizes that exporters can follow.

timm pads to whole windows by Python's modulo, cuts with slices and folds windows into the batch; each leaves a
condition on symbolic sizes to prove, and a trace of Swin-B was not done after eight minutes. Here windows stay
dimensions of their own, always at least two of them, and rows are picked by their numbers.

Letters: B images, Y X cells, C channels; R windows along Y, S along X, n cells in a window, A heads, d = C / A.
"""

from __future__ import annotations

import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKED = -100.0  # timm's value for cells of a window that are no neighbours in the picture


def with_free_sizes(child: nn.Module) -> nn.Module | None:
    """What stands for a part of timm's Swin in a graph; None if it is no such part."""
    if isinstance(child, SwinTransformerBlock):
        return FreeSizeBlock(child)
    return FreeSizeMerging(child) if isinstance(child, PatchMerging) else None


class FreeSizeMerging(nn.Module):
    """Four neighbours become one cell. Sides are even: the canvas is a multiple of 32."""

    def __init__(self, merging: PatchMerging) -> None:
        super().__init__()
        self.norm, self.reduction = merging.norm, merging.reduction

    def forward(self, x_BYXC: Tensor) -> Tensor:
        """BYXC at half the height and width."""
        four = x_BYXC.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3)
        y: Tensor = self.reduction(self.norm(four))
        return y


class FreeSizeBlock(nn.Module):
    """Attention within windows, shifted in every second block, and an MLP (Liu et al., arXiv 2103.14030, 3.2)."""

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.attention, self.mlp, self.norm1, self.norm2 = block.attn, block.mlp, block.norm1, block.norm2
        self.window, self.shift = tuple(block.window_size), tuple(block.shift_size)

    def forward(self, x_BYXC: Tensor) -> Tensor:
        """The shape stays."""
        x_BYXC = x_BYXC + self._attend(self.norm1(x_BYXC))
        y: Tensor = x_BYXC + self.mlp(self.norm2(x_BYXC))
        return y

    def _attend(self, x_BYXC: Tensor) -> Tensor:
        _, height, width, _ = x_BYXC.shape
        (tall, wide), (down, right) = self.window, self.shift
        if down or right:
            x_BYXC = torch.roll(x_BYXC, (-down, -right), (1, 2))
        rows, columns = _even_windows(height, tall), _even_windows(width, wide)
        x_BYXC = F.pad(x_BYXC, (0, 0, 0, columns * wide - width, 0, rows * tall - height))
        x_BRSnC = x_BYXC.unflatten(2, (columns, wide)).unflatten(1, (rows, tall)).transpose(2, 3).flatten(3, 4)
        apart_RSnn = self._apart(height, width, x_BRSnC.shape[1:3], x_BYXC.device) if down or right else None
        x_BRSnC = _attended(self.attention, x_BRSnC, apart_RSnn)
        x_BYXC = x_BRSnC.unflatten(3, (tall, wide)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x_BYXC = x_BYXC.index_select(1, torch.arange(height, device=x_BYXC.device))
        x_BYXC = x_BYXC.index_select(2, torch.arange(width, device=x_BYXC.device))
        return torch.roll(x_BYXC, (down, right), (1, 2)) if down or right else x_BYXC

    def _apart(self, height: int, width: int, windows: torch.Size, device: torch.device) -> Tensor:
        """RSnn bool: two cells of a window that the shift has brought together from opposite borders."""
        y_Rt, x_Sw = (
            (torch.arange(count * window, device=device) >= (size + window - 1) // window * window - shift).unflatten(
                0, (count, window)
            )
            for count, size, window, shift in zip(windows, (height, width), self.window, self.shift, strict=True)
        )
        region_RSn = (2 * y_Rt.int()[:, None, :, None] + x_Sw.int()[None, :, None, :]).flatten(2)
        apart_RSnn: Tensor = region_RSn[..., :, None] != region_RSn[..., None, :]
        return apart_RSnn


def _even_windows(size: int, window: int) -> int:
    """How many windows cover that many cells, rounded up to an even number: one alone would be a case of its own.

    More than timm has are of padding, and give nothing.
    """
    return (size + 2 * window - 1) // (2 * window) * 2


def _attended(attention: WindowAttention, x_BRSnC: Tensor, apart_RSnn: Tensor | None) -> Tensor:
    """BRSnC: multi-head attention within each window, with timm's relative position bias."""
    three = attention.qkv(x_BRSnC).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = (part.transpose(-2, -3) for part in three.unbind(-3))  # BRSAnd each
    logits_BRSAnn = (query * attention.scale) @ key.mT + attention._get_rel_pos_bias()
    if apart_RSnn is not None:
        logits_BRSAnn = logits_BRSAnn + apart_RSnn[:, :, None].to(logits_BRSAnn.dtype) * BLOCKED
    y: Tensor = attention.proj((logits_BRSAnn.softmax(-1) @ value).transpose(-2, -3).flatten(-2))
    return y
