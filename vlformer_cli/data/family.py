"""Gets a data set of the RefCOCO family where the user names no folder: annotations and pictures are downloaded."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vlformer_cli.data.mirrors import fetch_annotations, fetch_train2014
from vlformer_cli.data.prepare import read_splits
from vlformer_cli.data.sources.detect import find_source
from vlformer_cli.data.sources.published import resolve_dataset
from vlformer_cli.data.unpack import Progress, Report, unpack
from vlformer_cli.types import VLFormerError

PINS = "pins.json"
"""In the folder of downloads: SHA-256 of every file that was once parsed, which later downloads must have."""


class Obtained(NamedTuple):
    """What `prepare_family` reads."""

    source: Path
    images: Path
    sha256: dict[str, str]
    """Of the downloaded annotations, by path below the folder of downloads."""


def obtain(
    dataset: str,
    split_by: str | None,
    folder: Path,
    *,
    images: Path | None,
    only_needed: bool,
    offline: bool,
    progress: Progress,
    report: Report,
) -> Obtained:
    """Annotations and pictures below `folder`; what is there is kept, what an earlier call began goes on.

    `images`: a folder that has the pictures, so that none are fetched. `only_needed`: of COCO's train2014 only the
    pictures that this data set asks about, which is all that is looked for when `offline`. Raises VLFormerError where
    something can neither be found nor fetched.
    """
    dataset, split_by = resolve_dataset(dataset, split_by)
    source, sha256 = _annotations(dataset, split_by, folder, offline=offline, progress=progress, report=report)
    if images is None:
        names = _needed(source, dataset, split_by) if only_needed or offline else None
        fetch_train2014(folder, names, offline=offline, progress=progress, report=report)
        images = folder / "train2014"
    return Obtained(source, images, sha256)


def pin(folder: Path, sha256: dict[str, str]) -> None:
    """To be called when what was downloaded has been parsed and checked: the same bytes are asked for from then on."""
    known = _pins(folder)
    if sha256.items() <= known.items():
        return
    partial = folder / f".{PINS}.partial"
    partial.write_text(json.dumps({**known, **sha256}, indent=1, sort_keys=True), encoding="utf-8")
    partial.replace(folder / PINS)


def _pins(folder: Path) -> dict[str, str]:
    path = folder / PINS
    try:
        return {str(name): str(sha256) for name, sha256 in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise VLFormerError(f"{path} is damaged ({error}): delete it to trust what the mirrors give now") from error


def _annotations(
    dataset: str, split_by: str, folder: Path, *, offline: bool, progress: Progress, report: Report
) -> tuple[Path, dict[str, str]]:
    """The folder in which `find_source` finds them, and what was read: a zip is unpacked beside itself, once."""
    fetched = fetch_annotations(
        dataset, split_by, folder, pins=_pins(folder), offline=offline, progress=progress, report=report
    )
    sha256 = {path: file.sha256 for path, file in fetched.files.items()}
    if not fetched.place.url:
        return folder / fetched.place.name, sha256
    (name,) = fetched.files
    unpacked = folder / PurePosixPath(name).stem
    if not unpacked.exists():
        report(f"unpacking {folder / name}")
        unpack(folder / name, unpacked, progress=progress, report=report)
    return unpacked, sha256


def _needed(source: Path, dataset: str, split_by: str) -> list[str]:
    splits = read_splits(find_source(source, dataset, split_by), lambda what, done, total: None)
    return sorted({PurePosixPath(ref.image).name for refs in splits.values() for ref in refs})
