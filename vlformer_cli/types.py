"""The words that every room shares: refs on disk, samples in memory, a batch, a model's output, the error users see.

Letters used in shapes: B images, N expressions, Q queries, T word tokens, H W pixels, Y X cells of the stride-4 grid.
Tensor types are named in annotations only, so that importing this module does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class VLFormerError(ValueError):
    """What a user can cause and mend: the message names the value that was wrong and the remedy."""


class UsageError(VLFormerError):
    """The command was given words that go with no meaning."""


class NotPreparedError(VLFormerError):
    """There is no prepared data set where one is named."""


class SettledError(VLFormerError):
    """To start again as before would end the same way."""


class PeerLostError(VLFormerError):
    """Another process of the training job went away; its own message says why."""


def one_line(error: BaseException) -> str:
    """What an exception of another library says, without its line breaks and without the number of a system's error.

    >>> one_line(RuntimeError("size mismatch:\\n\\tcopying"))
    'size mismatch: copying'
    >>> one_line(FileNotFoundError(2, "No such file or directory", "a.txt"))
    'a.txt: No such file or directory'
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return " ".join(text.split())


class RLE(TypedDict):
    """A mask in COCO's compressed run-length encoding."""

    size: list[int]
    """Height, width in pixels."""
    counts: str
    """The compressed runs, column-major, as ASCII text."""


@dataclass(frozen=True, slots=True)
class Ref:
    """One annotated object of one image with the expressions that mean it: one line of a prepared split."""

    image: str
    """Path of the picture, relative to the image root that the data set's manifest names."""
    image_id: int
    width: int
    height: int
    ref_id: int
    ann_ids: tuple[int, ...]
    """The annotations that the mask is made of: several for a multi-referent expression, none when nothing is meant."""
    category: str
    bbox: tuple[float, float, float, float]
    """x, y, width, height in pixels; all zero when nothing is meant."""
    segmentation: RLE | None
    """None when nothing in the picture is meant."""
    expressions: tuple[str, ...]
    sent_ids: tuple[int, ...]
    """One id per expression, unique within the data set."""
    kinds: tuple[str, ...] = ()
    """One label per expression (attribute, location, relation), or empty where the data set has none."""
    anchors: tuple[RLE | None, ...] = ()
    """Per expression the mask of what it names beside the referent ("the bottle" of "cup left of the bottle"), None
    where it names nothing else; empty where the data set does not say."""

    def to_json(self) -> dict[str, Any]:
        """The line of `<split>.jsonl`, ready for `json.dumps`."""
        row = {name: getattr(self, name) for name in self.__slots__}
        for name in ("kinds", "anchors"):
            if not row[name]:
                del row[name]
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Ref:
        """The inverse of `to_json`; raises KeyError or TypeError when a field is missing or unknown."""
        tuples = {k: tuple(row[k]) for k in ("ann_ids", "bbox", "expressions", "sent_ids")}
        tuples |= {k: tuple(row.get(k, ())) for k in ("kinds", "anchors")}
        return cls(**{**row, **tuples})


@dataclass(frozen=True, slots=True)
class Sample:
    """One (ref, expression) pair: the unit of training and evaluation."""

    ref: Ref
    expression: str
    sent_id: int
    kind: str
    """Empty where the data set has no kinds."""
    anchor: RLE | None = None
    """What the expression names beside the referent; None also where `ref.anchors` is empty and it is not known."""


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """One picture, transformed, with the samples that ask about it."""

    image_HW3: NDArray[np.uint8]
    mask_NHW: NDArray[np.bool_]
    """The referents' masks at the transformed size; all False where nothing is meant."""
    samples: tuple[Sample, ...]
    anchor_NHW: NDArray[np.bool_] | None = None
    """What the expressions name beside their referents; None where the data set does not say."""


@dataclass(frozen=True, slots=True)
class Batch:
    """B pictures padded to one canvas and the N expressions that ask about them."""

    TENSORS: ClassVar[tuple[str, ...]] = (
        *("images", "pixel_valid", "tokens", "image_index", "masks", "slots"),
        *("anchors", "anchors_known", "asked", "places"),
    )
    images: Tensor
    """BCHW uint8, RGB 0..255 as the backbone takes them; padding on the right and at the bottom is zero."""
    pixel_valid: Tensor
    """BHW bool, True on the picture, False on padding."""
    tokens: Tensor
    """NT int64, zero-padded."""
    image_index: Tensor
    """N int64: which of the B pictures each expression asks about."""
    masks: Tensor
    """NHW bool: the referents, on the padded canvas."""
    slots: Tensor
    """N int64: the place of each expression in the whole step's batch, whichever process and forward it fell to."""
    samples: tuple[Sample, ...]
    draw: int = 0
    """Seed of the step's random points, the same in every process."""
    cut: int = 0
    """How many of the expressions were longer than the model's context and were cut."""
    unreadable: tuple[str, ...] = ()
    """What was wrong with each picture that another one stands in for."""
    anchors: Tensor | None = None
    """NHW bool: what the expressions name beside their referents; None where nothing is known of any."""
    anchors_known: Tensor | None = None
    """N bool: False where an expression's data set does not say."""
    asked: Tensor | None = None
    """N bool: False where a row is there for the batch's size alone, and counts for nothing; None: all are asked."""
    places: Tensor | None = None
    """K2: the step's random points, drawn beforehand; None: the loss draws them by `draw`."""

    def to(self, device: Any) -> Batch:
        """The same batch with its tensors on `device`; from pinned memory the copy does not wait."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies without a wait."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors = {name: getattr(self, name) for name in self.TENSORS}
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in tensors.items() if tensor is not None}
        return dataclasses.replace(self, **changed)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the heads say after one block."""

    class_logits: Tensor
    """NQ2: referent, no-object."""
    mask_logits: Tensor
    """NQYX on the stride-4 grid."""


@dataclass(frozen=True, slots=True)
class Pointed:
    """Where the words point before encoder and queries: logits of stride-8 cells."""

    referent: Tensor
    """NYX."""
    anchors: Tensor | None = None
    """NYX: what they name beside the referent; None without `model.anchors`."""


@dataclass(frozen=True, slots=True)
class VLFormerOutput:
    """What the model returns, in training and in evaluation alike."""

    class_logits: Tensor
    """NQ2 after the last block: referent, no-object."""
    mask_logits: Tensor
    """NQYX after the last block, on the stride-4 grid."""
    earlier: tuple[Prediction, ...] = ()
    """The predictions after the blocks before the last, for the loss; empty in eval mode."""
    pointed: Pointed | None = None
    """None in eval mode and without a pointer."""
