"""Fetching files: places in order, patience with servers that fail, resuming where a kill left off.

What has come of `<name>` lies under `.<name>.partial`, and `.<name>.partial.json` says of which file it is the start
(URL, ETag, Last-Modified, length), so that the start of one file is never continued with the end of another.
The standard library's client is used: the one that huggingface_hub brings changed its name between versions.
"""

from __future__ import annotations

import json
import random
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from pathlib import Path
from typing import IO, NamedTuple, NoReturn, TypeVar
from urllib import request as web
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from vlformer_cli import __version__
from vlformer_cli.data.store import file_sha256
from vlformer_cli.data.unpack import Progress, Report, check_space, free_bytes, ignore, locked, publish
from vlformer_cli.types import VLFormerError, one_line

USER_AGENT = f"vlformer/{__version__}"
SCHEMES = ("http", "https")
BLOCK = 1 << 18
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
PASSING = (408, 425, 429)  # statuses below 500 that another attempt may not meet
MAGIC = {".zip": b"PK\x03\x04", ".parquet": b"PAR1", ".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b"}
ENDINGS = {".parquet": (b"PAR1",), ".json": (b"}", b"]")}
ZIP_TAIL = 22 + 0xFFFF  # bytes: the record that ends a zip file, with the longest comment
WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")

T = TypeVar("T")


class UnreachableError(VLFormerError):
    """Every place failed; the message says which and why."""


