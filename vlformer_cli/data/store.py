"""The prepared format: what `prepare-data` writes, and reads back.

A prepared data set is a folder with `manifest.json` and, for each split, `<split>.jsonl` (a line per ref, refs of one
image in a row) and `<split>.index.npy`, an int64 table with a row per ref: the byte where its line starts, the
ordinal of its image and the ordinal of its first sample. The table is memory-mapped and lines are read by offset, so
opening costs the same for ten refs and for ten million, and a worker's memory does not grow with the data set.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlformer_cli import __version__
from vlformer_cli.types import NotPreparedError, Ref, Sample, VLFormerError

MANIFEST = "manifest.json"
OFFSET, IMAGE, SAMPLE = range(3)  # the columns of the index table


class PreparedWriter:
    """Writes a data set below a temporary name and renames it when all is done, so that no half-written one is left.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> with PreparedWriter(root / "toy-me", dataset="toy", split_by="me") as writer:
    ...     writer.write_split("val", [])
    >>> sorted(p.name for p in (root / "toy-me").iterdir())
    ['manifest.json', 'val.index.npy', 'val.jsonl']
    """

    def __init__(self, directory: Path, *, dataset: str, split_by: str, overwrite: bool = False) -> None:
        """Raises VLFormerError if `directory` is there already and `overwrite` is False."""
        refuse_existing(directory, overwrite)
        self.directory = directory
        self.manifest: dict[str, Any] = {
            "dataset": dataset,
            "split_by": split_by,
            "image_root": "images",
            "splits": {},
            "sources": {},
            "vlformer_version": __version__,
        }
        directory.parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f".{directory.name}.partial-", dir=directory.parent))
        """The temporary folder; pictures that belong to the data set go to `folder / "images"`."""

    def __enter__(self) -> PreparedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self._finish()
        shutil.rmtree(self.folder, ignore_errors=True)

    def write_split(self, split: str, refs: Iterable[Ref]) -> None:
        """Writes one split. Refs of one image must stand in a row; raises VLFormerError where they do not."""
        index: list[tuple[int, int, int]] = []
        seen_images: set[str] = set()
        last_image, samples = None, 0
        with (self.folder / f"{split}.jsonl").open("wb") as lines:
            for ref in refs:
                if ref.image != last_image:
                    if ref.image in seen_images:
                        raise VLFormerError(f"split {split}: the refs of image {ref.image} do not stand in a row")
                    seen_images.add(ref.image)
                    last_image = ref.image
                index.append((lines.tell(), len(seen_images) - 1, samples))
                samples += len(ref.expressions)
                lines.write(_line(ref))
        np.save(self.folder / f"{split}.index.npy", np.array(index, dtype=np.int64).reshape(-1, 3))
        counts = {"refs": len(index), "images": len(seen_images), "expressions": samples}
        self.manifest["splits"][split] = {**counts, "sha256": file_sha256(self.folder / f"{split}.jsonl")}

    def _finish(self) -> None:
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        (self.folder / MANIFEST).write_text(text, encoding="utf-8")
        self.folder.chmod(0o755)
        if self.directory.exists():
            discarded = Path(tempfile.mkdtemp(prefix=f".{self.directory.name}.old-", dir=self.directory.parent))
            self.directory.replace(discarded / "old")
            self.folder.replace(self.directory)
            shutil.rmtree(discarded)
        else:
            self.folder.replace(self.directory)


def _line(ref: Ref) -> bytes:
    try:
        return json.dumps(ref.to_json(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError as error:  # a JSON file may hold half of a surrogate pair, an emoji that was cut off
        near = error.object[max(0, error.start - 20) : error.start].rpartition('"')[2]
        raise VLFormerError(
            f"ref {ref.ref_id} of {ref.image}: after {near!r} stands half a character: mend the text"
        ) from error


def refuse_existing(directory: Path, overwrite: bool) -> None:
    """Raises VLFormerError if `directory` is there already and may not be overwritten."""
    if directory.exists() and not overwrite:
        raise VLFormerError(f"{directory} is there already: use --overwrite to prepare it again")


class PreparedSplit:
    """One split of a prepared data set, open for reading. `len` counts samples: (ref, expression) pairs."""

    def __init__(self, directory: Path, split: str) -> None:
        """Raises VLFormerError if the data set or the split is not there."""
        self.directory, self.split = directory, split
        self.manifest = read_manifest(directory)
        if split not in self.manifest["splits"]:
            known = ", ".join(self.manifest["splits"]) or "none"
            raise VLFormerError(f"{directory} has no split {split!r}; it has: {known}")
        counts = self.manifest["splits"][split]
        self.num_refs, self.num_images, self._num_samples = counts["refs"], counts["images"], counts["expressions"]
        self.image_root = directory / self.manifest["image_root"]
        self._index = self._open_index()
        self._file: int | None = None

    def __len__(self) -> int:
        return int(self._num_samples)

    @property
    def indexed_refs(self) -> int:
        """Rows of the index table; other than `num_refs` only where files were changed."""
        return len(self._index)

    @property
    def name(self) -> str:
        """`<dataset>-<split_by>/<split>`: how reports name this data."""
        return f"{self.manifest['dataset']}-{self.manifest['split_by']}/{self.split}"

    def ref(self, row: int) -> Ref:
        """The ref in line `row` (from 0)."""
        if self._file is None:  # opened on first use, so that each worker process has its own
            self._file = os.open(self.directory / f"{self.split}.jsonl", os.O_RDONLY)
        start = int(self._index[row, OFFSET])
        end = int(self._index[row + 1, OFFSET]) if row + 1 < len(self._index) else os.fstat(self._file).st_size
        return Ref.from_json(json.loads(os.pread(self._file, end - start, start)))

    def sample(self, index: int) -> Sample:
        """The `index`-th sample of the split; raises IndexError outside it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = bisect.bisect_right(self._index[:, SAMPLE], index) - 1
        return _samples(self.ref(row))[index - int(self._index[row, SAMPLE])]

    def image_samples(self, ordinal: int) -> list[Sample]:
        """All samples that ask about the `ordinal`-th image of the split; raises IndexError outside it."""
        if not 0 <= ordinal < self.num_images:
            raise IndexError(ordinal)
        first = bisect.bisect_left(self._index[:, IMAGE], ordinal)
        last = bisect.bisect_right(self._index[:, IMAGE], ordinal, lo=first)
        return [sample for row in range(first, last) for sample in _samples(self.ref(row))]

    def image_path(self, ref: Ref) -> Path:
        """Where the ref's picture lies."""
        return Path(self.image_root / ref.image)

    def _open_index(self) -> NDArray[np.int64]:
        table: NDArray[np.int64] = np.load(self.directory / f"{self.split}.index.npy", mmap_mode="r")
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_index": None}  # a pickled memory map would be a copy of it all

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._index = self._open_index()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a prepared data set; raises VLFormerError, with the remedy, if there is none."""
    path = directory / MANIFEST
    if not path.is_file():
        raise NotPreparedError(
            f"{directory} is not a prepared data set (no {MANIFEST}): make it with `vlformer prepare-data`"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VLFormerError(f"{path} is damaged ({error}): prepare the data set again") from error
    if not isinstance(manifest, dict) or not {"dataset", "split_by", "image_root", "splits"} <= manifest.keys():
        raise VLFormerError(f"{path} does not describe a prepared data set: give a folder that `prepare-data` wrote")
    return manifest


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _samples(ref: Ref) -> Sequence[Sample]:
    count = len(ref.expressions)
    kinds, anchors = ref.kinds or ("",) * count, ref.anchors or (None,) * count
    return [Sample(ref, *parts) for parts in zip(ref.expressions, ref.sent_ids, kinds, anchors, strict=True)]
