"""Multi-scale deformable attention (Zhu et al., arXiv 2010.04159, equation 3) in plain PyTorch.

Each query reads K points on each of L levels, at learned offsets from its own place, and adds them up with learned
weights. The sum over points and over the four cells around each is one weighted sum of table rows, so that one
`embedding_bag` computes it (`sample_by_bag`); `sample_by_grid` says the same with `grid_sample`, for export.

Letters: N expressions, S cells of all levels together, A heads, d head dim, D = A * d, L levels, K points on each,
k = L * K points on all, R rows.
"""

from __future__ import annotations

import math
import warnings
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlformer_cli.model.attention import is_whole

LevelShapes = tuple[tuple[int, int], ...]
"""Height and width in cells of each level."""
Points = tuple[Tensor, Tensor]
"""x and y in cells, NSAk each: 0 is the centre of the first of the point's level."""
BORDER = 3  # cells of zeros around a level, along each axis: one before and two after it


class DeformableAttention(nn.Module):
    """Reads `value` around each query's place. Places are in cells of the level, so the canvas's padding has no say."""

    def __init__(self, *, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.shape = (num_heads, num_levels, num_points)
        self.offsets = nn.Linear(dim, math.prod(self.shape) * 2)
        self.weights = nn.Linear(dim, math.prod(self.shape))
        self.value_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.where: nn.Module | None = None
        """What computes `where_matrix`'s linear layer; None: `F.linear`."""
        self.by_grid = False
        """True: `grid_sample`, which exporters know. False: `embedding_bag` on a CPU, several times faster there."""
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
        value_NSD = self.value_proj(value_NSD)
        if not is_whole(~cell_pad_NS):
            value_NSD = value_NSD.masked_fill(cell_pad_NS[..., None], 0.0)
        value_NSAd = value_NSD.unflatten(-1, (self.shape[0], -1))
        x_NSAk, y_NSAk, logits_NSAk = self._read_where(query_NSD)
        place_Sk2 = place_SL2[:, :, None].expand(-1, -1, self.shape[2], -1).flatten(1, 2)
        point = (x_NSAk + place_Sk2[:, None, :, 0], y_NSAk + place_Sk2[:, None, :, 1])
        sample = sample_by_grid if self.by_grid or value_NSD.device.type != "cpu" else sample_by_bag
        return self.out_proj(sample(value_NSAd, point, softmax_of_few(logits_NSAk), shapes))

    def _read_where(self, query_NSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """NSAk each: x and y of the offsets (`offsets` gives them in turn) and the logits of the weights."""
        read = self.where(query_NSD) if self.where is not None else F.linear(query_NSD, *self.where_matrix())
        x_NSAk, y_NSAk, logits_NSAk = (part.unflatten(-1, (self.shape[0], -1)) for part in read.chunk(3, -1))
        return x_NSAk, y_NSAk, logits_NSAk

    def where_matrix(self) -> tuple[Tensor, Tensor]:
        """Matrix and bias of `offsets` and `weights` as one layer: x of all points, y of all, logits of the weights."""
        offset, weight = self.offsets, self.weights
        matrix = torch.cat([offset.weight[0::2], offset.weight[1::2], weight.weight])
        return matrix, torch.cat([offset.bias[0::2], offset.bias[1::2], weight.bias])


def softmax_of_few(logits_NSAk: Tensor) -> Tensor:
    """Softmax over the last dimension. On a CPU torch's own is ten times slower where that is short and innermost."""
    logits_kR = logits_NSAk.flatten(0, 2).t()
    return logits_kR.softmax(0).t().reshape(logits_NSAk.shape)


def cell_places(shapes: LevelShapes, strides: tuple[int, ...], device: torch.device) -> Tensor:
    """SL2 float32: the centre of each cell of each level, as x, y in cells of every level (0 = centre of the first)."""
    centres = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
        centres.append(torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1).flatten(0, 1))
    centre_S2 = torch.cat(centres)
    return torch.stack([centre_S2 / stride - 0.5 for stride in strides], 1)


def sample_by_bag(value_NSAd: Tensor, point: Points, weight_NSAk: Tensor, shapes: LevelShapes) -> Tensor:
    """NSD: for each query and head the weighted sum of `value` at its points, bilinear, zero outside the level.

    Computed in float32 (float64 where `value` is), which is also faster on a CPU than bfloat16.
    """
    dtype = torch.promote_types(value_NSAd.dtype, torch.float32)
    bag_NSA4k, share_NSA4k = corners(point, weight_NSAk.to(dtype), shapes)
    total_Gd = BagSum.apply(value_NSAd, bag_NSA4k.flatten(0, 2), share_NSA4k.flatten(0, 2), shapes)
    return total_Gd.view(len(value_NSAd), -1, value_NSAd[0, 0].numel()).to(value_NSAd.dtype)


def corners(point: Points, weight_NSAk: Tensor, shapes: LevelShapes) -> tuple[Tensor, Tensor]:
    """NSA(4k) twice, the four cells around each point: rows of the flattened `bordered` values (int32), and shares.

    Points beyond the border of zeros are moved onto it. The short dimensions stay innermost and whole: a pass over
    them is cheap, where one that broadcasts along the last two or four numbers costs twenty times as much.
    """
    num, _, num_heads, points = weight_NSAk.shape
    width_k, height_k, start_k, cells = _level_table(shapes, points, weight_NSAk.device)
    before = width_k.new_full((), -1)
    x, y = (p.clamp(before, size_k) for p, size_k in zip(point, (width_k, height_k), strict=True))
    x0, y0 = x.detach().floor(), y.detach().floor()
    fx, fy = (x - x0).to(weight_NSAk.dtype), (y - y0).to(weight_NSAk.dtype)
    step_k = width_k + BORDER
    # a point that is not a number reads the first row, with a share that is none either: the loss will say so
    cell_NSAk = torch.addcmul(x0, y0, step_k.to(y0.dtype)).nan_to_num_(0.0).int()
    first_N111 = torch.arange(num, device=x.device, dtype=torch.int32).view(-1, 1, 1, 1) * cells
    head_A1 = torch.arange(num_heads, device=x.device, dtype=torch.int32)[:, None]
    # row * heads + head; a level's first cell comes after one line of zeros and one zero
    origin = (first_N111 + start_k + step_k + 1) * num_heads + head_A1
    row_NSAk = origin.add(cell_NSAk, alpha=num_heads)
    below_k = step_k * num_heads
    here_k = torch.zeros_like(below_k)
    to_corner_4k = torch.cat([here_k, here_k + num_heads, below_k, below_k + num_heads])
    row_NSA4k = row_NSAk.repeat(1, 1, 1, 4).add_(to_corner_4k)
    low = weight_NSAk * fy
    high = weight_NSAk - low
    high_right, low_right = high * fx, low * fx
    shares = [high - high_right, high_right, low - low_right, low_right]
    return row_NSA4k, torch.cat(shares, -1)


def bordered(value_NSAd: Tensor, shapes: LevelShapes, dtype: torch.dtype) -> Tensor:
    """NSAd with zeros around each level, so that no corner of a point lies outside: one row above, two below."""
    num, _, num_heads, head_dim = value_NSAd.shape
    table_NSAd = value_NSAd.new_zeros(num, sum(_bordered_sizes(shapes)), num_heads, head_dim, dtype=dtype)
    for inner_NYXAd, level_NYXAd in zip(_inner(table_NSAd, shapes), _grids(value_NSAd, shapes), strict=True):
        inner_NYXAd.copy_(level_NYXAd)
    return table_NSAd


def _grids(value_NSAd: Tensor, shapes: LevelShapes) -> list[Tensor]:
    """Views NYXAd of each level."""
    levels = value_NSAd.split([h * w for h, w in shapes], 1)
    return [level.unflatten(1, shape) for level, shape in zip(levels, shapes, strict=True)]


def _inner(table_NSAd: Tensor, shapes: LevelShapes) -> list[Tensor]:
    """Views NYXAd of each level, without its border."""
    grids = _grids(table_NSAd, tuple((h + BORDER, w + BORDER) for h, w in shapes))
    return [grid[:, 1 : 1 + h, 1 : 1 + w] for grid, (h, w) in zip(grids, shapes, strict=True)]


class BagSum(torch.autograd.Function):
    """`embedding_bag` with weights over `bordered` values, whose backward is five more sums over rows.

    torch's own backward of `embedding_bag` and of `grid_sample` is what training spent most of its time in
    (`benchmarks/deform_attn.py`).
    """

    @staticmethod
    def forward(ctx: Any, value_NSAd: Tensor, bag_G4k: Tensor, share_G4k: Tensor, shapes: LevelShapes) -> Tensor:
        """Gd in the shares' type: for each bag G the weighted sum of its rows. `corners` gives bags and shares."""
        table_NSAd = bordered(value_NSAd, shapes, share_G4k.dtype)
        ctx.save_for_backward(table_NSAd, bag_G4k, share_G4k)
        ctx.shapes, ctx.dtype = shapes, value_NSAd.dtype
        return F.embedding_bag(bag_G4k, table_NSAd.flatten(0, 2), mode="sum", per_sample_weights=share_G4k)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, None]:
        """Gradients of the values and of the shares."""
        table_NSAd, bag_G4k, share_G4k = ctx.saved_tensors
        grad_Gd = grads[0].contiguous()
        to_table = _scattered(grad_Gd, bag_G4k, share_G4k, table_NSAd.shape, ctx.shapes)
        to_value = torch.cat([inner.flatten(1, 2) for inner in _inner(to_table, ctx.shapes)], 1)
        return to_value.to(ctx.dtype), None, _row_dots(grad_Gd, bag_G4k, table_NSAd.flatten(0, 2)), None


