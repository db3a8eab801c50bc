"""One canvas for all pictures of a step, whichever process and forward they fall to.

The canvas changes no number but by rounding, as places are fractions of it. With one size for the whole step not even
that depends on how its pictures are dealt. All wait for the largest picture of a step anyway.

Letters: B images, N expressions, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from vlformer_cli.types import Batch


def canvas_of(batches: Sequence[Batch]) -> tuple[int, int]:
    """Height and width of the smallest canvas that holds all of them; zeros where there is none."""
    sizes = [batch.images.shape[-2:] for batch in batches]
    return max((size[0] for size in sizes), default=0), max((size[1] for size in sizes), default=0)


def on_canvas(batch: Batch, height: int, width: int) -> Batch:
    """The same batch with more padding on the right and at the bottom."""
    if batch.images.shape[-2:] == (height, width):
        return batch

    def pad(tensor: Tensor) -> Tensor:
        return functional.pad(tensor, (0, width - tensor.shape[-1], 0, height - tensor.shape[-2]))

    return replace(
        batch,
        images=pad(batch.images),
        pixel_valid=pad(batch.pixel_valid),
        masks=pad(batch.masks),
        anchors=None if batch.anchors is None else pad(batch.anchors),
    )
