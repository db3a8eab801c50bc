"""How near each cell is to what the words name beside the referent: "the bottle" of "cup nearest the bottle".

Letters: B images, N expressions, D hidden, Y X cells of a grid, S cells of all levels, K widths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlformer_cli.model.attention import per_expression
from vlformer_cli.model.deform_attn import LevelShapes

WIDTHS = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Standard deviations of the Gaussians, as fractions of the picture's longer side."""
FAINT = 1e-3
"""A part of the picture's cells: anchors that are marked no more than that are as none."""
FLOOR = 1e-3
"""Where a blur has come down to this part of its sum, all is far."""


class Nearness(nn.Module):
    """Adds to each cell's features how much of the marked cells lies around it, at several widths, as logarithms.

    The logarithm of a Gaussian is a squared distance: near a small anchor the features are a linear map of that. Blurs
    are separable: two small products for each width, at any size of the picture. It begins by adding nothing.
    """

    widths: Tensor

    def __init__(self, *, dim: int) -> None:
        super().__init__()
        self.out = nn.Linear(len(WIDTHS), dim)
        self.register_buffer("widths", torch.tensor(WIDTHS), persistent=False)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        anchor_logits_NYX: Tensor,
        valid_BYX: Tensor,
        shapes: LevelShapes,
        strides: Sequence[int],
        image_index_N: Tensor,
    ) -> Tensor:
        """NSD for the cells of levels of these shapes. Logits and `valid_BYX` are on the grid of the first stride."""
        with torch.autocast(anchor_logits_NYX.device.type, enabled=False):
            valid_NYX = per_expression(valid_BYX, image_index_N)
            dtype = torch.promote_types(anchor_logits_NYX.dtype, torch.float32)
            marked_NYX = anchor_logits_NYX.to(dtype).sigmoid() * valid_NYX
            total_N = marked_NYX.sum((1, 2)) + FAINT * valid_NYX.sum((1, 2))
            side_B = strides[0] * torch.maximum(valid_BYX.any(1).sum(1), valid_BYX.any(2).sum(1))
            near_NSK = torch.cat(
                [
                    _blurred(marked_NYX, shape, (stride, strides[0]), side_B, image_index_N, self.widths)
                    for shape, stride in zip(shapes, strides, strict=True)
                ],
                1,
            )
            log_NSK = (near_NSK / total_N[:, None, None] + FLOOR).log()
        out: Tensor = self.out(log_NSK.to(anchor_logits_NYX.dtype))
        return out


def _blurred(
    marked_NYX: Tensor,
    shape: tuple[int, int],
    strides: tuple[int, int],
    side_B: Tensor,
    image_index_N: Tensor,
    widths_K: Tensor,
) -> Tensor:
    """NPK: sums over the marked cells, weighted by Gaussians of their distance to each cell of a grid of that shape."""
    rows_NKyY, columns_NKxX = (
        _gaussians(to, of, strides, side_B, widths_K)[image_index_N].to(marked_NYX.dtype)
        for to, of in zip(shape, marked_NYX.shape[1:], strict=True)
    )
    blurred_NKyx = rows_NKyY @ marked_NYX[:, None] @ columns_NKxX.mT
    return blurred_NKyx.flatten(2).mT


def _gaussians(to: int, of: int, strides: tuple[int, int], side_B: Tensor, widths_K: Tensor) -> Tensor:
    """B K to of: by how far the middles of `to` cells of the one stride lie from those of `of` cells of the other."""
    there, here = (
        (torch.arange(count, dtype=torch.float32, device=side_B.device) + 0.5) * stride
        for count, stride in zip((to, of), strides, strict=True)
    )
    apart_Bto = (there[:, None] - here) / side_B[:, None, None]
    return torch.exp(-0.5 * (apart_Bto[:, None] / widths_K[:, None, None]).square())
