"""Prepares a data set of the RefCOCO family from what a user has on disk: finds it, checks it, writes it."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vlformer_cli.data.images import image_size, read_image, read_mask
from vlformer_cli.data.rle import encode_mask, polygons_to_rle, rle_area, rle_bbox, union_rle
from vlformer_cli.data.sources.detect import SPLITS, Source, find_source, find_sources, read_source
from vlformer_cli.data.sources.published import Counts, check_counts, resolve_dataset
from vlformer_cli.data.sources.refer import SourceRef, check_unique
from vlformer_cli.data.store import PreparedWriter, file_sha256
from vlformer_cli.data.workers import run_chunks
from vlformer_cli.types import RLE, Ref, VLFormerError

Pictures = Callable[[Collection[str]], Path]
"""Gets the pictures of these names and returns their folder."""
Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, of how much."""
Size = tuple[int, int]
Splits = dict[str, list[SourceRef]]

SLACK = 0.05
"""Of a side: how far a polygon may reach outside its picture, where it is cut; COCO's reach out by a pixel or two."""
MASKS_CHUNK, IMAGES_CHUNK = 512, 256  # handed to a worker at once
_SAMPLE = 20  # pictures by which the folder that holds them is found
_SPLIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # it becomes a file name


class Picture(NamedTuple):
    """One to be checked."""

    place: str
    """The first ref that needs it, for messages."""
    path: Path
    size: Size | None
    """Height, width as the source states them."""


