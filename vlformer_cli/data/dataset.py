"""From a prepared split to batches: grouped by picture, a pure function of (seed, step), so that resuming is exact.

Letters: B images, N expressions, T word tokens, H W pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vlformer_cli.data.cache import PictureCache, shrunk_picture
from vlformer_cli.data.flip import mirror_group
from vlformer_cli.data.images import read_image, refuse_other_size
from vlformer_cli.data.rle import decode_rle
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.data.tokenize import tokenize
from vlformer_cli.data.transforms import Augmentation, View
from vlformer_cli.types import Batch, ImageGroup, Ref, Sample, VLFormerError

CANVAS_STEP = 32  # the coarsest stride of the backbone


@dataclass(frozen=True, slots=True)
class WeightedSplit:
    """A training source: when and how often it is drawn from."""

    split: PreparedSplit
    weight: float
    first_step: int
    last_step: int | None


@dataclass(frozen=True, slots=True)
class Deal:
    """Which part of a step's pictures falls to one process, and in how many forwards it takes them."""

    rank: int = 0
    size: int = 1
    """Processes."""
    forwards: int = 1
    """Forwards (and backwards) of each process for one optimiser step."""

    def slots(self, images_per_step: int) -> list[range]:
        """For each forward, the numbers of its pictures within the step; where they cannot be shared evenly, the first
        ones have one more.

        >>> Deal(rank=1, size=2, forwards=2).slots(8)
        [range(2, 4), range(6, 8)]
        >>> [Deal(rank, size=4).slots(6) for rank in range(4)]
        [[range(0, 2)], [range(2, 4)], [range(4, 5)], [range(5, 6)]]
        """
        each, rest = divmod(images_per_step, self.size * self.forwards)
        parts = [forward * self.size + self.rank for forward in range(self.forwards)]
        return [range(part * each + min(part, rest), (part + 1) * each + min(part + 1, rest)) for part in parts]

    def refuse_too_few(self, images_per_step: int, first_stage: FirstStage) -> None:
        """Raises VLFormerError where there is not a picture for each."""
        least = self.size * self.forwards
        fields = {"images_per_step": images_per_step, "images_while_words_first": first_stage.images_per_step}
        for name, images in fields.items():
            if images < least and (images or name == "images_per_step"):
                raise VLFormerError(
                    f"data.{name} is {images}, fewer than {self.size} processes x {self.forwards} forwards "
                    f"(train.accumulate): make it {least} or more"
                )


@dataclass(frozen=True, slots=True)
class FirstStage:
    """Steps at the beginning of the training that have another number of pictures."""

    steps: int = 0
    images_per_step: int = 0
    """0: as all other steps."""

    def pictures(self, step: int, others: int) -> tuple[int, int]:
        """How many a step has, and how many the steps before it had, where the steps after the stage have `others`.

        >>> [FirstStage(steps=2, images_per_step=12).pictures(step, 3) for step in range(4)]
        [(12, 0), (12, 12), (3, 24), (3, 27)]
        """
        each = self.images_per_step or others
        if step < self.steps:
            return each, step * each
        return others, self.steps * each + (step - self.steps) * others


