"""Gets a data set of the RefCOCO family where the user names no folder: annotations and pictures are downloaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vlformer_cli.data.mirrors import fetch_annotations, fetch_train2014
from vlformer_cli.data.unpack import Progress, Report, publish, unpack
from vlformer_cli.types import VLFormerError

PINS = "pins.json"
"""In the folder of downloads: SHA-256 of every file that was once parsed, which later downloads must have."""


class Annotations(NamedTuple):
    """Downloaded annotations."""

    source: Path
    """The folder in which `find_source` finds them."""
    sha256: dict[str, str]
    """Of the files, by path below the folder of downloads."""


def get_annotations(
    dataset: str, split_by: str, folder: Path, *, offline: bool, progress: Progress, report: Report
) -> Annotations:
    """The annotations below `folder`; what is there is kept, what an earlier call began goes on.

    A zip is unpacked beside itself, once. Raises VLFormerError where they can neither be found nor fetched.
    """
    fetched = fetch_annotations(
        dataset, split_by, folder, pins=_pins(folder), offline=offline, progress=progress, report=report
    )
    sha256 = {path: file.sha256 for path, file in fetched.files.items()}
    if not fetched.place.url:
        return Annotations(folder / fetched.place.name, sha256)
    ((name, file),) = fetched.files.items()
    unpacked = folder / PurePosixPath(name).stem
    if file.url is not None:  # it is new, and what an older one held is not it
        shutil.rmtree(unpacked, ignore_errors=True)
    if not unpacked.exists():
        report(f"unpacking {folder / name}")
        unpack(folder / name, unpacked, progress=progress, report=report)
    return Annotations(unpacked, sha256)


def get_pictures(
    folder: Path, names: Collection[str], *, only_needed: bool, offline: bool, progress: Progress, report: Report
) -> Path:
    """COCO's train2014 below `folder`; of it only `names` if `only_needed`, or `offline`, where no more is looked for.

    Raises VLFormerError where they can neither be found nor fetched.
    """
    wanted = [PurePosixPath(name).name for name in names] if only_needed or offline else None
    fetch_train2014(folder, wanted, offline=offline, progress=progress, report=report)
    return folder / "train2014"


def pin(folder: Path, sha256: dict[str, str]) -> None:
    """To be called when what was downloaded has been parsed and checked: the same bytes are asked for from then on."""
    known = _pins(folder)
    if sha256.items() <= known.items():
        return
    partial = folder / f".{PINS}.partial"
    partial.write_text(json.dumps({**known, **sha256}, indent=1, sort_keys=True), encoding="utf-8")
    publish(partial, folder / PINS)


def _pins(folder: Path) -> dict[str, str]:
    path = folder / PINS
    try:
        return {str(name): str(sha256) for name, sha256 in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise VLFormerError(f"{path} is damaged ({error}): delete it to trust what the mirrors give now") from error
