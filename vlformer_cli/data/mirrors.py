"""Where the published data sets are to be had, in the order in which the places are asked, and getting them.

The original server of RefCOCO, RefCOCO+ and G-Ref has been dead since 2022: archived copies of its files come first.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from vlformer_cli.data.download import (
    PATIENCE,
    Fetched,
    GiveUp,
    Origin,
    Patience,
    TryAgain,
    UnreachableError,
    ask,
    byte_span,
    fetch,
    first_place,
    read_block,
)
from vlformer_cli.data.unpack import Progress, Report, extract_members, free_bytes, ignore, locked, safe_path
from vlformer_cli.types import VLFormerError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ARCHIVED = "https://web.archive.org/web/{}id_/https://bvisionweb1.cs.unc.edu/licheng/referit/data/{}.zip"
HUB, HUB_VARIABLE = "https://huggingface.co", "HF_ENDPOINT"  # the variable is huggingface_hub's own
TRAIN2014 = ("http://images.cocodataset.org/zips/train2014.zip",)
DATA_SUFFIXES = (".parquet", ".json", ".zip")
TAIL = 22 + 0xFFFF  # bytes: the record that ends a zip file, with the longest comment
READ_AHEAD = 1 << 20  # bytes
WINDOW = 1 << 22  # bytes that are fetched with one request, at most
GAP = 1 << 16  # bytes that are rather fetched in vain than asked around
CONNECTIONS = 8
LISTING = ".listing.json"


@dataclass(frozen=True)
class Place:
    """One place that has the annotations of a data set: one `url`, or the files of a data set on Hugging Face."""

    name: str
    layout: str
    """What a reader finds there: `refer` (a zip of the original folder), `jxu124` or `jxu124-benchmark` (parquet),
    `grefcoco` (JSON)."""
    split_by: tuple[str, ...]
    url: str = ""
    hub: str = ""
    eval_only: bool = False
    """Whether it lacks the training split."""


@dataclass(frozen=True)
class FetchedPlace:
    """The annotations as one place has them, on the disk."""

    place: Place
    files: dict[str, Fetched]
    """By path below the folder that was given: record their `sha256` as the `pins` of the next time."""


class HubFile(NamedTuple):
    """A file that a place offers."""

    path: str
    """Below the folder of downloads."""
    url: str
    size: int | None
    sha256: str | None


def _archived(dataset: str, stamp: str, *split_by: str) -> Place:
    return Place("archived", "refer", split_by, url=ARCHIVED.format(stamp, dataset))


def _jxu124(dataset: str, split_by: str) -> Place:
    return Place(f"jxu124-{dataset}", "jxu124", (split_by,), hub=f"jxu124/{dataset}")


def _benchmark(*split_by: str) -> Place:
    repository = "jxu124/refcoco-benchmark"
    return Place("jxu124-refcoco-benchmark", "jxu124-benchmark", split_by, hub=repository, eval_only=True)


PLACES: dict[str, tuple[Place, ...]] = {
    "refcoco": (
        _archived("refcoco", "20220413011718", "unc", "google"),
        _jxu124("refcoco", "unc"),
        _benchmark("unc", "google"),
    ),
    "refcoco+": (_archived("refcoco+", "20220413011656", "unc"), _benchmark("unc")),
    "refcocog": (
        _archived("refcocog", "20220413012904", "umd", "google"),
        _jxu124("refcocog", "umd"),
        _benchmark("umd", "google"),
    ),
    "grefcoco": (Place("FudanCVL-gRefCOCO", "grefcoco", ("unc",), hub="FudanCVL/gRefCOCO"),),
}


def fetch_annotations(
    dataset: str,
    split_by: str,
    folder: Path,
    *,
    eval_only: bool = False,
    pins: Mapping[str, str] | None = None,
    offline: bool = False,
    progress: Progress = ignore,
    report: Report = ignore,
    patience: Patience = PATIENCE,
    free: Callable[[Path], int] = free_bytes,
) -> FetchedPlace:
    """The annotations of a data set below `folder`, from the first place that gives them whole.

    A place whose files are there already comes before all others, so that a second run reads what the first did.
    `pins` are SHA-256 by path below `folder`; `eval_only` admits places that lack the training split. Raises
    VLFormerError if no place has this partition or, `offline`, none is there; UnreachableError if all places fail.
    """
    places = [p for p in PLACES.get(dataset, ()) if split_by in p.split_by and (eval_only or not p.eval_only)]
    if not places:
        raise VLFormerError(f"no place is known that has {dataset} split by {split_by}: give its folder with --from")
    get = partial(fetch, progress=progress, report=report, patience=patience, free=free)
    for place in places:
        if files := _files_there(dataset, place, folder):
            return _get_all(place, files, folder, pins or {}, partial(get, offline=True))
    if offline:
        raise VLFormerError(f"offline, and {_what_is_missing(dataset, places, folder)}")
    failures = []
    for place in places:
        try:
            if place.hub:
                _fetch_listing(place, folder, get)
            return _get_all(place, _known_files(dataset, place, folder), folder, pins or {}, get)
        except UnreachableError as error:
            failures.append(str(error))
    raise UnreachableError(f"no place gave the annotations of {dataset}. {' '.join(failures)}")


def _get_all(
    place: Place, files: Sequence[HubFile], folder: Path, pins: Mapping[str, str], get: Callable[..., Fetched]
) -> FetchedPlace:
    got = {}
    for file in files:
        sha256 = pins.get(file.path) or file.sha256
        got[file.path] = get([file.url], folder / file.path, sha256=sha256, size=file.size)
    return FetchedPlace(place, got)


def _what_is_missing(dataset: str, places: Sequence[Place], folder: Path) -> str:
    ways = [
        f"all of {HUB}/datasets/{place.hub} in {folder / place.name}, fetched by this command where there is a network"
        if place.hub
        else f"{place.url} at {folder / dataset}.zip"
        for place in places
    ]
    return f"{folder} holds no annotations of {dataset}: put there {', or '.join(ways)}"


def _files_there(dataset: str, place: Place, folder: Path) -> list[HubFile]:
    """What a place offers, if all of it is on the disk."""
    try:
        files = _known_files(dataset, place, folder)
    except UnreachableError:  # an unusable listing, from a server that was not itself
        return []
    return files if all((folder / file.path).is_file() for file in files) else []


def _known_files(dataset: str, place: Place, folder: Path) -> list[HubFile]:
    """What a place offers as far as the disk knows; nothing for a data set on Hugging Face never listed."""
    if place.url:
        return [HubFile(f"{dataset}.zip", place.url, None, None)]
    listing = folder / place.name / LISTING
    if not listing.is_file():
        return []
    base = f"{_hub()}/datasets/{place.hub}/resolve/main/"
    try:
        rows = [row for row in json.loads(listing.read_bytes()) if row["type"] == "file"]
        rows = [row for row in rows if row["path"].endswith(DATA_SUFFIXES)]
        files = [(str(safe_path(row["path"], place.hub)), row["size"], row.get("lfs", {}).get("oid")) for row in rows]
        return [HubFile(f"{place.name}/{path}", base + quote(path), int(size), sha256) for path, size, sha256 in files]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnreachableError(f"{_hub()} lists the files of {place.hub} in an unknown form ({error!r})") from error


def _fetch_listing(place: Place, folder: Path, get: Callable[..., Fetched]) -> None:
    path = folder / place.name / LISTING
    path.unlink(missing_ok=True)  # what the data set holds may have changed since
    get([f"{_hub()}/api/datasets/{place.hub}/tree/main?recursive=true"], path)
    if not _known_files("", place, folder):
        raise UnreachableError(f"{_hub()}/datasets/{place.hub} holds no file that ends in {', '.join(DATA_SUFFIXES)}")


def _hub() -> str:
    return os.environ.get(HUB_VARIABLE, HUB).rstrip("/")


def fetch_train2014(
    folder: Path,
    names: Collection[str] | None = None,
    *,
    urls: Sequence[str] = TRAIN2014,
    offline: bool = False,
    progress: Progress = ignore,
    report: Report = ignore,
    patience: Patience = PATIENCE,
    free: Callable[[Path], int] = free_bytes,
) -> int:
    """COCO's pictures `names` (None: all 82,783) in `folder / "train2014"`; returns how many were not there before.

    They are read out of the zip file on the server, by ranges of its bytes, unless `train2014.zip` lies in `folder`. A
    picture is checked by its CRC and whole or not there; the next call goes on after a kill. Raises as `fetch` does.
    """
    members = None if names is None else [f"train2014/{name}" for name in dict.fromkeys(names)]
    lacking = members and [member for member in members if not (folder / member).is_file()]
    if members is not None and not lacking:
        return 0
    archive = folder / "train2014.zip"
    extract = partial(extract_members, folder=folder, members=members, progress=progress, free=free)

    def from_server(url: str) -> int:
        with contextlib.closing(RemoteFile(url, patience, report)) as remote:
            return extract(io.BufferedReader(remote, READ_AHEAD), name=url, plan=remote.plan)

    with locked(folder / "train2014", report):
        if archive.is_file():
            with archive.open("rb") as file:
                return extract(file, name=str(archive))
        if offline:
            such = f"{len(lacking)} pictures such as {lacking[0]}" if lacking else "the pictures"
            raise VLFormerError(f"offline, and {folder} lacks {such}: put them there, or {urls[0]} at {archive}")
        return first_place(urls, from_server, archive, report)


class RemoteFile(io.RawIOBase):
    """A zip file on a server, read by ranges of its bytes. To be wrapped in `io.BufferedReader`, which reads ahead.

    Raises GiveUp, also from `readinto`, if the server gives no ranges, if the file is no zip, or if it changes.
    """

    def __init__(self, url: str, patience: Patience, report: Report) -> None:
        self._url, self._patience, self._report = url, patience, report
        self._position = 0
        self._planned: Iterator[range] = iter(())
        self._ahead: deque[tuple[range, Future[tuple[int, bytes]]]] = deque()
        self._pool = ThreadPoolExecutor(CONNECTIONS, "vlformer-ranges")
        self._origin: Origin | None = None
        self._tail = self._window = self._get(f"-{TAIL}")
        self.size = self._tail[0] + len(self._tail[1])
        if b"PK\x05\x06" not in self._tail[1]:
            raise GiveUp(f"is no whole zip file: it ends with {self._tail[1][-40:]!r}")

    def plan(self, ranges: Sequence[tuple[int, int]]) -> None:
        """The ranges (start, end) that will be read next, in this order: they are fetched ahead, several at once."""
        self._planned = _windows(ranges, self.size)
        self._top_up()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Up to the end of what is at hand: a short read is no end of the file."""
        view = memoryview(buffer).cast("B")
        if self._position >= self.size or not len(view):
            return 0
        for start, data in (self._window, self._tail):
            if start <= self._position < start + len(data):
                break
        else:
            start, data = self._window = self._next(len(view))
        piece = data[self._position - start :][: len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to byte {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _next(self, most: int) -> tuple[int, bytes]:
        """Bytes from the position on: fetched ahead, or now."""
        while self._ahead and self._ahead[0][0].stop <= self._position:
            self._ahead.popleft()
        if self._ahead and self._position in self._ahead[0][0]:
            _, future = self._ahead.popleft()
            self._top_up()
            return future.result()
        return self._get(f"{self._position}-{min(self._position + most, self.size) - 1}")

    def _top_up(self) -> None:
        while len(self._ahead) < CONNECTIONS and (window := next(self._planned, None)):
            self._ahead.append((window, self._pool.submit(self._get, f"{window.start}-{window.stop - 1}")))

    def _get(self, span: str) -> tuple[int, bytes]:
        return self._patience.persist(lambda: self._ask(span), self._report)

    def _ask(self, span: str) -> tuple[int, bytes]:
        """Where the bytes of `span`, as a Range header names it, begin; and the bytes."""
        if self.closed:
            raise GiveUp("is not read any more")
        origin = self._origin
        headers = {"Range": f"bytes={span}", **({"If-Range": origin.validator} if origin and origin.validator else {})}
        with ask(self._url, self._patience.timeout, headers) as response:
            given = byte_span(response)
            whole_tail = given and span == f"-{TAIL}" and given.stop == given.total
            if given is None or not (whole_tail or span == f"{given.start}-{given.stop - 1}"):
                raise GiveUp("has changed meanwhile" if origin else "gives no ranges of bytes: fetch the file whole")
            found = Origin.of(self._url, response.headers, given.total)
            if origin is None:
                self._origin = found
            elif not found.is_same(origin):
                raise GiveUp("has changed meanwhile: run it again")
            data = bytearray()
            while block := read_block(response, given.stop - given.start - len(data)):
                data += block
        if len(data) < given.stop - given.start:
            raise TryAgain(f"ended after {len(data)} of bytes {span}")
        return given.start, bytes(data)


def _windows(ranges: Sequence[tuple[int, int]], size: int) -> Iterator[range]:
    """Neighbours joined, as far as one request may go; what is longer by itself is left to be read as it comes.

    >>> list(_windows([(0, 10), (20, 30), (10**6, 10**6 + 9), (10**7, 10**8)], 10**8))
    [range(0, 30), range(1000000, 1000009)]
    """
    joined: range | None = None
    for start, end in ranges:
        end = min(end, size)
        if joined and start <= joined.stop + GAP and end - joined.start <= WINDOW:
            joined = range(joined.start, max(joined.stop, end))
            continue
        if joined:
            yield joined
        joined = range(start, end) if end - start <= WINDOW else None
    if joined:
        yield joined