class TrainingBatches(Dataset[tuple[Batch, ...]]):
    """Item `step` is what one process takes of that step, a batch for each of its forwards.

    The step's pictures are the same however they are dealt. Pictures that cannot be read are replaced by others.
    """

    def __init__(
        self,
        *,
        sources: Sequence[WeightedSplit],
        augmentation: Augmentation,
        images_per_step: int,
        expressions_per_image: int,
        max_tokens: int,
        steps: int,
        seed: int,
        mirror: bool = False,
        deal: Deal = Deal(),
        cache: PictureCache | None = None,
        first_stage: FirstStage = FirstStage(),
    ) -> None:
        """`mirror`: half of the pictures are mirrored, with their words, where that can be done. `cache`: saves time.

        Raises VLFormerError if at some step no source is active, a source is empty, or the deal does not go up.
        """
        self.sources, self.augmentation = tuple(sources), augmentation
        self.images_per_step, self.expressions_per_image = images_per_step, expressions_per_image
        self.max_tokens, self.steps, self.seed, self.mirror, self.deal = max_tokens, steps, seed, mirror, deal
        self.cache, self.first_stage = cache, first_stage
        deal.refuse_too_few(images_per_step, first_stage)
        for source in self.sources:
            if source.split.num_images == 0:
                raise VLFormerError(f"{source.split.directory}: split {source.split.split} is empty")
        for step in {0, *(s.last_step or 0 for s in self.sources if (s.last_step or steps) < steps)}:
            if not self._active(step):
                raise VLFormerError(f"data.train: no source is active at step {step}; mend first_step and last_step")

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Batch, ...]:
        images, before = self.first_stage.pictures(step, self.images_per_step)
        return tuple(self._batch(step, slots, before) for slots in self.deal.slots(images))

    def _batch(self, step: int, slots: range, before: int) -> Batch:
        unreadable: list[str] = []
        groups = [
            self._readable_group(
                before + slot, self._active(step), np.random.default_rng([self.seed, step, slot]), unreadable
            )
            for slot in slots
        ]
        draw = int(np.random.SeedSequence([self.seed, step]).generate_state(1)[0])
        first_slots = [slot * self.expressions_per_image for slot in slots]
        batch = collate(groups, self.max_tokens, first_slots=first_slots, draw=draw)
        return replace(batch, unreadable=tuple(unreadable))

    def _active(self, step: int) -> list[WeightedSplit]:
        return [s for s in self.sources if s.first_step <= step and (s.last_step is None or step < s.last_step)]

    def _readable_group(
        self, draw: int, sources: Sequence[WeightedSplit], rng: np.random.Generator, unreadable: list[str]
    ) -> ImageGroup:
        """Of the picture that is drawn; or of the next one that can be read, and `unreadable` gets to know why."""
        weights = np.array([source.weight for source in sources])
        source = sources[rng.choice(len(sources), p=weights / weights.sum())]
        ordinal = shuffled_ordinal(draw, source.split.num_images, self.seed)
        for attempt in range(10):
            samples = source.split.image_samples((ordinal + attempt) % source.split.num_images)
            chosen = rng.permutation(len(samples))[: self.expressions_per_image]
            try:
                group = load_group(source.split, [samples[i] for i in chosen], self.augmentation, rng, self.cache)
                return (mirror_group(group) or group) if self.mirror and rng.random() < 0.5 else group
            except VLFormerError as error:
                unreadable.append(str(error))
        raise VLFormerError(f"10 pictures in a row of {source.split.name} cannot be read; the last: {unreadable[-1]}")


def shuffled_ordinal(draw: int, count: int, seed: int) -> int:
    """Which of `count` pictures the `draw`-th draw takes: each once per epoch, in an order of its own per epoch.

    An affine permutation costs nothing however many pictures there are.

    >>> sorted(shuffled_ordinal(draw, 7, 0) for draw in range(7, 14))
    [0, 1, 2, 3, 4, 5, 6]
    """
    epoch, position = divmod(draw, count)
    rng = np.random.default_rng([seed, epoch, count])
    factor = int(rng.integers(1, count + 1))
    while np.gcd(factor, count) != 1:
        factor = int(rng.integers(1, count + 1))
    return int((position * factor + int(rng.integers(count))) % count)


