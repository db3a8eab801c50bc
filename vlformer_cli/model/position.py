"""Sine positions for pictures and words.

Letters: B images, T word tokens, D hidden, Y X cells of a feature grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlformer_cli.model.attention import is_whole

TEMPERATURE = 10_000.0  # of "Attention Is All You Need", section 3.5
EPSILON = 1e-6


def sine_position_2d(cell_valid_BYX: Tensor, dim: int) -> Tensor:
    """BDYX float32: the position of each cell as a fraction of the valid part, half of `dim` for y, half for x.

    The count of valid cells up to here, scaled to 2 pi at the last one, through sines and cosines of `dim / 4`
    wavelengths (DETR, arXiv 2005.12872, section A.4). Padding does not change what a valid cell gets.
    """
    if is_whole(cell_valid_BYX):
        return _whole_grid(cell_valid_BYX.shape[1:], dim).expand(len(cell_valid_BYX), -1, -1, -1)
    valid_BYX = cell_valid_BYX.float()
    y_BYX, x_BYX = valid_BYX.cumsum(1), valid_BYX.cumsum(2)
    y_BYX = y_BYX / (y_BYX[:, -1:, :] + EPSILON) * 2 * math.pi
    x_BYX = x_BYX / (x_BYX[:, :, -1:] + EPSILON) * 2 * math.pi
    return torch.cat([_waves(y_BYX, dim // 2), _waves(x_BYX, dim // 2)], dim=-1).permute(0, 3, 1, 2)


def _whole_grid(shape: torch.Size, dim: int) -> Tensor:
    """1DYX: the same where every cell is valid, so that rows and columns need their waves once."""
    y_YD, x_XD = (_waves(torch.arange(1.0, size + 1) / (size + EPSILON) * 2 * math.pi, dim // 2) for size in shape)
    parts = (y_YD[:, None].expand(-1, shape[1], -1), x_XD[None].expand(shape[0], -1, -1))
    return torch.cat(parts, -1).permute(2, 0, 1)[None]


def sine_position_1d(length: int, dim: int, device: torch.device) -> Tensor:
    """TD float32: positions 0 to `length - 1` through sines and cosines of `dim / 2` wavelengths."""
    return _waves(torch.arange(length, dtype=torch.float32, device=device), dim)


def normalized_word_position(word_pad_NT: Tensor, dim: int) -> Tensor:
    """NTD float32: word i of the n words of an expression (from 1, start and end included) at i / (n + 1e-6) * 2 pi.

    The original VLFormer's positions: those of `sine_position_2d` along one axis. Padded words get values too, which
    nothing attends to. `word_pad_NT`: True = padding.
    """
    count_N = (~word_pad_NT).sum(1, keepdim=True).float()
    index_T = torch.arange(1, word_pad_NT.shape[1] + 1, dtype=torch.float32, device=word_pad_NT.device)
    return _waves(index_T / (count_N + EPSILON) * 2 * math.pi, dim)


def _waves(position: Tensor, dim: int) -> Tensor:
    """Adds a last dimension of size `dim`: sine and cosine in turn, at `dim / 2` wavelengths."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=position.device) / dim
    angle = position[..., None] / TEMPERATURE**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
