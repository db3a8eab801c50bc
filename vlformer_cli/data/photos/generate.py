"""Writes a referring data set made of annotated photographs: as they are, or as many new views of them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from vlformer_cli.data.photos.annotations import AnnotatedPhoto
from vlformer_cli.data.photos.facts import Facts
from vlformer_cli.data.photos.find import find_photos
from vlformer_cli.data.photos.propose import Expression, rows_of, write_expressions
from vlformer_cli.data.photos.views import VAL_SHARE, Library, make_view, split_of
from vlformer_cli.data.rle import encode_mask, rle_bbox
from vlformer_cli.data.store import PreparedWriter
from vlformer_cli.data.workers import run_chunks
from vlformer_cli.types import RLE, Ref, VLFormerError

CHUNK = 32
"""Images that a worker makes at once."""
IDS = 256
"""ref_id and sent_id of one image lie in [ordinal * IDS, (ordinal + 1) * IDS)."""
JPEG_QUALITY = (75, 96)
DRAWS = 200
"""Views that are made for one image before no object that can be named is found."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a data set of photographs is like."""

    views: int = 0
    """Number of new images to make; 0: every photograph once, as it is."""
    size: int = 320
    """Pixels of the longer side of a new image."""
    seed: int = 0
    most: int = 8
    """Expressions for one image, apart from those without a target."""
    no_target: float = 0.1
    """Expressions that mean nothing in their image, per ordinary expression."""
    trust_annotated: bool = False
    """Where a photograph is labelled for no category, those that are annotated count as labelled."""
    boxes: bool = False
    """The annotations have boxes only."""


class Task(NamedTuple):
    """The images from `first` up to `last`, which one call of a worker makes."""

    source: Path
    folder: Path
    split: str
    first: int
    last: int
    recipe: Recipe