def load_group(
    split: PreparedSplit,
    samples: Sequence[Sample],
    augmentation: Augmentation,
    rng: np.random.Generator,
    cache: PictureCache | None = None,
) -> ImageGroup:
    """One augmented picture with the masks of `samples`, which all ask about it."""
    first = samples[0].ref
    original, path = (first.height, first.width), split.image_path(first)
    largest = augmentation.largest(*original)
    picture = cache.view(path, original, largest) if cache else shrunk_picture(path, original, largest)
    meant, named = [sample.ref.segmentation for sample in samples], [sample.anchor for sample in samples]
    different = {rle["counts"]: rle for rle in (*meant, *named) if rle is not None}
    views = [View.of_mask(rle, largest) for rle in different.values()]
    image_HW3, masks = augmentation.apply(picture, views, original, rng)
    moved = dict(zip(different, masks, strict=True))
    nothing = np.zeros(image_HW3.shape[:2], dtype=np.bool_)
    mask_NHW, anchor_NHW = (
        np.stack([nothing if rle is None else moved[rle["counts"]] for rle in some]) for some in (meant, named)
    )
    return ImageGroup(image_HW3, mask_NHW, tuple(samples), anchor_NHW if first.anchors else None)


def ref_image(split: PreparedSplit, ref: Ref) -> NDArray[np.uint8]:
    """HW3 at the original size; raises VLFormerError where the file is not of the size that the data set says."""
    path = split.image_path(ref)
    image_HW3 = read_image(path)
    refuse_other_size(path, image_HW3.shape[:2], (ref.height, ref.width))
    return image_HW3


def ref_mask(ref: Ref) -> NDArray[np.bool_]:
    """HW at the original size; all False where nothing is meant."""
    if ref.segmentation is None:
        return np.zeros((ref.height, ref.width), dtype=np.bool_)
    return decode_rle(ref.segmentation)


def collate(
    groups: Sequence[ImageGroup], max_tokens: int, *, first_slots: Sequence[int] | None = None, draw: int = 0
) -> Batch:
    """Pictures at the top left of one canvas, whose sides are multiples of 32.

    `first_slots`: the place within the whole step of each picture's first expression; None: this batch is the step.
    """
    shapes = [group.image_HW3.shape[:2] for group in groups]
    height, width = (-(-max(side) // CANVAS_STEP) * CANVAS_STEP for side in zip(*shapes, strict=True))
    count = sum(len(group.samples) for group in groups)
    images = np.zeros((len(groups), height, width, 3), dtype=np.uint8)
    valid = np.zeros((len(groups), height, width), dtype=np.bool_)
    masks = np.zeros((count, height, width), dtype=np.bool_)
    known = np.zeros(count, dtype=np.bool_)
    anchors = np.zeros_like(masks) if any(group.anchor_NHW is not None for group in groups) else None
    first = 0
    for number, (group, (h, w)) in enumerate(zip(groups, shapes, strict=True)):
        images[number, :h, :w], valid[number, :h, :w] = group.image_HW3, True
        rows = slice(first, first + len(group.samples))
        masks[rows, :h, :w] = group.mask_NHW
        if anchors is not None and group.anchor_NHW is not None:
            anchors[rows, :h, :w], known[rows] = group.anchor_NHW, True
        first += len(group.samples)
    samples = tuple(sample for group in groups for sample in group.samples)
    tokens, is_cut = tokenize([sample.expression for sample in samples], max_tokens)
    index = [number for number, group in enumerate(groups) for _ in group.samples]
    if first_slots is None:
        first_slots = list(itertools.accumulate([len(group.samples) for group in groups[:-1]], initial=0))
    slots = [first + i for first, group in zip(first_slots, groups, strict=True) for i in range(len(group.samples))]
    return Batch(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        pixel_valid=torch.from_numpy(valid),
        tokens=tokens,
        image_index=torch.tensor(index),
        masks=torch.from_numpy(masks),
        slots=torch.tensor(slots),
        samples=samples,
        draw=draw,
        cut=sum(is_cut),
        anchors=None if anchors is None else torch.from_numpy(anchors),
        anchors_known=None if anchors is None else torch.from_numpy(known),
    )


def images_of(split: PreparedSplit, limit: int = 0) -> Iterator[list[Sample]]:
    """The samples of each picture in turn, at most `limit` samples in all (0: no limit)."""
    left = limit or len(split)
    for ordinal in range(split.num_images):
        samples = split.image_samples(ordinal)[:left]
        if not samples:
            return
        left -= len(samples)
        yield samples
