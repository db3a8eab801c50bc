"""Masks at sampled points: enough for the loss at a fraction of the memory (PointRend, arXiv 1912.08193).

Places are (x, y) in 0..1 of the canvas. Letters: N expressions, Q queries, K points, Y X cells, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def random_points(extent_N2: Tensor, count: int) -> Tensor:
    """NK2, uniform over each picture's valid part, whose width and height are `extent_N2` (fractions of the canvas)."""
    return torch.rand(extent_N2.shape[0], count, 2, device=extent_N2.device) * extent_N2[:, None]


def read_points(maps_NCYX: Tensor, place_NK2: Tensor) -> Tensor:
    """NCK: the maps at the points, bilinear between cell centres, the outermost cells repeating outwards."""
    grid = 2 * place_NK2[:, None] - 1
    return F.grid_sample(maps_NCYX, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]


@torch.no_grad()
def uncertain_points(
    logits_NYX: Tensor, extent_N2: Tensor, count: int, *, oversample: float, importance: float
) -> Tensor:
    """NK2: a share `importance` of the points lies where logits are nearest zero; the rest is random.

    The uncertain ones are the best of `oversample * count` random candidates (PointRend, section 3.3).
    """
    candidate_NK2 = random_points(extent_N2, int(count * oversample))
    doubt_NK = -read_points(logits_NYX[:, None], candidate_NK2)[:, 0].abs()
    kept = int(count * importance)
    index_NK = doubt_NK.topk(kept, dim=1).indices
    chosen_NK2 = candidate_NK2.gather(1, index_NK[..., None].expand(-1, -1, 2))
    return torch.cat([chosen_NK2, random_points(extent_N2, count - kept)], 1)