def _chunk(task: Task) -> list[list[Ref]]:
    """The refs of each image of a task; new images are written into their files. Runs in a worker."""
    library = _library(task.source, task.split, task.recipe.trust_annotated, task.recipe.boxes)
    made = []
    for ordinal in range(task.first, task.last):
        rng = np.random.default_rng([task.recipe.seed, zlib.crc32(task.split.encode()), ordinal])
        if task.recipe.views:
            facts, expressions = _telling_view(rng, library, task.recipe)
            image = facts.image
            file_name = f"{task.split}/{ordinal:06d}.jpg"
            quality = int(rng.integers(*JPEG_QUALITY))
            cv2.imwrite(str(task.folder / file_name), image.pixels_HW3[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        else:
            facts = Facts(library.open(ordinal))
            expressions = _expressions(rng, facts, task.recipe)
            file_name = str(library.photos[ordinal].path.relative_to(task.folder))
        made.append(refs_of(facts, expressions, file_name, ordinal))
    return made


def _telling_view(rng: Generator, library: Library, recipe: Recipe) -> tuple[Facts, list[Expression]]:
    """A view about which something can be said."""
    for _ in range(DRAWS):
        facts = Facts(make_view(rng, library, recipe.size))
        expressions = _expressions(rng, facts, recipe)
        if any(expression.referents for expression in expressions):
            return facts, expressions
    raise VLFormerError(
        f"{DRAWS} views in a row show no object that an expression can mean: annotate more objects, or say in "
        "`labelled` of which categories every instance is annotated"
    )


def _expressions(rng: Generator, facts: Facts, recipe: Recipe) -> list[Expression]:
    return write_expressions(rng, facts, most=recipe.most, no_target=recipe.no_target)


@lru_cache(maxsize=2)
def _library(source: Path, split: str, trust_annotated: bool, boxes: bool) -> Library:
    """A worker reads it once."""
    return Library(source, split, trust_annotated=trust_annotated, boxes=boxes)


def refs_of(facts: Facts, expressions: list[Expression], file_name: str, ordinal: int) -> list[Ref]:
    """One ref for each object, or group of objects, that expressions mean, and one for those that mean nothing."""
    refs, sent = [], 0
    for number, (referents, some) in enumerate(rows_of(expressions)):
        mask_HW = np.zeros(facts.image.size, dtype=np.bool_)
        for referent in referents:
            mask_HW |= facts.objects[referent].mask_HW
        rle = encode_mask(mask_HW) if referents else None
        refs.append(
            Ref(
                image=file_name,
                image_id=ordinal,
                width=facts.width,
                height=facts.height,
                ref_id=ordinal * IDS + number,
                ann_ids=tuple(ordinal * IDS + referent for referent in referents),
                category=facts.objects[referents[0]].category if referents else "",
                bbox=rle_bbox(rle) if rle is not None else (0.0, 0.0, 0.0, 0.0),
                segmentation=rle,
                expressions=tuple(e.text for e in some),
                sent_ids=tuple(ordinal * IDS + sent + n for n in range(len(some))),
                kinds=tuple(e.label for e in some),
                anchors=_anchors(facts, some),
            )
        )
        sent += len(some)
    return refs


def _anchors(facts: Facts, expressions: list[Expression]) -> tuple[RLE | None, ...]:
    """Masks of what the expressions name beside their referent; empty where that is not known of one of them."""
    if any(expression.anchors is None for expression in expressions):
        return ()
    found: list[RLE | None] = []
    for expression in expressions:
        mask_HW = np.zeros(facts.image.size, dtype=np.bool_)
        for number in expression.anchors or ():
            mask_HW |= facts.objects[number].mask_HW
        found.append(encode_mask(mask_HW) if expression.anchors else None)
    return tuple(found)


def prepare_photos(
    directory: Path,
    source: Path,
    recipe: Recipe,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes the data set into `directory` and returns its manifest.

    The same photographs, recipe and seed give the same bytes, whatever the number of workers. Workers are spawned: a
    script that calls this needs `if __name__ == "__main__"`. Raises VLFormerError for photographs or annotations that
    cannot be used.
    """
    source = source.resolve()
    photos = find_photos(source, boxes=recipe.boxes)
    name = f"seed{recipe.seed}" if recipe.views else "whole"
    with PreparedWriter(directory, dataset="photos", split_by=name, overwrite=overwrite) as writer:
        folder = writer.folder / "images" if recipe.views else _common_folder(photos)
        writer.manifest["image_root"] = "images" if recipe.views else str(folder)
        counts = _counts(photos, recipe)
        done = 0
        for split, count in counts.items():
            if recipe.views:
                (folder / split).mkdir(parents=True)
            starts = range(0, count, CHUNK)
            tasks = [Task(source, folder, split, first, min(first + CHUNK, count), recipe) for first in starts]
            with closing(run_chunks(_chunk, tasks, workers)) as chunks:
                writer.write_split(split, _reported(chunks, done, sum(counts.values()), progress))
            done += count
        writer.manifest["photos"] = {**asdict(recipe), "source": str(source), "photographs": len(photos)}
    return writer.manifest


def _common_folder(photos: list[AnnotatedPhoto]) -> Path:
    """The folder that all photographs lie below."""
    return Path(os.path.commonpath([photo.path.parent for photo in photos]))


def _reported(
    chunks: Iterator[list[list[Ref]]], done: int, total: int, progress: Callable[[int, int], None] | None
) -> Iterator[Ref]:
    for chunk in chunks:
        for refs in chunk:
            yield from refs
        done += len(chunk)
        if progress is not None:
            progress(done, total)


def _counts(photos: list[AnnotatedPhoto], recipe: Recipe) -> dict[str, int]:
    """Images of each split."""
    own = {split: sum(split_of(photo) == split for photo in photos) for split in ("train", "val")}
    if not recipe.views:
        return own
    val = max(1, recipe.views // VAL_SHARE) if own["val"] else 0
    return {"train": recipe.views - val, "val": val}