def _scattered(
    grad_Gd: Tensor, bag_G4k: Tensor, share_G4k: Tensor, shape_NSAd: torch.Size, shapes: LevelShapes
) -> Tensor:
    """NSAd: each row is the sum of the gradients of the bags that it lies in; those bags are the row's own bag.

    Points are sorted by the first of their four corners alone. What they give to each of the other three is summed as
    if it were for the first, and then moved by a cell to the right, a line of the level down, or both.
    """
    first_Gk = bag_G4k.chunk(4, 1)[0]
    row, order = first_Gk.flatten().sort(stable=True)
    every_R = torch.arange(shape_NSAd[:3].numel(), device=row.device, dtype=row.dtype)
    begin_R = torch.searchsorted(row, every_R, out_int32=True)
    bag = order.div(first_Gk.shape[1], rounding_mode="floor").int()
    first, right, below, both = (
        F.embedding_bag(bag, grad_Gd, offsets=begin_R, mode="sum", per_sample_weights=share_Gk.flatten()[order])
        for share_Gk in share_G4k.chunk(4, 1)
    )
    num_heads = shape_NSAd[2]
    first[num_heads:] += right[:-num_heads]
    below[num_heads:] += both[:-num_heads]
    total_NSAd, below_NSAd = first.view(shape_NSAd), below.view(shape_NSAd)
    sizes = _bordered_sizes(shapes)
    for (_, width), total, part in zip(shapes, total_NSAd.split(sizes, 1), below_NSAd.split(sizes, 1), strict=True):
        total[:, width + BORDER :] += part[:, : -(width + BORDER)]
    return total_NSAd