def prepare_family(
    directory: Path,
    *,
    dataset: str,
    split_by: str | None = None,
    source: Path,
    images: Path | Pictures | None = None,
    allow_count_mismatch: bool = False,
    check_images: bool = False,
    exclude_eval_images: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prepares `dataset` (or an alias) in `directory` from the annotations below `source`; returns the manifest.

    The pictures stay where they are: in `images`, or where the layout has them; or `images` is what gets them, which is
    called once the annotations have been read and counted. Their headers are read; `check_images` decodes them.
    `exclude_eval_images` takes out of `train` whatever picture is in a val or test split of the family below `source`.
    Raises VLFormerError for what is wrong, and then leaves nothing behind.
    """
    say = progress or (lambda what, done, total: None)
    dataset, split_by = resolve_dataset(dataset, split_by)
    found = find_source(source, dataset, split_by)
    with PreparedWriter(directory, dataset=dataset, split_by=split_by, overwrite=overwrite) as writer:
        splits = read_splits(found, say)
        writer.manifest["counts_as_published"] = _as_published(found, splits, allow_count_mismatch)
        image_root = _image_root(found, images, splits)
        if exclude_eval_images:
            others = [other for other in find_sources(source, dataset) if other != found]
            eval_images = _eval_images([(found, splits), *((other, read_splits(other, say)) for other in others)])
            writer.manifest["excluded_eval_images"] = _exclude(splits, eval_images)
        sizes = _check_pictures(image_root, splits, check_images, say)
        with closing(_make_all(splits, sizes, say)) as refs:
            for split, source_refs in splits.items():
                writer.write_split(split, islice(refs, len(source_refs)))
        writer.manifest["image_root"] = str(image_root.resolve())
        writer.manifest["layout"] = found.title
        writer.manifest["sources"] = _hashes(source, found, splits)
    return writer.manifest


def read_splits(found: Source, say: Progress) -> Splits:
    """The refs of each split, those of one picture in a row and otherwise in the source's order."""
    say(f"reading {found}", 0, 1)
    refs = read_source(found)
    check_unique(refs)
    of_image: dict[str, dict[str, list[SourceRef]]] = {}
    for ref in refs:
        if not _SPLIT.fullmatch(ref.split):
            raise VLFormerError(f"{ref.place} has the split {ref.split!r}: it must be one of {', '.join(SPLITS)}")
        of_image.setdefault(ref.split, {}).setdefault(ref.image, []).append(ref)
    if not of_image:
        raise VLFormerError(f"{found} holds no refs: fetch the files again")
    say(f"reading {found}", 1, 1)
    order = sorted(of_image, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    return {split: [ref for same in of_image[split].values() for ref in same] for split in order}


def _as_published(found: Source, splits: Splits, allow_mismatch: bool) -> bool:
    counts = {
        split: Counts(len(refs), len({ref.image for ref in refs}), sum(len(ref.expressions) for ref in refs))
        for split, refs in splits.items()
    }
    try:
        check_counts(str(found), counts, found.dataset, found.split_by)
    except VLFormerError:
        if not allow_mismatch:
            raise
        return False
    return True


def _image_root(found: Source, images: Path | Pictures | None, splits: Splits) -> Path:
    """The folder of pictures: the one that is named, or of the layout's the one that holds the most of a sample."""
    if callable(images):
        return images(sorted({ref.image for refs in splits.values() for ref in refs}))
    if images is not None:
        if not images.is_dir():
            raise VLFormerError(f"{images} is not a folder: give --images the folder of COCO's train2014 pictures")
        return images
    sample = [ref.image for ref in next(iter(splits.values()))[:_SAMPLE]]
    folders = [folder for folder in found.images if folder.is_dir()]
    if not folders:
        looked = ", ".join(map(str, found.images))
        raise VLFormerError(f"no folder of pictures for {found}: give --images, or put them into one of {looked}")
    return max(folders, key=lambda folder: sum((folder / image).is_file() for image in sample))


def _eval_images(sources: Iterable[tuple[Source, Splits]]) -> dict[str, set[str]]:
    """The names of the pictures of each val and test split, by data set, partition and split."""
    names: dict[str, set[str]] = {}
    for source, splits in sources:
        for split, refs in splits.items():
            if split.startswith(("val", "test")):
                of_split = names.setdefault(f"{source.dataset}-{source.split_by}/{split}", set())
                of_split.update(PurePosixPath(ref.image).name for ref in refs)
    return names


def _exclude(splits: Splits, eval_images: dict[str, set[str]]) -> dict[str, Any]:
    """Takes the refs of evaluation pictures out of `train`; returns how many fell out, and for each split's sake."""
    train = splits.get("train", [])
    names = {PurePosixPath(ref.image).name for ref in train}
    barred = names & set().union(*eval_images.values())
    out = [ref for ref in train if PurePosixPath(ref.image).name in barred]
    if train:
        splits["train"] = [ref for ref in train if PurePosixPath(ref.image).name not in barred]
    return {
        "images": len(barred),
        "refs": len(out),
        "expressions": sum(len(ref.expressions) for ref in out),
        "images_by_split": {split: len(names & images) for split, images in sorted(eval_images.items())},
    }


def _check_pictures(root: Path, splits: Splits, decode: bool, say: Progress) -> dict[str, Size]:
    """Height and width of each picture; raises VLFormerError where one is missing, broken or of another size."""
    pictures: dict[str, Picture] = {}
    for ref in (ref for refs in splits.values() for ref in refs):
        name = PurePosixPath(ref.image)
        if name.is_absolute() or ".." in name.parts:
            raise VLFormerError(f"{ref.place} has the picture {ref.image!r}: it must be a path below {root}")
        first = pictures.setdefault(ref.image, Picture(ref.place, root / name, ref.size))
        if first.size != ref.size:
            raise VLFormerError(f"{ref.place} states another size of {ref.image} than {first.place}: mend one of them")
    missing = [picture for picture in pictures.values() if not picture.path.is_file()]
    if missing:
        raise VLFormerError(
            f"{missing[0].place} needs {missing[0].path}, which is not there ({len(missing)} of {len(pictures)} are "
            "missing): fetch the pictures, or give --images the folder that holds them"
        )
    sizes: list[Size] = []
    what = "decoding pictures" if decode else "reading the pictures' headers"
    chunks = _chunks(list(pictures.values()), IMAGES_CHUNK)
    with closing(run_chunks(partial(_measure, decode=decode), chunks)) as results:
        for result in results:
            sizes += result
            say(what, len(sizes), len(pictures))
    return dict(zip(pictures, sizes, strict=True))


def _measure(pictures: list[Picture], decode: bool) -> list[Size]:
    sizes = []
    for place, path, stated in pictures:
        try:
            height, width = read_image(path).shape[:2] if decode else image_size(path)
        except VLFormerError as error:
            raise VLFormerError(f"{place}: {error}") from error
        if stated not in (None, (height, width)):
            raise VLFormerError(
                f"{place}: {path} is {width} x {height} pixels with its EXIF orientation applied, but its annotations "
                f"are for {stated[1]} x {stated[0]}: use COCO's own picture"
            )
        sizes.append((height, width))
    return sizes


def _make_all(splits: Splits, sizes: dict[str, Size], say: Progress) -> Generator[Ref, None, None]:
    """The refs of all splits in their order, their masks made on every core."""
    refs = [(ref, sizes[ref.image]) for refs in splits.values() for ref in refs]
    done = 0
    with closing(run_chunks(_make, _chunks(refs, MASKS_CHUNK))) as results:
        for made in results:
            done += len(made)
            say("making masks", done, len(refs))
            yield from made


def _make(refs: list[tuple[SourceRef, Size]]) -> list[Ref]:
    return [make_ref(ref, *size) for ref, size in refs]


def make_ref(ref: SourceRef, height: int, width: int) -> Ref:
    """The ref with its mask; raises VLFormerError where that does not decode, is empty or does not fit the picture."""
    try:
        rles = [_mask(mask, height, width) for mask in ref.masks]
        rle = union_rle(rles) if rles else None
        if rle is not None and not rle_area(rle):
            raise VLFormerError(f"its mask covers no pixel of {ref.image}: mend or drop the ref")
    except VLFormerError as error:
        raise VLFormerError(f"{ref.place}, annotation {' '.join(map(str, ref.ann_ids))}: {error}") from error
    return Ref(
        image=ref.image,
        image_id=ref.image_id,
        width=width,
        height=height,
        ref_id=ref.ref_id,
        ann_ids=ref.ann_ids,
        category=ref.category,
        bbox=rle_bbox(rle) if rle is not None else (0.0, 0.0, 0.0, 0.0),
        segmentation=rle,
        expressions=ref.expressions,
        sent_ids=ref.sent_ids,
    )


def _mask(mask: Any, height: int, width: int) -> RLE:
    if isinstance(mask, Path):
        mask_HW = read_mask(mask)
        if mask_HW.shape != (height, width):
            size = f"{mask_HW.shape[1]} x {mask_HW.shape[0]}"
            raise VLFormerError(f"{mask} is {size} pixels, but the picture {width} x {height}: write the mask again")
        return encode_mask(mask_HW)
    if isinstance(mask, list):  # as detectron2 and ReLA do: a part of less than three points covers nothing
        mask = [part for part in mask if not isinstance(part, list) or len(part) >= 6] or mask
    rle = polygons_to_rle(mask, height, width)
    if isinstance(mask, list):
        _check_inside(mask, height, width)
    return rle


def _check_inside(polygons: list[list[float]], height: int, width: int) -> None:
    for polygon in polygons:
        for axis, values, side in (("x", polygon[0::2], width), ("y", polygon[1::2], height)):
            worst = max(values, key=lambda value: max(-value, value - side))
            if max(-worst, worst - side) > SLACK * side:
                raise VLFormerError(
                    f"a polygon has a point at {axis} = {worst}, outside the picture of {width} x {height}: picture "
                    "and annotation do not belong together, fetch both again"
                )


def _hashes(root: Path, found: Source, splits: Splits) -> dict[str, str]:
    """SHA-256 of what was read, by path from the root; of a folder of masks, of the list of its files' hashes."""
    files = [*found.files, *([found.masks] if found.masks and found.masks.is_file() else [])]
    hashes = {path: file_sha256(path) for path in files}
    if found.masks and found.masks.is_dir():
        masks = sorted(mask for refs in splits.values() for ref in refs for mask in ref.masks)
        lines = "".join(f"{file_sha256(mask)}  {mask.name}\n" for mask in masks)
        hashes[found.masks] = hashlib.sha256(lines.encode()).hexdigest()
    return {Path(os.path.relpath(path, root)).as_posix(): value for path, value in hashes.items()}


def _chunks(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
