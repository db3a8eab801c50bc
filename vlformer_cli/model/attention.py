"""Multi-head attention with separate projections, and the small layers that the rooms of the model share.

Letters: N expressions, Q queries, P keys, D hidden, A heads, B images, Y X cells of a feature grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention ("Attention Is All You Need", section 3.2.2) over keys that may be masked per query."""

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_proj = nn.Linear(dim, dim)
        self.key_proj = nn.Linear(dim, dim)
        self.value_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        for proj in (self.query_proj, self.key_proj, self.value_proj):
            nn.init.xavier_uniform_(proj.weight)
            nn.init.zeros_(proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query_NQD: Tensor, key_NPD: Tensor, value_NPD: Tensor, blocked_NQP: Tensor | None) -> Tensor:
        """NQD. `blocked_NQP` (True = may not be looked at) may have a 1 for Q; None: everything is seen."""
        projected_NQD = self.query_proj(query_NQD)
        if self.num_heads * query_NQD.shape[1] < query_NQD.shape[2]:
            return self._attend_with_few(projected_NQD, key_NPD, value_NPD, blocked_NQP)
        return self.attend(projected_NQD, key_NPD, value_NPD, blocked_NQP)

    def attend(self, projected_NQD: Tensor, key_NPD: Tensor, value_NPD: Tensor, blocked_NQP: Tensor | None) -> Tensor:
        """The same from a query that went through `query_proj` already, so that it can be projected once per image.

        For many queries and few keys: fused kernels are slower there, above all backwards, and so is a softmax over a
        short innermost dimension.
        """
        query_NAQd, key_NAPd, value_NAPd = (
            self._by_head(x) for x in (projected_NQD, self.key_proj(key_NPD), self.value_proj(value_NPD))
        )
        logits_NAPQ = (key_NAPd * key_NAPd.shape[-1] ** -0.5) @ query_NAQd.mT
        if blocked_NQP is not None:
            logits_NAPQ = logits_NAPQ.masked_fill(blocked_NQP.mT[:, None], float("-inf"))
        update_NAQd = logits_NAPQ.softmax(-2).to(value_NAPd.dtype).mT @ value_NAPd
        return self.out_proj(update_NAQd.transpose(1, 2).flatten(2))

    def _attend_with_few(
        self, projected_NQD: Tensor, key_NPD: Tensor, value_NPD: Tensor, blocked_NQP: Tensor | None
    ) -> Tensor:
        """The same for few queries and many keys, whose projections are never computed.

        q . (W x + b) = (W^T q) . x + q . b, and the weighted sum of projected values is the projection of their
        weighted sum: A * Q rows go through the matrices instead of P.
        """
        query_NAQd = self._by_head(projected_NQD) * (projected_NQD.shape[-1] // self.num_heads) ** -0.5
        key_AdD, value_AdD = (
            proj.weight.unflatten(0, (self.num_heads, -1)) for proj in (self.key_proj, self.value_proj)
        )
        key_bias_Ad1, value_bias_A1d = (
            self.key_proj.bias.unflatten(0, (self.num_heads, -1))[..., None],
            self.value_proj.bias.unflatten(0, (self.num_heads, -1))[:, None],
        )
        asked_NAQD = query_NAQd @ key_AdD
        logits_NAQP = (asked_NAQD.flatten(1, 2) @ key_NPD.mT).unflatten(1, (self.num_heads, -1))
        logits_NAQP = logits_NAQP + query_NAQd @ key_bias_Ad1
        if blocked_NQP is not None:
            logits_NAQP = logits_NAQP.masked_fill(blocked_NQP[:, None], float("-inf"))
        weight_NAQP = logits_NAQP.softmax(-1).to(value_NPD.dtype)
        read_NAQD = (weight_NAQP.flatten(1, 2) @ value_NPD).unflatten(1, (self.num_heads, -1))
        update_NAQd = read_NAQD @ value_AdD.mT + value_bias_A1d
        return self.out_proj(update_NAQd.transpose(1, 2).flatten(2))

    def _by_head(self, x_NPD: Tensor) -> Tensor:
        """NAPd."""
        return x_NPD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between, their residual, and the norm after it."""

    def __init__(self, *, dim: int, hidden_dim: int, residual: bool = True) -> None:
        """`residual`: the input is added before the norm; the original's code does not add it."""
        super().__init__()
        self.residual = residual
        self.expand, self.contract, self.norm = (
            nn.Linear(dim, hidden_dim),
            nn.Linear(hidden_dim, dim),
            nn.LayerNorm(dim),
        )
        self.hidden: nn.Module | None = None
        """What computes `expand` and the ReLU at once; None: one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        """The shape stays."""
        if not self.residual:
            return self.norm(self.contract(F.relu(self.expand(x))))
        if self.hidden is not None:
            return self.norm(x + self.contract(self.hidden(x)))
        # in place what autograd sees as a view would be copied in the backward pass
        return self.norm(x + self.contract(F.relu(self.expand(x), inplace=not torch.is_grad_enabled())))


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalisation whose mean and variance come from the valid cells alone, so that padding changes nothing.

    With no padding it equals `nn.GroupNorm`; padded cells come out as zero.
    """

    def forward(self, x_BCYX: Tensor, cell_valid_BYX: Tensor) -> Tensor:  # type: ignore[override]
        """BCYX, float32 (float64 where `x_BCYX` is)."""
        dtype = torch.promote_types(x_BCYX.dtype, torch.float32)
        if is_whole(cell_valid_BYX):
            # in float32, as a CPU's backward of bfloat16 is up to five times as slow where channels are last
            needs_grad = torch.is_grad_enabled() and x_BCYX.requires_grad
            return super().forward(x_BCYX.to(dtype)).to(x_BCYX.dtype) if needs_grad else super().forward(x_BCYX)
        x_BCP, valid_BP1 = x_BCYX.flatten(2).to(dtype), cell_valid_BYX.flatten(1)[..., None].to(dtype)
        count_B1 = valid_BP1.sum(1) * (self.num_channels // self.num_groups)
        with torch.autocast(x_BCP.device.type, enabled=False):  # sums of many: not in bfloat16
            mean_BG = self._sums(x_BCP @ valid_BP1) / count_B1
            variance_BG = self._sums(x_BCP.square() @ valid_BP1) / count_B1 - mean_BG.square()
        factor_BG1 = torch.rsqrt(variance_BG.clamp(min=0) + self.eps)[..., None]
        scale_BC1 = (factor_BG1 * self.weight.unflatten(0, (self.num_groups, -1))).flatten(1)[..., None]
        shift_BC1 = (
            self.bias[:, None]
            - mean_BG.repeat_interleave(scale_BC1.shape[1] // self.num_groups, 1)[..., None] * scale_BC1
        )
        return (torch.addcmul(shift_BC1, x_BCP, scale_BC1) * valid_BP1.mT).unflatten(2, x_BCYX.shape[2:])

    def _sums(self, each_BC1: Tensor) -> Tensor:
        return each_BC1.flatten(1).unflatten(1, (self.num_groups, -1)).sum(-1)


def is_whole(valid: Tensor) -> bool:
    """Nothing is padding, so that plain and faster operators do. Asked on a CPU alone: elsewhere it costs a wait."""
    return valid.device.type == "cpu" and not torch.compiler.is_compiling() and bool(valid.all())


def per_expression(x_B: Tensor, image_index_N: Tensor) -> Tensor:
    """What belongs to each expression's image; where all ask about one, it is not copied."""
    if not torch.compiler.is_compiling() and x_B.shape[0] == 1:  # in this order: an exported graph takes any number
        return x_B.expand(len(image_index_N), *x_B.shape[1:])
    if x_B.device.type != "cpu" or torch.compiler.is_compiling():
        return x_B[image_index_N]
    # the same, with a backward that takes a tenth of the time there; maps stay channels last
    if x_B.dim() == 4:
        return x_B.permute(0, 2, 3, 1).index_select(0, image_index_N).permute(0, 3, 1, 2)
    return x_B.index_select(0, image_index_N)


def upsample_valid(x_BCYX: Tensor, cell_valid_BYX: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear upsampling to `size` in which padding has no weight: a cell at the border repeats outwards instead."""
    if is_whole(cell_valid_BYX):
        return F.interpolate(x_BCYX, size=size, mode="bilinear", align_corners=False)
    valid = cell_valid_BYX[:, None].to(x_BCYX.dtype)
    value, weight = (F.interpolate(y, size=size, mode="bilinear", align_corners=False) for y in (x_BCYX * valid, valid))
    return value / weight.clamp(min=1e-6)


def downsample_valid(pixel_valid_BHW: Tensor, stride: int) -> Tensor:
    """BYX bool: a cell is valid when any of its pixels is. H and W are multiples of `stride`."""
    if is_whole(pixel_valid_BHW):
        batch, height, width = pixel_valid_BHW.shape
        return pixel_valid_BHW.new_ones(batch, height // stride, width // stride)
    cells = pixel_valid_BHW.unflatten(1, (-1, stride)).unflatten(3, (-1, stride))
    return cells.any(4).any(2)
