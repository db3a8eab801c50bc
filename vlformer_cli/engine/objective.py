"""Model and criterion as one module, in any precision."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from vlformer_cli.loss.criterion import Counts, Criterion, Losses
from vlformer_cli.model.vlformer import VLFormer
from vlformer_cli.types import Batch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Objective(nn.Module):
    """Model and criterion as one module with one tensor as result, which is what DDP can wrap."""

    def __init__(self, *, model: VLFormer, criterion: Criterion, device_type: str, precision: str) -> None:
        super().__init__()
        self.model, self.criterion = model, criterion
        self.device_type, self.dtype = device_type, DTYPES[precision]
        self.points_only = False
        """The pointer and what comes before it are run, and nothing else."""

    def forward(self, batch: Batch, counts: Counts) -> Tensor:
        """Six numbers, the fields of `Losses`: this batch's part of the step's losses."""
        inputs = (batch.images, batch.pixel_valid, batch.tokens, batch.image_index)
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32):
            output = self.model.point(*inputs) if self.points_only else self.model(*inputs)
        judge = self.criterion.of_pointer if self.points_only else self.criterion
        losses: Losses = judge(output, batch, counts)
        return torch.stack([getattr(losses, part.name) for part in fields(Losses)])

    def point_counts(self) -> list[int]:
        """How many random points each draw of the criterion in a forward asks for, in order."""
        return self.criterion.point_counts(0 if self.points_only else len(self.model.decoder.blocks))
