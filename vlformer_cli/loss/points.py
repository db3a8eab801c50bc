"""Masks at sampled points: enough for the loss at a fraction of the memory (PointRend, arXiv 1912.08193).

Places are (x, y) in 0..1 of the canvas. Letters: N expressions, Q queries, K points, Y X cells, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable

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

    def __init__(self, seed: int, slots_N: Tensor, drawn_K2: Tensor | None = None) -> None:
        """`slots_N`: the number of each expression within the whole step. `drawn_K2`: what `draw` gave for the seed."""
        self.generator = torch.Generator().manual_seed(seed)
        steps = (1 / PLASTIC, 1 / PLASTIC**2)
        self.shift_N2 = torch.stack([slots_N.double() * step for step in steps], 1).frac().float()
        self.drawn_K2, self._taken = drawn_K2, 0

    @staticmethod
    def draw(seed: int, counts: Iterable[int]) -> Tensor:
        """K2: what all calls of a step draw, one after the other, when it is known how many points they ask for."""
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([torch.empty(0, 2), *(torch.rand(count, 2, generator=generator) for count in counts)])

    def random(self, extent_N2: Tensor, count: int) -> Tensor:
        """NK2, uniform over each picture's valid part, whose width and height are `extent_N2` (parts of the canvas)."""
        if self.drawn_K2 is None:
            shared_K2 = torch.rand(count, 2, generator=self.generator).to(extent_N2.device, non_blocking=True)
        else:
            shared_K2 = self.drawn_K2[self._taken : self._taken + count]
            self._taken += count
        return (shared_K2 + self.shift_N2[:, None]).frac() * extent_N2[:, None]

    @torch.no_grad()
    def uncertain(
        self, logits_NYX: Tensor, extent_N2: Tensor, count: int, *, oversample: float, importance: float
    ) -> Tensor:
        """NK2: a share `importance` of the points lies where logits are nearest zero; the rest is random.

        The uncertain ones are the best of `oversample * count` random candidates (PointRend, section 3.3).
        """
        candidates, others = uncertain_draws(count, oversample=oversample, importance=importance)
        candidate_NK2 = self.random(extent_N2, candidates)
        doubt_NK = -read_points(logits_NYX[:, None], candidate_NK2, extent_N2)[:, 0].abs()
        index_NK = doubt_NK.topk(count - others, dim=1).indices
        chosen_NK2 = candidate_NK2.gather(1, index_NK[..., None].expand(-1, -1, 2))
        return torch.cat([chosen_NK2, self.random(extent_N2, others)], 1)


def uncertain_draws(count: int, *, oversample: float, importance: float) -> tuple[int, int]:
    """How many candidates, and how many random points beside the chosen ones, `StepPoints.uncertain` draws."""
    return int(count * oversample), count - int(count * importance)


def read_points(maps_NCYX: Tensor, place_NK2: Tensor, extent_N2: Tensor) -> Tensor:
    """NCK: the maps at the points, bilinear between cell centres; the outermost valid cells repeat outwards.

    Cells beyond the extent are never read, so that the canvas's size changes nothing.
    """
    sizes = (maps_NCYX.shape[3], maps_NCYX.shape[2])
    # the centre of the last cell with a valid pixel
    last_N2 = torch.stack(
        [
            ((part_N * size - ROUNDING).ceil() - 0.5) / size
            for part_N, size in zip(extent_N2.unbind(1), sizes, strict=True)
        ],
        1,
    )
    grid_N1K2 = 2 * torch.minimum(place_NK2, last_N2[:, None])[:, None] - 1
    return F.grid_sample(maps_NCYX, grid_N1K2, mode="bilinear", padding_mode="border", align_corners=False)[:, :, 0]