class TryAgain(Exception):
    """An attempt failed in a way that the next one may not."""

    def __init__(self, reason: str, *, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait
        self.gained = False
        """Whether so much came before the failure that failures are counted anew."""


class GiveUp(Exception):
    """A place will not give the file, however often it is asked."""

    def __init__(self, reason: str, *, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Fetched:
    """A file that is whole and under its final name."""

    path: Path
    sha256: str
    """To be recorded, and given to `fetch` the next time."""
    size: int
    url: str | None
    """Where it came from; None if it was there already."""


@dataclass(frozen=True)
class Patience:
    """What is borne from one place before the next is asked. Tests replace the waiting."""

    attempts: int = 5
    """Failures in a row."""
    worthwhile: int = 1 << 18
    """Bytes further than ever before that make the next failure the first one again."""
    timeout: float = 30.0
    """Seconds without a byte."""
    first_wait: float = 1.0
    """Seconds; doubled after each failure."""
    longest_wait: float = 60.0
    """Seconds; also where the server asks for more."""
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    """0 to 1: how much of a wait's second half is waited, so that many clients do not come back at once."""

    def persist(self, attempt: Callable[[], T], report: Report) -> T:
        """Calls `attempt` until it returns; raises GiveUp after too many failures in a row."""
        failures = 0
        while True:
            try:
                return attempt()
            except TryAgain as error:
                failures = 1 if error.gained else failures + 1
                if failures >= self.attempts:
                    raise GiveUp(f"{error} (failure {failures} in a row)") from error
                wait = self.first_wait * 2 ** (failures - 1) * (1 + self.jitter()) / 2
                wait = min(max(wait, error.wait), self.longest_wait)
                report(f"{error}: trying again in {wait:.0f} s")
                self.sleep(wait)


PATIENCE = Patience()


def fetch(
    urls: Sequence[str],
    path: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    offline: bool = False,
    progress: Progress = ignore,
    report: Report = ignore,
    patience: Patience = PATIENCE,
    free: Callable[[Path], int] = free_bytes,
) -> Fetched:
    """The file at `path`, from the first of `urls` that gives it; a file that is there already is checked and kept.

    A kill at any moment leaves nothing under `path`, and the next call goes on from there. Of two processes that fetch
    one file, one waits for the other. Raises VLFormerError if the file there is a wrong one, if it is not there and
    `offline`, or if the disk is too small; UnreachableError if no place gives a file of this kind, `size` and `sha256`.
    """
    if offline and not path.exists():
        raise VLFormerError(f"offline, and {path} is not there: fetch {urls[0]} elsewhere and put it at {path}")
    try:
        with locked(path, report):
            if path.exists():
                return _kept(path, sha256, size)
            return first_place(
                urls, lambda url: _Download(url, path, sha256, size, progress, free).run(patience, report), path, report
            )
    except OSError as error:  # the disk's; the network's have become TryAgain or GiveUp
        raise VLFormerError(f"{path} could not be written ({error}): mend that or choose another folder") from error


def first_place(urls: Sequence[str], work: Callable[[str], T], path: Path, report: Report) -> T:
    """What `work` returns for the first URL that it does not give up; raises UnreachableError with every reason."""
    failures = []
    for url in urls:
        try:
            return work(url)
        except GiveUp as error:
            failures.append(f"{url} {error}")
            report(failures[-1])
    raise UnreachableError(
        f"{path.name} could not be fetched: {'; '.join(failures)}. Run it again later (what came is kept), "
        f"or put the file at {path} yourself"
    )


def _kept(path: Path, sha256: str | None, size: int | None) -> Fetched:
    kept = Fetched(path, file_sha256(path), path.stat().st_size, None)
    if complaint := _complaint_about(path, kept, sha256, size):
        raise VLFormerError(f"{path} {complaint}; move it away to fetch it again")
    for leftover in _partial_names(path):  # of a kill after the name was given, or of a file put there by hand
        leftover.unlink(missing_ok=True)
    return kept


def _partial_names(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.partial.json")


@dataclass(frozen=True)
class Origin:
    """Of which file on which server bytes are."""

    url: str
    etag: str
    modified: str
    """Last-Modified, where it is older than the answer: else the file may change again within that second."""
    total: int | None

    @classmethod
    def of(cls, url: str, headers: HTTPMessage, total: int | None) -> Origin:
        modified, date = headers.get("Last-Modified", ""), headers.get("Date", "")
        try:
            strong = parsedate_to_datetime(date) > parsedate_to_datetime(modified)
        except (TypeError, ValueError):
            strong = False
        return cls(url, headers.get("ETag", ""), modified if strong else "", total)

    @property
    def validator(self) -> str:
        """For If-Range, which takes no weak ETag; empty if the server gives none."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def is_same(self, other: Origin) -> bool:
        """Whether nothing that both know differs."""
        pairs = ((self.etag, other.etag), (self.modified, other.modified), (self.total, other.total))
        return all(mine == theirs for mine, theirs in pairs if mine and theirs)


class ByteSpan(NamedTuple):
    """Bytes `start` to before `stop` of a file that has `total`."""

    start: int
    stop: int
    total: int


class _Download:
    """One file from one place, over as many requests as it takes."""

    def __init__(
        self,
        url: str,
        path: Path,
        sha256: str | None,
        size: int | None,
        progress: Progress,
        free: Callable[[Path], int],
    ) -> None:
        self.url, self.path, self.sha256, self.size = url, path, sha256, size
        self.progress, self.free = progress, free
        self.data, self.note = _partial_names(path)
        self.furthest = self._come()

    def run(self, patience: Patience, report: Report) -> Fetched:
        """Raises GiveUp when the place is not worth another attempt."""

        def attempt() -> Fetched:
            try:
                return self._attempt(patience.timeout)
            except TryAgain as error:
                error.gained = self._come() >= self.furthest + patience.worthwhile
                self.furthest = max(self.furthest, self._come())
                raise

        return patience.persist(attempt, report)

    def _attempt(self, timeout: float) -> Fetched:
        kept = self._continuable()
        if kept and kept.total == self._come():  # the kill came between the last byte and the name
            return self._finish(kept, resumed=True)
        headers = {}
        if kept:
            headers = {"Range": f"bytes={self._come()}-", **({"If-Range": kept.validator} if kept.validator else {})}
        try:
            response = ask(self.url, timeout, headers)
        except GiveUp as error:
            if kept and error.status == 416:
                self._discard("has no such bytes any more")
            raise
        with response:
            resumed = response.status == 206
            origin = self._go_on(kept, response) if resumed else self._begin(response)
            self._copy(response, origin)
        return self._finish(origin, resumed)

    def _continuable(self) -> Origin | None:
        """The origin of what an earlier attempt left, if it can be continued."""
        try:
            kept = Origin(**json.loads(self.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        fits = kept.url == self.url and 0 < self._come() <= (kept.total or self._come())
        return kept if fits and (kept.validator or self.sha256) else None

    def _go_on(self, kept: Origin | None, response: HTTPResponse) -> Origin:
        span = byte_span(response)
        if kept and span and span.start == self._come():
            origin = Origin.of(self.url, response.headers, span.total)
            if origin.is_same(kept):
                self._check_space(origin)
                return origin
        return self._discard("has changed, or sends other bytes than it was asked for")

    def _begin(self, response: HTTPResponse) -> Origin:
        """Drops what there was, once it is sure that something better comes."""
        length = response.headers.get("Content-Length", "")
        origin = Origin.of(self.url, response.headers, int(length) if length.isdecimal() else None)
        if origin.total is None and not response.chunked and not self.sha256 and not _tells_its_end(self.path.name):
            raise GiveUp("does not say how long the file is: whether it came whole could not be told")
        if self.size is not None and origin.total not in (None, self.size):
            raise GiveUp(f"has a file of {origin.total:,} bytes instead of {self.size:,}")
        self._check_space(origin)
        first = read_block(response, BLOCK)
        if complaint := _complaint_about_head(first, self.path.name):
            raise GiveUp(f"sends what {complaint}")
        self.data.write_bytes(b"")
        self.note.write_text(json.dumps(asdict(origin)), encoding="utf-8")
        self.data.write_bytes(first)
        return origin

    def _copy(self, response: HTTPResponse, origin: Origin) -> None:
        done, total = self._come(), origin.total
        with self.data.open("ab") as file:
            self.progress(done, total)
            while block := read_block(response, BLOCK if total is None else min(BLOCK, total - done)):
                done += file.write(block)
                self.progress(done, total)
        if total is not None and done < total:
            raise TryAgain(f"ended after {done:,} of {total:,} bytes")

    def _finish(self, origin: Origin, resumed: bool) -> Fetched:
        fetched = Fetched(self.path, file_sha256(self.data), self._come(), self.url)
        if complaint := _complaint_about(self.data, fetched, self.sha256, self.size):
            if resumed or origin.total is None:  # perhaps a joint that does not fit, or a cut
                self._discard(f"gave a file that {complaint}")
            self._clear()
            raise GiveUp(f"gave a file that {complaint}")
        publish(self.data, self.path)
        self._clear()
        return fetched

    def _check_space(self, origin: Origin) -> None:
        if origin.total is not None:
            check_space(origin.total - self._come(), self.path.parent, self.free)

    def _come(self) -> int:
        return self.data.stat().st_size if self.data.exists() else 0

    def _discard(self, reason: str) -> NoReturn:
        self._clear()
        raise TryAgain(f"{reason}: starting from the first byte")

    def _clear(self) -> None:
        self.data.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def ask(url: str, timeout: float, headers: dict[str, str]) -> HTTPResponse:
    """The answer to a GET, with status 200 or 206; proxies come from the environment. Raises TryAgain or GiveUp."""
    if urlsplit(url).scheme not in SCHEMES:
        raise GiveUp("is no http or https address")
    question = web.Request(url, headers={"User-Agent": USER_AGENT, **headers})
    try:
        response: HTTPResponse = _opener().open(question, timeout=timeout)
    except HTTPError as error:
        with error:
            raise _refusal(error) from error
    except (OSError, HTTPException) as error:
        raise _network_failure(error) from error
    if response.status in (200, 206) and response.headers.get("Content-Encoding", "identity") == "identity":
        return response
    with response:
        raise GiveUp(f"answered {response.status} with encoding {response.headers.get('Content-Encoding')}")


def byte_span(response: HTTPResponse) -> ByteSpan | None:
    """Which bytes an answer holds; None if it is the whole file, or says nothing that can be read."""
    found = CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    return ByteSpan(int(found[1]), int(found[2]) + 1, int(found[3])) if found and response.status == 206 else None


def read_block(response: HTTPResponse, most: int) -> bytes:
    """Up to `most` bytes, as soon as there are any; empty at the end. Raises TryAgain where the connection fails."""
    try:
        return response.read1(most)
    except (OSError, HTTPException) as error:
        raise _network_failure(error) from error


def _opener() -> web.OpenerDirector:
    """urllib's own, less what opens ftp:, file: and data: addresses."""
    opener = web.OpenerDirector()
    for handler in (
        web.ProxyHandler(),
        web.UnknownHandler(),
        web.HTTPHandler(),
        web.HTTPSHandler(),
        web.HTTPDefaultErrorHandler(),
        web.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)
    return opener


class _Redirects(web.HTTPRedirectHandler):
    def redirect_request(
        self, req: web.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> web.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in SCHEMES or (req.type == "https" and scheme == "http"):
            raise GiveUp(f"leads on to {newurl}: only http and https are followed, and https not to http")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _refusal(error: HTTPError) -> TryAgain | GiveUp:
    reason = f"answered {error.code} {error.reason}"
    if error.code in PASSING or error.code >= 500:
        wait = error.headers.get("Retry-After", "")
        return TryAgain(reason, wait=float(wait) if wait.isdecimal() else 0.0)
    return GiveUp(reason, status=error.code)


def _network_failure(error: Exception) -> TryAgain | GiveUp:
    cause = error.reason if isinstance(error, URLError) else error
    said = one_line(cause) if isinstance(cause, Exception) else str(cause)
    reason = f"failed ({said or type(cause).__name__})"
    unknown_host = isinstance(cause, socket.gaierror) and cause.errno == socket.EAI_NONAME
    if unknown_host or isinstance(cause, (ssl.SSLCertVerificationError, InvalidURL)):
        return GiveUp(reason)
    return TryAgain(reason)


def _complaint_about(path: Path, fetched: Fetched, sha256: str | None, size: int | None) -> str | None:
    """What is wrong with the bytes at `path`, to be called `fetched.path.name`; None if nothing is."""
    name = fetched.path.name
    with path.open("rb") as file:
        head = file.read(BLOCK)
        file.seek(max(0, fetched.size - ZIP_TAIL))
        tail = file.read()
    if complaint := _complaint_about_head(head, name):
        return complaint
    if size is not None and fetched.size != size:
        return f"has {fetched.size:,} bytes instead of {size:,}"
    if not _ends_well(tail, name):
        return f"lacks the end of a {Path(name).suffix} file: it was cut off"
    if sha256 is not None and fetched.sha256 != sha256.lower():
        return f"has SHA-256 {fetched.sha256} instead of the expected {sha256}"
    return None


def _complaint_about_head(head: bytes, name: str) -> str | None:
    """As above, of the first bytes alone."""
    suffix, start = Path(name).suffix, head.lstrip()[:80]
    magic = MAGIC.get(suffix, b"")
    if not head:
        return "is empty"
    if start.lower().startswith(WEB_PAGE):
        return f"is a web page and not {name}: {start!r}"
    if head[: len(magic)] != magic[: len(head)] or (suffix == ".json" and start[:1] not in b"{["):
        return f"is no {suffix} file: it begins with {head[:16]!r}"
    return None


def _ends_well(tail: bytes, name: str) -> bool:
    suffix = Path(name).suffix
    return b"PK\x05\x06" in tail if suffix == ".zip" else tail.rstrip().endswith(ENDINGS.get(suffix, b""))


def _tells_its_end(name: str) -> bool:
    """Whether a whole file of this name can be told from one that was cut off."""
    return not _ends_well(b"", name)
