"""Masks at sampled points: enough for the loss at a fraction of the memory (PointRend, arXiv 1912.08193).

Places are (x, y) in 0..1 of the canvas. Letters: N expressions, Q queries, K points, Y X cells, H W pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

PLASTIC = 1.324717957244746
"""The real root of x**3 = x + 1: multiples of (1/x, 1/x**2) fill the unit square evenly (M. Roberts, 2018, "R2")."""
ROUNDING = 1e-3  # cells; an extent is a quotient of float32


class StepPoints:
    """The random places of one step: those of an expression do not depend on which other expressions are beside it.

    One draw serves all expressions; each sees it moved, around the borders, by an amount of its own (Cranley and
    Patterson, 1976). So every expression's places are uniform, and one process or many look at the same ones. They are
    drawn on the CPU, and are thus the same on every device.
    """

    def __init__(self, seed: int, slots_N: Tensor) -> None:
        """`slots_N`: the number of each expression within the whole step."""
        self.generator = torch.Generator().manual_seed(seed)
        step_2 = torch.tensor([1 / PLASTIC, 1 / PLASTIC**2], dtype=torch.float64)
        self.shift_N2 = (slots_N[:, None] * step_2.to(slots_N.device)).frac().float()

    def random(self, extent_N2: Tensor, count: int) -> Tensor:
        """NK2, uniform over each picture's valid part, whose width and height are `extent_N2` (parts of the canvas)."""
        shared_K2 = torch.rand(count, 2, generator=self.generator).to(extent_N2.device, non_blocking=True)
        return (shared_K2 + self.shift_N2[:, None]).frac() * extent_N2[:, None]

    @torch.no_grad()
    def uncertain(
        self, logits_NYX: Tensor, extent_N2: Tensor, count: int, *, oversample: float, importance: float
    ) -> Tensor:
        """NK2: a share `importance` of the points lies where logits are nearest zero; the rest is random.

        The uncertain ones are the best of `oversample * count` random candidates (PointRend, section 3.3).
        """
        candidate_NK2 = self.random(extent_N2, int(count * oversample))
        doubt_NK = -read_points(logits_NYX[:, None], candidate_NK2, extent_N2)[:, 0].abs()
        kept = int(count * importance)
        index_NK = doubt_NK.topk(kept, dim=1).indices
        chosen_NK2 = candidate_NK2.gather(1, index_NK[..., None].expand(-1, -1, 2))
        return torch.cat([chosen_NK2, self.random(extent_N2, count - kept)], 1)


def read_points(maps_NCYX: Tensor, place_NK2: Tensor, extent_N2: Tensor) -> Tensor:
    """NCK: the maps at the points, bilinear between cell centres; the outermost valid cells repeat outwards.

    Cells beyond the extent are never read, so that the canvas's size changes nothing.
    """
    size_2 = torch.tensor([maps_NCYX.shape[3], maps_NCYX.shape[2]], device=place_NK2.device)
    last_N2 = ((extent_N2 * size_2 - ROUNDING).ceil() - 0.5) / size_2  # the centre of the last cell with a valid pixel
    grid_N1K2 = 2 * torch.minimum(place_NK2, last_N2[:, None])[:, None] - 1
    return F.grid_sample(maps_NCYX, grid_N1K2, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]
