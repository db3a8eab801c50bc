"""Multi-scale deformable attention (Zhu et al., arXiv 2010.04159, equation 3) in plain PyTorch.

Each query reads K points on each of L levels, at learned offsets from its own place, and adds them up with learned
weights. The sum over points and over the four cells around each is one weighted sum of table rows, so that one
`embedding_bag` computes it (`sample_by_bag`); `sample_by_grid` says the same with `grid_sample`, for export.

Letters: N expressions, S cells of all levels together, A heads, d head dim, D = A * d, L levels, K points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LevelShapes = tuple[tuple[int, int], ...]
"""Height and width in cells of each level."""


class DeformableAttention(nn.Module):
    """Reads `value` around each query's place. Places are in cells of the level, so the canvas's padding has no say."""

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.shape = (num_heads, num_levels, num_points)
        self.offsets = nn.Linear(dim, math.prod(self.shape) * 2)
        self.weights = nn.Linear(dim, math.prod(self.shape))
        self.value_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.by_grid = False
        """True: `grid_sample` always, which exporters know. False: `embedding_bag` in eval mode, faster forwards."""
        self._initialise()

    def _initialise(self) -> None:
        """Points start on a ring, a direction per head, one cell further out for each point; weights start equal."""
        num_heads, _, num_points = self.shape
        angle_A = torch.arange(num_heads) * (2 * math.pi / num_heads)
        ring_A2 = torch.stack([angle_A.cos(), angle_A.sin()], -1)
        ring_A2 = ring_A2 / ring_A2.abs().amax(-1, keepdim=True)
        offset_ALK2 = ring_A2[:, None, None] * (torch.arange(num_points) + 1.0)[:, None]
        nn.init.zeros_(self.offsets.weight)
        with torch.no_grad():
            self.offsets.bias.copy_(offset_ALK2.expand(*self.shape, 2).flatten())
        for linear in (self.weights, self.value_proj, self.out_proj):
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.out_proj.weight)

    def forward(
        self, query_NSD: Tensor, value_NSD: Tensor, place_SL2: Tensor, shapes: LevelShapes, cell_pad_NS: Tensor
    ) -> Tensor:
        """NSD. `place_SL2`: x, y of each query in cells of each level; `cell_pad_NS` True = padding, read as zero."""
        num_heads, num_levels, num_points = self.shape
        value_NSD = self.value_proj(value_NSD).masked_fill(cell_pad_NS[..., None], 0.0)
        value_NSAd = value_NSD.unflatten(-1, (num_heads, -1))
        offset_NSALK2 = self.offsets(query_NSD).unflatten(-1, (*self.shape, 2))
        weight_NSAk = self.weights(query_NSD).unflatten(-1, (num_heads, -1)).softmax(-1)
        weight_NSALK = weight_NSAk.unflatten(-1, (num_levels, num_points))
        point_NSALK2 = place_SL2[:, None, :, None] + offset_NSALK2
        sample = sample_by_grid if self.by_grid or self.training else sample_by_bag
        return self.out_proj(sample(value_NSAd, point_NSALK2, weight_NSALK, shapes))


def cell_places(shapes: LevelShapes, strides: tuple[int, ...], device: torch.device) -> Tensor:
    """SL2 float32: the centre of each cell of each level, as x, y in cells of every level (0 = centre of the first)."""
    centres = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
        centres.append(torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1).flatten(0, 1))
    per_stride_L = torch.tensor(strides, device=device, dtype=torch.float32)
    return torch.cat(centres)[:, None] / per_stride_L[:, None] - 0.5


def sample_by_bag(value_NSAd: Tensor, point_NSALK2: Tensor, weight_NSALK: Tensor, shapes: LevelShapes) -> Tensor:
    """NSD: for each query and head the weighted sum of `value` at its points, bilinear, zero outside the level."""
    num, cells, num_heads, head_dim = value_NSAd.shape
    width_L, height_L, start_L = _level_table(shapes, point_NSALK2.device)
    floor = point_NSALK2.detach().floor()
    fraction = (point_NSALK2 - floor).to(weight_NSALK.dtype)
    x0, y0 = floor.long().unbind(-1)
    fx, fy = fraction.unbind(-1)
    rows, shares = [], []
    for dx, share_x in ((0, 1 - fx), (1, fx)):
        for dy, share_y in ((0, 1 - fy), (1, fy)):
            x, y = x0 + dx, y0 + dy
            inside = (x >= 0) & (x < width_L) & (y >= 0) & (y < height_L)
            rows.append((start_L + y * width_L + x) * inside)
            shares.append(weight_NSALK * share_x * share_y * inside)
    row = torch.stack(rows, -1)  # NSALK4, the row of each corner among the cells of its own expression
    head_A = torch.arange(num_heads, device=row.device)[:, None, None, None]
    first_N = torch.arange(num, device=row.device)[:, None, None, None, None, None] * cells
    bag = ((first_N + row) * num_heads + head_A).flatten(0, 2).flatten(1)
    share = torch.stack(shares, -1).flatten(0, 2).flatten(1)
    table = value_NSAd.reshape(-1, head_dim)
    total = F.embedding_bag(bag, table, mode="sum", per_sample_weights=share.to(table.dtype))
    return total.view(num, -1, num_heads * head_dim)


def sample_by_grid(value_NSAd: Tensor, point_NSALK2: Tensor, weight_NSALK: Tensor, shapes: LevelShapes) -> Tensor:
    """The same as `sample_by_bag`, level by level with `grid_sample`."""
    num, _, num_heads, head_dim = value_NSAd.shape
    levels = value_NSAd.split([h * w for h, w in shapes], dim=1)
    point_NALSK2 = point_NSALK2.permute(0, 2, 3, 1, 4, 5)
    weight_NALSK = weight_NSALK.permute(0, 2, 3, 1, 4)
    total = torch.zeros((), dtype=value_NSAd.dtype, device=value_NSAd.device)
    for level, (height, width) in enumerate(shapes):
        image = levels[level].permute(0, 2, 3, 1).reshape(num * num_heads, head_dim, height, width)
        size = torch.tensor([width, height], device=image.device, dtype=point_NSALK2.dtype)
        grid = ((2 * point_NALSK2[:, :, level] + 1) / size - 1).flatten(0, 1).to(image.dtype)
        read = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (read * weight_NALSK[:, :, level].flatten(0, 1)[:, None]).sum(-1)
    return total.view(num, num_heads * head_dim, -1).transpose(1, 2)


def _level_table(shapes: LevelShapes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Width, height and first cell of each level, each shaped L1 so that they meet tensors that end in L, K."""
    starts = [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
    rows = ([w for _, w in shapes], [h for h, _ in shapes], starts)
    width, height, start = (torch.tensor(row, device=device)[:, None] for row in rows)
    return width, height, start