def _row_dots(grad_Gd: Tensor, bag_GK: Tensor, table_Rd: Tensor) -> Tensor:
    """GK: the dot product of each bag's gradient with each of its rows."""
    bags, size = bag_GK.shape
    starts = torch.arange(0, bag_GK.numel() + 1, size, device=bag_GK.device, dtype=torch.int32)
    zeros = table_Rd.new_zeros(bag_GK.numel())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse ")  # in beta; invariants unchecked
        where = torch.sparse_csr_tensor(starts, bag_GK.flatten(), zeros, (bags, len(table_Rd)), check_invariants=False)
        return torch.sparse.sampled_addmm(where, grad_Gd, table_Rd.t()).values().view_as(bag_GK)


def sample_by_grid(value_NSAd: Tensor, point: Points, weight_NSAk: Tensor, shapes: LevelShapes) -> Tensor:
    """The same as `sample_by_bag`, level by level with `grid_sample`."""
    num, _, num_heads, head_dim = value_NSAd.shape
    levels = value_NSAd.split([h * w for h, w in shapes], dim=1)
    by_level = (len(shapes), -1)
    x_NALSK, y_NALSK, weight_NALSK = (
        part_NSAk.unflatten(3, by_level).permute(0, 2, 3, 1, 4) for part_NSAk in (*point, weight_NSAk)
    )
    total = torch.zeros((), dtype=value_NSAd.dtype, device=value_NSAd.device)
    for level, (height, width) in enumerate(shapes):
        image = levels[level].permute(0, 2, 3, 1).reshape(num * num_heads, head_dim, height, width)
        x_NASK, y_NASK = (2 * x_NALSK[:, :, level] + 1) / width - 1, (2 * y_NALSK[:, :, level] + 1) / height - 1
        grid = torch.stack([x_NASK, y_NASK], -1).flatten(0, 1).to(image.dtype)
        read = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (read * weight_NALSK[:, :, level].flatten(0, 1)[:, None]).sum(-1)
    return total.view(num, num_heads * head_dim, -1).transpose(1, 2)


def _bordered_sizes(shapes: LevelShapes) -> list[int]:
    """Cells of each level with its border."""
    return [(height + BORDER) * (width + BORDER) for height, width in shapes]


def _level_table(shapes: LevelShapes, points: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int]:
    """Of the level of each of the k = L * K points: width, height, first row once bordered (int32); rows of all."""
    starts = [0, *accumulate(_bordered_sizes(shapes))]
    rows = ([w for _, w in shapes], [h for h, _ in shapes], starts[:-1])
    width, height, start = (
        torch.tensor(row, device=device, dtype=torch.int32).repeat_interleave(points // len(shapes)) for row in rows
    )
    return width, height, start, starts[-1]
