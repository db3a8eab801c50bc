"""A training step's forward and backward as CUDA graphs (`torch.cuda.CUDAGraph`).

A small model's step is some 3,000 kernels that a GPU runs faster than Python can launch them. Recorded once, they are
launched together. A recording reads and writes fixed addresses and holds for one size: what differs from step to step
is copied to where it reads, and expressions and words are filled up to a multiple of a few, so that few are made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlformer_cli.config import TrainConfig
from vlformer_cli.engine.objective import Objective
from vlformer_cli.loss.criterion import Counts
from vlformer_cli.loss.points import StepPoints
from vlformer_cli.types import Batch, VLFormerError

ROWS, WORDS = 32, 8
"""Recordings are made for multiples of so many expressions and word tokens."""
MOST = 64
"""So many recordings are kept, the newest: each holds gradients of its own."""
WARM_UP = 2
"""Runs before a recording, in which libraries choose algorithms and allocate what they keep."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What a replay reads and writes."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    counts: Counts
    losses: Tensor
    gradients: tuple[Tensor | None, ...]
    """One for each parameter; None where it has none."""


class GraphedObjective:
    """Computes the losses of a batch and leaves their gradients in the parameters, by replaying recordings."""

    def __init__(self, objective: Objective) -> None:
        """Raises VLFormerError where the model cannot be recorded."""
        self.objective = objective
        self.parameters: list[nn.Parameter] = list(objective.parameters())
        try:
            objective.model.backbone.run_at_once()
        except VLFormerError as error:
            raise VLFormerError(f"{error}: set train.cuda_graphs=false") from error
        objective.model.text_encoder.merge_repeats = False  # how many differ is not known on the host
        self._recordings: dict[object, Recording] = {}
        self._pool: Any = None

    def __call__(self, batch: Batch, counts: Counts) -> Tensor:
        """The losses, on the device, until the next call. `batch` may be on the host."""
        places = StepPoints.draw(batch.draw, self.objective.point_counts())
        batch = replace(batch, places=places)
        rows, words = (-(-size // unit) * unit for size, unit in zip(batch.tokens.shape, (ROWS, WORDS), strict=True))
        key = (self.objective.points_only, batch.images.shape, rows, words, batch.anchors is None)
        if key not in self._recordings:
            if len(self._recordings) == MOST:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[key] = self._record(batch, counts, rows, words)
        recording = self._recordings[key]
        _copy(batch, counts, recording.batch, recording.counts)
        recording.graph.replay()
        for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
            parameter.grad = gradient
        return recording.losses

    def _record(self, batch: Batch, counts: Counts, rows: int, words: int) -> Recording:
        device = self.parameters[0].device
        room = room_for(batch, rows, words, device)
        totals = Counts(*(torch.zeros_like(count, device=device) for count in (counts.expressions, counts.meant)))
        _copy(batch, counts, room, totals)
        aside = torch.cuda.Stream(device)
        aside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                self._run(room, totals)
        torch.cuda.current_stream(device).wait_stream(aside)
        self._forget_gradients()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # of this thread alone: the one that pins batches in memory goes on meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            losses = self._run(room, totals)
        gradients = tuple(parameter.grad for parameter in self.parameters)
        self._forget_gradients()
        return Recording(graph, room, totals, losses, gradients)

    def _run(self, batch: Batch, counts: Counts) -> Tensor:
        self._forget_gradients()
        losses: Tensor = self.objective(batch, counts)
        losses[0].backward()
        return losses.detach()

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def why_not(config: TrainConfig, device: torch.device, processes: int, *, remembers_texts: bool) -> str | None:
    """Why steps are not recorded though `train.cuda_graphs` says so; None: they are."""
    if not config.cuda_graphs:
        return "train.cuda_graphs is false"
    if device.type != "cuda":
        return f"the run is on {device.type}"
    reasons = {
        "several processes": processes > 1,
        "train.accumulate": config.accumulate > 1,
        "fp16": config.precision == "fp16",
        "train.compile": config.compile,
        "train.checkpoint_activations": config.checkpoint_activations,
        "text features that are remembered (train.text_cache)": remembers_texts,
    }
    return next((f"not with {reason}" for reason, holds in reasons.items() if holds), None)


def room_for(batch: Batch, rows: int, words: int, device: torch.device) -> Batch:
    """A batch of zeros on `device`, with room for so many expressions and word tokens, and with `asked`."""

    def zeros(tensor: Tensor, *leading: int) -> Tensor:
        return torch.zeros((*leading, *tensor.shape[len(leading) :]), dtype=tensor.dtype, device=device)

    by_row: dict[str, Any] = {
        name: None if (tensor := getattr(batch, name)) is None else zeros(tensor, rows)
        for name in ("image_index", "masks", "slots", "anchors", "anchors_known")
    }
    return replace(
        batch,
        **by_row,
        images=zeros(batch.images),
        pixel_valid=zeros(batch.pixel_valid),
        tokens=zeros(batch.tokens, rows, words),
        asked=torch.zeros(rows, dtype=torch.bool, device=device),
        places=None if batch.places is None else zeros(batch.places),
        samples=(),
    )


def fill(room: Batch, batch: Batch) -> None:
    """Copies a batch into one that `room_for` made; rows and words that it lacks become zeros, and are not asked."""
    count, words = batch.tokens.shape
    assert room.asked is not None
    if count > len(room.asked) or words > room.tokens.shape[1]:
        raise VLFormerError(f"{count} expressions of {words} words do not fit into {tuple(room.tokens.shape)}")
    room.tokens.zero_()[:count, :words].copy_(batch.tokens, non_blocking=True)
    room.asked.fill_(True)[count:] = False
    for name in Batch.TENSORS:
        new, old = getattr(batch, name), getattr(room, name)
        if new is None or name in ("tokens", "asked"):
            continue
        old[: len(new)].copy_(new, non_blocking=True)
        old[len(new) :].zero_()


def _copy(batch: Batch, counts: Counts, room: Batch, totals: Counts) -> None:
    fill(room, batch)
    totals.expressions.copy_(counts.expressions, non_blocking=True)
    totals.meant.copy_(counts.meant, non_blocking=True)
