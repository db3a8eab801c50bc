"""Downloads, against a local server that drops connections, lies, changes its files, stalls and serves wrong ones."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from email.message import Message
from http.client import HTTPMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from test_unpack import kill_at_every_step, make_zip

from vlformer_cli import __version__
from vlformer_cli.data import download, mirrors
from vlformer_cli.data.download import Fetched, GiveUp, Patience, UnreachableError, ask, fetch
from vlformer_cli.data.mirrors import PLACES, Place, fetch_annotations, fetch_train2014
from vlformer_cli.data.unpack import locked
from vlformer_cli.types import VLFormerError, one_line

DATA = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(310_000)
OLD = "Mon, 03 Feb 2020 10:00:00 GMT"


@dataclass(frozen=True)
class Answer:
    """How the server answers a request; by default as it should."""

    status: int = 0
    """0: 200 or 206, as the request asks."""
    body: bytes | None = None
    """In place of the file."""
    etag: str = '"v1"'
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    heeds_if_range: bool = True
    drop_after: int | None = None
    """Bytes of the body; the connection is closed then."""
    reset: bool = False
    """Whether it is closed with a reset, as by a crash."""
    length: int | None = -1
    """What Content-Length claims; -1: the truth, None: nothing."""
    chunked: bool = False
    span: str = ""
    """In place of a true Content-Range."""
    stall: bool = False


@dataclass(frozen=True)
class Asked:
    path: str
    headers: Message
    sent: list[int]
    """One number: the bytes of the body that were sent."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes | Path] = {}
        self.answers: list[Answer] = []
        """For the next requests, in turn; `usual` after those."""
        self.usual = Answer()
        self.asked: list[Asked] = []
        self.watch: Callable[[], None] = lambda: None
        """Called after each piece that is sent."""
        self.end = threading.Event()

    def url(self, path: str = "/file.bin") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def sent(self) -> int:
        return sum(asked.sent[0] for asked in self.asked)

    def ranges(self) -> list[str | None]:
        return [asked.headers.get("Range") for asked in self.asked]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)  # what is sent is soon received

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        server, self.close_connection = self.server, True
        self.asked = Asked(self.path, self.headers, [0])
        server.asked.append(self.asked)
        answer = server.answers.pop(0) if server.answers else server.usual
        if answer.stall:
            server.end.wait(60)
            return
        content = answer.body if answer.body is not None else server.files.get(self.path)
        if content is None and not answer.status:
            answer = Answer(404)
        if content is None or answer.status >= 300:
            content = b""
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        span = self._span(answer, size)
        if span and span.stop <= span.start:
            self._start(replace(answer, status=416, span=answer.span or f"bytes */{size}"), 0, "")
            return
        start, stop = (span.start, span.stop) if span else (0, size)
        self._start(answer, stop - start, f"bytes {start}-{stop - 1}/{size}" if span else "")
        self._send(content, start, stop if answer.drop_after is None else min(stop, start + answer.drop_after), answer)

    def _start(self, answer: Answer, length: int, span: str) -> None:
        self.send_response(answer.status or (206 if span else 200))
        claims = {"Connection": "close", "ETag": answer.etag, "Content-Range": answer.span or span}
        if answer.chunked:
            claims["Transfer-Encoding"] = "chunked"
        elif answer.length is not None:
            claims["Content-Length"] = str(length if answer.length == -1 else answer.length)
        for name, value in {**claims, **answer.headers}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def _span(self, answer: Answer, size: int) -> slice | None:
        """The bytes to send; none of them where the file has none of those asked for. None for the whole file."""
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        validators = ("", answer.etag, answer.headers.get("Last-Modified", ""))
        changed = answer.heeds_if_range and self.headers.get("If-Range", "") not in validators
        if not found or not answer.ranges or changed or answer.status:
            return None
        if not found[1]:
            return slice(max(0, size - int(found[2])), size)
        return slice(int(found[1]), min(int(found[2] or size) + 1, size))

    def _send(self, content: bytes | Path, start: int, stop: int, answer: Answer) -> None:
        while start < stop:
            step = min(stop - start, 1 << 14)
            if isinstance(content, bytes):
                piece = content[start : start + step]
            else:
                with content.open("rb") as file:
                    file.seek(start)
                    piece = file.read(step)
            self.asked.sent[0] += step  # before the client can have it
            self.wfile.write(b"%x\r\n%b\r\n" % (step, piece) if answer.chunked else piece)
            start += step
            self.server.watch()
        if answer.chunked and answer.drop_after is None:
            self.wfile.write(b"0\r\n\r\n")
        if answer.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves DATA as /file.bin, at first faultlessly; no proxy stands between."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with Server() as server:
        server.files["/file.bin"] = DATA
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.end.set()
        server.shutdown()
        thread.join()


class Waits(list[float]):
    """Patience that notes the waits in place of waiting."""

    def patience(self, **options: Any) -> Patience:
        return Patience(**{"sleep": self.append, "jitter": lambda: 1.0, "timeout": 10.0, **options})


@pytest.fixture
def waits() -> Waits:
    return Waits()


def names(folder: Path) -> list[str]:
    """What lies in a folder, but for locks."""
    return sorted(p.name for p in folder.iterdir() if not p.name.endswith(".lock"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zip_of(tmp_path: Path, size: int = 100_000) -> bytes:
    path = make_zip(tmp_path / "made.zip", [("a", random.Random(3).randbytes(size))], zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.unlink()
    return data


def test_a_file_comes_whole(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = tmp_path / "new" / "folder" / "file.bin"
    got = fetch([server.url()], path, progress=lambda *counts: seen.append(counts))
    assert got == Fetched(path, sha256(DATA), len(DATA), server.url())
    assert path.read_bytes() == DATA
    assert names(path.parent) == ["file.bin"]
    assert seen == sorted(seen)
    assert seen[-1] == (len(DATA), len(DATA))
    assert {total for _, total in seen} == {len(DATA)}
    (asked,) = server.asked
    assert asked.headers["User-Agent"] == f"vlformer/{__version__}"
    assert asked.headers["Accept-Encoding"] == "identity"


def test_a_file_that_is_there_is_checked_and_kept(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(OTHER)
    (tmp_path / ".file.bin.partial.json").write_text("{}")
    assert fetch([server.url()], path) == Fetched(path, sha256(OTHER), len(OTHER), None)
    assert fetch([server.url()], path, sha256=sha256(OTHER).upper(), size=len(OTHER)).url is None
    assert names(tmp_path) == ["file.bin"]
    with pytest.raises(VLFormerError, match=f"file.bin has SHA-256 {sha256(OTHER)} .* {sha256(DATA)}; move it away"):
        fetch([server.url()], path, sha256=sha256(DATA))
    with pytest.raises(VLFormerError, match="has 310,000 bytes instead of 300,000; move it away"):
        fetch([server.url()], path, size=len(DATA))
    assert path.read_bytes() == OTHER
    assert server.asked == []


@pytest.mark.parametrize("seed", range(5))
def test_drops_at_random_places_are_resumed(server: Server, tmp_path: Path, waits: Waits, seed: int) -> None:
    dice = random.Random(seed)
    server.answers = [Answer(drop_after=dice.randrange(1, 60_000)) for _ in range(12)]
    seen: list[int] = []
    got = fetch(
        [server.url()],
        tmp_path / "file.bin",
        patience=waits.patience(worthwhile=1),
        progress=lambda done, total: seen.append(done),
    )
    assert got.sha256 == sha256(DATA)
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.sent() == len(DATA)  # no byte twice
    assert seen == sorted(seen)
    assert waits == [1.0] * (len(server.asked) - 1)  # each got further, so none counted as the second in a row
    assert {asked.headers["If-Range"] for asked in server.asked[1:]} == {'"v1"'}


def test_resets_are_resumed(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.answers = [Answer(drop_after=70_000, reset=True) for _ in range(3)]
    said: list[str] = []
    fetch([server.url()], tmp_path / "file.bin", patience=waits.patience(), report=said.append)
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert all("reset" in text or "ended after" in text for text in said)
    assert len(waits) == 3


def test_a_run_goes_on_where_the_last_was_stopped(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.answers = [Answer(drop_after=100_000), *[Answer(503)] * 4]
    with pytest.raises(UnreachableError, match="503"):
        fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert names(tmp_path) == [".file.bin.partial", ".file.bin.partial.json"]
    fetch([server.url()], tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.ranges()[-1] == "bytes=100000-"
    assert server.sent() == len(DATA)
    assert names(tmp_path) == ["file.bin"]


def test_a_server_that_ignores_ranges_starts_over(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.usual = Answer(ranges=False)
    server.answers = [Answer(drop_after=200_000), Answer(ranges=False, drop_after=250_000)]
    fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.ranges() == [None, "bytes=200000-", "bytes=250000-"]
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize("heeds_if_range", [True, False])
@pytest.mark.parametrize("same_size", [True, False])
def test_a_file_that_changes_between_attempts(
    server: Server, tmp_path: Path, waits: Waits, heeds_if_range: bool, same_size: bool
) -> None:
    new = OTHER[: len(DATA)] if same_size else OTHER
    server.answers = [Answer(drop_after=150_000)]
    server.usual = Answer(body=new, etag='"v2"', heeds_if_range=heeds_if_range)
    got = fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert (tmp_path / "file.bin").read_bytes() == new
    assert got.sha256 == sha256(new)


def test_a_change_of_length_alone_is_seen(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.answers = [Answer(drop_after=150_000), Answer(body=OTHER, etag='"v1"')]
    server.usual = Answer(body=OTHER)
    fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert (tmp_path / "file.bin").read_bytes() == OTHER


@pytest.mark.parametrize(
    ("etag", "modified", "if_range"),
    [
        ("", OLD, OLD),
        ('W/"weak"', OLD, OLD),
        ('"v1"', OLD, '"v1"'),
        ("", "", None),
        ('W/"weak"', "", None),
        ("", "Fri, 01 Jan 2100 00:00:00 GMT", None),  # not older than the answer
        ("", "yesterday", None),
    ],
)
def test_only_what_identifies_the_bytes_is_trusted(
    server: Server, tmp_path: Path, waits: Waits, etag: str, modified: str, if_range: str | None
) -> None:
    server.usual = Answer(etag=etag, headers={"Last-Modified": modified})
    server.answers = [Answer(etag=etag, headers={"Last-Modified": modified}, drop_after=100_000)]
    fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.asked[1].headers["If-Range"] == if_range
    assert server.asked[1].headers["Range"] == ("bytes=100000-" if if_range else None)


def test_a_known_sha256_identifies_them_too(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.usual = Answer(etag="")
    server.answers = [Answer(etag="", drop_after=100_000)]
    fetch([server.url()], tmp_path / "file.bin", sha256=sha256(DATA), patience=waits.patience())
    assert server.ranges() == [None, "bytes=100000-"]
    assert server.sent() == len(DATA)


def test_a_joint_that_does_not_fit_is_found_by_the_sha256(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.answers = [Answer(body=OTHER[: len(DATA)], drop_after=100_000)]  # other bytes under the same ETag
    said: list[str] = []
    fetch([server.url()], tmp_path / "f.bin", sha256=sha256(DATA), patience=waits.patience(), report=said.append)
    assert (tmp_path / "f.bin").read_bytes() == DATA
    assert server.ranges() == [None, "bytes=100000-", None]
    assert "starting from the first byte" in said[-1]


@pytest.mark.parametrize(
    "second",
    [
        Answer(span="bytes 0-299999/300000"),
        Answer(span="bytes 99999-299999/300000"),
        Answer(span="bytes 100000-299999/300001"),
        Answer(span="bytes 100000-299999/*"),
        Answer(span="nonsense"),
        Answer(416),
        Answer(416, span="bytes */100000"),
    ],
)
def test_a_wrong_answer_to_a_range_starts_over(server: Server, tmp_path: Path, waits: Waits, second: Answer) -> None:
    server.answers = [Answer(drop_after=100_000), second]
    fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.ranges() == [None, "bytes=100000-", None]


def test_a_range_that_nobody_asked_for(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.usual = Answer(206, span="bytes 0-299999/300000")
    with pytest.raises(UnreachableError, match="other bytes than it was asked for"):
        fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert names(tmp_path) == []


def test_a_whole_file_without_its_name_needs_no_server(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch([server.url()], tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()
    assert fetch([server.url()], tmp_path / "file.bin").sha256 == sha256(DATA)
    assert len(server.asked) == 1


def test_a_partial_file_that_is_too_long_or_of_another_url_is_not_continued(server: Server, tmp_path: Path) -> None:
    for url, size in ((server.url(), 400_000), (server.url("/other"), 1000)):
        note = {"url": url, "etag": '"v1"', "modified": "", "total": 300_000}
        (tmp_path / ".f.bin.partial").write_bytes(bytes(size))
        (tmp_path / ".f.bin.partial.json").write_text(json.dumps(note))
        fetch([server.url()], tmp_path / "f.bin")
        assert (tmp_path / "f.bin").read_bytes() == DATA
        (tmp_path / "f.bin").unlink()
    for note in ("", "[]", "{", '{"url": 1}'):
        (tmp_path / ".f.bin.partial").write_bytes(b"12345")
        (tmp_path / ".f.bin.partial.json").write_text(note)
        fetch([server.url()], tmp_path / "f.bin")
        assert (tmp_path / "f.bin").read_bytes() == DATA
        (tmp_path / "f.bin").unlink()
    assert set(server.ranges()) == {None}


def test_waits_double_and_end(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.usual = Answer(503)
    said: list[str] = []
    with pytest.raises(UnreachableError, match=r"answered 503 Service Unavailable \(failure 7 in a row\)"):
        fetch(
            [server.url()],
            tmp_path / "file.bin",
            patience=waits.patience(attempts=7, longest_wait=10),
            report=said.append,
        )
    assert waits == [1, 2, 4, 8, 10, 10]
    assert len(server.asked) == 7
    assert "answered 503 Service Unavailable: trying again in 2 s" in said
    assert names(tmp_path) == []


def test_waits_are_spread(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.answers = [Answer(500), Answer(502), Answer(429), Answer(408)]
    fetch([server.url()], tmp_path / "file.bin", patience=waits.patience(jitter=iter([0, 0.5, 1, 0]).__next__))
    assert waits == [0.5, 1.5, 4, 4]


def test_a_server_may_ask_for_a_longer_wait(server: Server, tmp_path: Path, waits: Waits) -> None:
    for wait in ("17", "9999", "Wed, 21 Oct 2015 07:28:00 GMT"):
        server.answers.append(Answer(503, headers={"Retry-After": wait}))
    fetch([server.url()], tmp_path / "file.bin", patience=waits.patience(longest_wait=60))
    assert waits == [17, 60, 4]
    assert (tmp_path / "file.bin").read_bytes() == DATA


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_what_will_not_change_is_not_asked_again(server: Server, tmp_path: Path, waits: Waits, status: int) -> None:
    server.answers = [Answer(status)]
    said: list[str] = []
    urls = [server.url("/gone.bin"), server.url()]
    got = fetch(urls, tmp_path / "file.bin", patience=waits.patience(), report=said.append)
    assert got.url == urls[1]
    assert waits == []
    assert [asked.path for asked in server.asked] == ["/gone.bin", "/file.bin"]
    assert f"{urls[0]} answered {status}" in said[0]


def test_every_place_and_reason_is_named(server: Server, tmp_path: Path, waits: Waits) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/f"
        urls = [server.url("/a"), closed, "ftp://host/f", "file:///etc/passwd", server.url("/b c")]
        with pytest.raises(UnreachableError) as caught:
            fetch(urls, tmp_path / "file.bin", patience=waits.patience(attempts=2))
    message = str(caught.value)
    assert f"{server.url('/a')} answered 404 Not Found" in message
    assert f"{closed} failed (Connection refused) (failure 2 in a row)" in message
    assert "ftp://host/f is no http or https address" in message
    assert "file:///etc/passwd is no http or https address" in message
    assert "put the file at" in message
    assert waits == [1.0]
    assert names(tmp_path) == []


def test_a_stall_is_a_dropped_connection(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.answers = [Answer(stall=True), Answer(drop_after=50_000), Answer(stall=True)]
    said: list[str] = []
    fetch([server.url()], tmp_path / "f.bin", patience=waits.patience(timeout=0.3, attempts=50), report=said.append)
    assert (tmp_path / "f.bin").read_bytes() == DATA
    assert [text for text in said if "timed out" in text]
    assert server.sent() == len(DATA)


@pytest.mark.parametrize("drop", [None, 30_000])
def test_a_length_that_is_too_long(server: Server, tmp_path: Path, waits: Waits, drop: int | None) -> None:
    server.usual = Answer(length=400_000, ranges=False, drop_after=drop)
    with pytest.raises(UnreachableError, match=f"ended after {drop or 300_000:,} of 400,000 bytes"):
        fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert not (tmp_path / "file.bin").exists()
    assert len(waits) == 4


def test_a_length_that_is_too_short(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.files["/file.zip"] = zip_of(tmp_path)
    server.usual = Answer(length=50_000)
    with pytest.raises(UnreachableError, match=r"lacks the end of a \.zip file: it was cut off"):
        fetch([server.url("/file.zip")], tmp_path / "file.zip", patience=waits.patience())
    with pytest.raises(UnreachableError, match="SHA-256"):
        fetch([server.url()], tmp_path / "file.bin", sha256=sha256(DATA), patience=waits.patience())
    with pytest.raises(UnreachableError, match="has a file of 50,000 bytes instead of 300,000"):
        fetch([server.url()], tmp_path / "file.bin", size=len(DATA), patience=waits.patience())
    assert names(tmp_path) == []


@pytest.mark.parametrize("chunked", [True, False])
def test_no_length(server: Server, tmp_path: Path, waits: Waits, chunked: bool) -> None:
    data = zip_of(tmp_path)
    server.files["/file.zip"] = data
    server.usual = Answer(length=None, chunked=chunked, ranges=False)
    server.answers = [Answer(length=None, chunked=chunked, drop_after=30_000)]
    seen: list[int | None] = []
    got = fetch(
        [server.url("/file.zip")],
        tmp_path / "file.zip",
        patience=waits.patience(),
        progress=lambda done, total: seen.append(total),
    )
    assert (tmp_path / "file.zip").read_bytes() == data
    assert got.size == len(data)
    assert set(seen) == {None}
    assert waits == [1.0]


def test_no_length_and_no_way_to_tell_the_end(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.usual = Answer(length=None, chunked=True)
    fetch([server.url()], tmp_path / "chunks.bin", patience=waits.patience())
    assert (tmp_path / "chunks.bin").read_bytes() == DATA
    (tmp_path / "chunks.bin").unlink()
    server.usual = Answer(length=None)
    with pytest.raises(UnreachableError, match="does not say how long the file is"):
        fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert names(tmp_path) == []
    fetch([server.url()], tmp_path / "file.bin", sha256=sha256(DATA), patience=waits.patience())
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_a_wrong_file_costs_nothing_that_came_before(server: Server, tmp_path: Path, waits: Waits) -> None:
    data = zip_of(tmp_path)
    server.files["/file.zip"] = data
    page = b"\n<!DOCTYPE HTML><title>The file has moved</title>" + b" " * 200_000
    server.answers = [Answer(drop_after=40_000), Answer(404), Answer(body=page, headers={"Content-Type": "text/html"})]
    urls = [server.url("/file.zip"), server.url("/page.zip")]
    with pytest.raises(UnreachableError, match=r"page\.zip sends what is a web page and not file\.zip: b'<!DOCTYPE"):
        fetch(urls, tmp_path / "file.zip", patience=waits.patience())
    assert not (tmp_path / "file.zip").exists()
    fetch(urls, tmp_path / "file.zip", patience=waits.patience())
    assert (tmp_path / "file.zip").read_bytes() == data
    assert server.ranges()[-1] == "bytes=40000-"


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("a.zip", b"", "is empty"),
        ("a.zip", b"GIF89a" * 100, r"is no \.zip file: it begins with b'GIF89aGIF89aGIF8'"),
        ("a.zip", b"PK\x03\x04" + bytes(500), r"lacks the end of a \.zip file"),
        ("a.tar.gz", b"PK\x03\x04" + bytes(500), r"is no \.gz file"),
        ("a.parquet", b"PAR1" + bytes(500), r"lacks the end of a \.parquet file"),
        ("a.json", b'{"message": "cut of', r"lacks the end of a \.json file"),
        ("a.json", b"Not Found", r"is no \.json file"),
        ("a.bin", b"<html>", "is a web page"),
        ("a.bin", b'<?xml version="1.0"?><Error><Code>NoSuchKey', "is a web page"),
    ],
)
def test_files_of_another_kind(server: Server, tmp_path: Path, name: str, body: bytes, words: str) -> None:
    server.files["/f"] = body
    with pytest.raises(UnreachableError, match=words):
        fetch([server.url("/f")], tmp_path / name)
    assert names(tmp_path) == []
    (tmp_path / name).write_bytes(body)
    with pytest.raises(VLFormerError, match=f"{words}.*move it away"):
        fetch([server.url("/f")], tmp_path / name)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("a.parquet", b"PAR1..PAR1"),
        ("a.json", b' \n[{"a": 1}]\n'),
        ("a.tar.gz", gzip.compress(b"tar", mtime=0)),
        ("a.p", b"(lp0\n."),
    ],
)
def test_files_of_the_right_kind(server: Server, tmp_path: Path, name: str, body: bytes) -> None:
    server.files["/f"] = body
    assert fetch([server.url("/f")], tmp_path / name).sha256 == sha256(body)


def test_a_wrong_sha256(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.files["/other"] = OTHER
    words = f"gave a file that has SHA-256 {sha256(OTHER)} instead of the expected {sha256(DATA)}"
    with pytest.raises(UnreachableError, match=words):
        fetch([server.url("/other")], tmp_path / "f.bin", sha256=sha256(DATA), patience=waits.patience())
    assert waits == []
    assert names(tmp_path) == []
    got = fetch([server.url("/other"), server.url()], tmp_path / "f.bin", sha256=sha256(DATA))
    assert got.url == server.url()


def test_the_disk_is_asked_first(server: Server, tmp_path: Path, waits: Waits) -> None:
    with pytest.raises(VLFormerError, match="has 299,999 bytes free and needs 300,000: free some") as caught:
        fetch([server.url(), server.url()], tmp_path / "file.bin", free=lambda folder: 299_999)
    assert not isinstance(caught.value, UnreachableError)  # another place would not help
    assert len(server.asked) == 1
    assert names(tmp_path) == []
    server.answers = [Answer(drop_after=100_000)]
    free = iter([300_000, 199_999, 200_000])
    with pytest.raises(VLFormerError, match="needs 200,000"):
        fetch([server.url()], tmp_path / "file.bin", free=lambda folder: next(free), patience=waits.patience())
    fetch([server.url()], tmp_path / "file.bin", free=lambda folder: next(free))
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(VLFormerError, match=r"f\.bin could not be written .*choose another folder"):
        fetch([server.url()], tmp_path / "file" / "f.bin")


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_sockets")
def test_offline(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    with pytest.raises(VLFormerError, match=f"fetch http://host/f elsewhere and put it at {path}"):
        fetch(["http://host/f", "http://host/g"], path, offline=True)
    assert names(tmp_path) == []
    path.parent.mkdir()
    path.write_bytes(DATA)
    assert fetch(["http://host/f"], path, offline=True).sha256 == sha256(DATA)
    with pytest.raises(AssertionError, match="a socket was opened"):
        fetch(["http://host/f"], tmp_path / "g.bin")


def test_redirects(server: Server, tmp_path: Path, waits: Waits) -> None:
    server.answers = [Answer(302, headers={"Location": "/file.bin"}), Answer(drop_after=100_000)]
    server.answers += [Answer(307, headers={"Location": server.url()})]
    got = fetch([server.url("/start")], tmp_path / "file.bin", patience=waits.patience())
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert got.url == server.url("/start")
    assert server.ranges() == [None, None, "bytes=100000-", "bytes=100000-"]
    assert {asked.headers["User-Agent"] for asked in server.asked} == {f"vlformer/{__version__}"}


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/f", "data:text/plain,hello", "gopher://host/f"]
)
def test_redirects_to_other_schemes_are_refused(server: Server, tmp_path: Path, waits: Waits, target: str) -> None:
    server.answers = [Answer(302, headers={"Location": target})]
    with pytest.raises(UnreachableError, match=re.escape(target)):
        fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert waits == []
    assert names(tmp_path) == []


def test_redirects_do_not_leave_https_and_end(server: Server, tmp_path: Path, waits: Waits) -> None:
    asked = urllib.request.Request("https://host/f")
    with pytest.raises(GiveUp, match="https not to http"):
        download._Redirects().redirect_request(asked, None, 302, "", HTTPMessage(), "http://host/f")  # type: ignore[arg-type]
    further = download._Redirects().redirect_request(asked, None, 302, "", HTTPMessage(), "https://b/f")  # type: ignore[arg-type]
    assert further is not None
    assert further.full_url == "https://b/f"
    server.usual = Answer(302, headers={"Location": server.url()})
    with pytest.raises(UnreachableError, match="302"):
        fetch([server.url()], tmp_path / "file.bin", patience=waits.patience())
    assert waits == []


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ssl.SSLCertVerificationError("self-signed"), False),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), False),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (ssl.SSLError("bad record"), True),
        (OSError(101, "Network is unreachable"), True),
    ],
)
def test_which_network_failures_may_pass(
    tmp_path: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch, error: OSError, again: bool
) -> None:
    def open_(*_: Any, **__: Any) -> None:
        raise URLError(error)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", open_)
    with pytest.raises(UnreachableError, match=re.escape(one_line(error))):
        fetch(["https://host/f"], tmp_path / "file.bin", patience=waits.patience())
    assert len(waits) == (4 if again else 0)


def test_a_proxy_from_the_environment(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url(""))
    server.files["http://data.invalid/file.bin"] = OTHER
    fetch(["http://data.invalid/file.bin"], tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == OTHER


def test_an_encoding_that_nobody_asked_for(server: Server, tmp_path: Path) -> None:
    server.usual = Answer(body=gzip.compress(DATA), headers={"Content-Encoding": "gzip"})
    with pytest.raises(UnreachableError, match="answered 200 with encoding gzip"):
        fetch([server.url()], tmp_path / "file.bin")
    with pytest.raises(GiveUp, match="encoding gzip"):
        ask(server.url(), 5, {})


def test_one_waits_for_the_other(server: Server, tmp_path: Path) -> None:
    waiting = threading.Event()
    got: list[Fetched] = []

    def second() -> None:
        got.append(fetch([server.url()], tmp_path / "file.bin", report=lambda text: waiting.set()))

    thread = threading.Thread(target=second)
    with locked(tmp_path / "file.bin"):
        thread.start()
        assert waiting.wait(30)
        assert server.asked == []
    thread.join(30)
    assert got[0].sha256 == sha256(DATA)


FETCH = """
import sys
from pathlib import Path
from vlformer_cli.data.download import fetch
print(fetch([sys.argv[1]], Path(sys.argv[2])).sha256)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_that_fetch_one_file(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = data = random.Random(7).randbytes(3_000_000)
    processes = [start(server.url(), str(tmp_path / "file.bin")) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [out.strip() for out, _ in results] == [sha256(data)] * 2, results
    assert server.sent() == len(data)
    assert names(tmp_path) == ["file.bin"]


def test_a_kill_at_a_random_moment_leaves_all_or_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = data = random.Random(8).randbytes(8_000_000)
    dice, path, killed = random.Random(9), tmp_path / "file.bin", 0
    for _ in range(6):
        until = server.sent() + dice.randrange(1, 4_000_000)
        process = start(server.url(), str(path))
        server.watch = lambda until=until, process=process: process.kill() if server.sent() >= until else None  # type: ignore[misc]
        process.communicate(timeout=60)
        killed += process.returncode == -9
        assert not path.exists() or path.read_bytes() == data
    server.watch = lambda: None
    out, error = start(server.url(), str(path)).communicate(timeout=60)
    assert out.strip() == sha256(data), error
    assert path.read_bytes() == data
    assert killed >= 1
    assert any(span and span != "bytes=0-" for span in server.ranges())
    assert names(tmp_path) == ["file.bin"]


def test_a_kill_at_any_step_leaves_all_or_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = DATA[:100_000]
    work = f"""
from vlformer_cli.data import download
download.BLOCK = 10_000
def work(root, step):
    download.fetch([{server.url()!r}], root / "file.bin", progress=step)
"""
    absent, whole = kill_at_every_step(work, tmp_path, "file.bin")
    assert absent > 15
    assert whole > 1
    assert (tmp_path / "1" / "file.bin").read_bytes() == DATA[:100_000]
    assert any(span and span != "bytes=0-" for span in server.ranges())


def test_a_kill_while_a_changed_file_is_begun(server: Server, tmp_path: Path) -> None:
    server.files["/file.bin"] = DATA[:100_000]
    note = {"url": server.url(), "etag": '"v0"', "modified": "", "total": 100_000}
    work = f"""
from vlformer_cli.data.download import fetch
def work(root, step):
    if not (root / "begun").exists():
        (root / ".file.bin.partial").write_bytes(b"old" * 2000)
        (root / ".file.bin.partial.json").write_text({json.dumps(note)!r})
        (root / "begun").mkdir()
    fetch([{server.url()!r}], root / "file.bin")
"""
    absent, _ = kill_at_every_step(work, tmp_path, "file.bin")
    assert absent > 10
    assert (tmp_path / "1" / "file.bin").read_bytes() == DATA[:100_000]


HUB_FILES = {"data/train-0.parquet": b"PAR1train PAR1", "data/test b.parquet": b"PAR1testPAR1", "README.md": b"# x"}


@pytest.fixture
def hub(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server as an archive at /refcoco.zip and as Hugging Face with the data set who/refs."""
    places = (
        Place("archived", "refer", ("unc", "google"), url=server.url("/refcoco.zip")),
        Place("who-refs", "jxu124", ("unc",), hub="who/refs"),
        Place("who-some", "jxu124-benchmark", ("unc",), hub="who/some", eval_only=True),
    )
    monkeypatch.setattr(mirrors, "PLACES", {"refcoco": places})
    monkeypatch.setenv("HF_ENDPOINT", server.url("/"))
    server.files["/refcoco.zip"] = zip_of(tmp_path)
    listing: list[dict[str, Any]] = [{"type": "directory", "path": "data", "size": 0, "oid": "0"}]
    for path, data in HUB_FILES.items():
        row = {"type": "file", "path": path, "size": len(data), "oid": "0"}
        listing.append({**row, "lfs": {"oid": sha256(data), "size": len(data)}} if "train" in path else row)
        server.files["/datasets/who/refs/resolve/main/" + path.replace(" ", "%20")] = data
    server.files["/api/datasets/who/refs/tree/main?recursive=true"] = json.dumps(listing).encode()
    return server


def test_annotations_come_from_the_first_place(hub: Server, tmp_path: Path) -> None:
    got = fetch_annotations("refcoco", "unc", tmp_path / "refs")
    assert (got.place.name, list(got.files)) == ("archived", ["refcoco.zip"])
    assert got.files["refcoco.zip"].path == tmp_path / "refs" / "refcoco.zip"
    pins = {"refcoco.zip": got.files["refcoco.zip"].sha256}
    assert (
        fetch_annotations("refcoco", "google", tmp_path / "refs", pins=pins, offline=True).files["refcoco.zip"].url
        is None
    )
    with pytest.raises(VLFormerError, match="expected 00; move it away"):
        fetch_annotations("refcoco", "unc", tmp_path / "refs", pins={"refcoco.zip": "00"})
    assert len(hub.asked) == 1


def test_annotations_come_from_the_next_place(hub: Server, tmp_path: Path, waits: Waits) -> None:
    data = hub.files.pop("/refcoco.zip")
    said: list[str] = []
    got = fetch_annotations("refcoco", "unc", tmp_path, patience=waits.patience(), report=said.append)
    assert got.place.layout == "jxu124"
    assert {path: file.path.read_bytes() for path, file in got.files.items()} == {
        f"who-refs/{path}": data for path, data in HUB_FILES.items() if path != "README.md"
    }
    assert any("refcoco.zip answered 404" in text for text in said)
    hub.files["/refcoco.zip"] = data
    hub.asked.clear()
    again = fetch_annotations("refcoco", "unc", tmp_path)
    assert again.place.layout == "jxu124"  # what the first run read
    assert fetch_annotations("refcoco", "unc", tmp_path, offline=True).files == again.files
    assert hub.asked == []
    (tmp_path / "who-refs" / "data" / "train-0.parquet").unlink()
    assert fetch_annotations("refcoco", "unc", tmp_path).place.layout == "refer"


def test_the_hub_tells_the_sha256(hub: Server, tmp_path: Path, waits: Waits) -> None:
    del hub.files["/refcoco.zip"]
    train = "/datasets/who/refs/resolve/main/data/train-0.parquet"
    hub.files[train] = b"PAR1tRain PAR1"
    with pytest.raises(UnreachableError, match=r"refcoco\.zip answered 404.*has SHA-256.*instead of"):
        fetch_annotations("refcoco", "unc", tmp_path, patience=waits.patience())
    hub.files[train] = b"PAR1train and morePAR1"
    with pytest.raises(UnreachableError, match="has a file of 22 bytes instead of 14"):
        fetch_annotations("refcoco", "unc", tmp_path, patience=waits.patience())
    listing = "/api/datasets/who/refs/tree/main?recursive=true"
    rows = json.loads(hub.files[listing])  # type: ignore[arg-type]
    rows[1].update(size=22, lfs={"oid": sha256(hub.files[train])})  # type: ignore[arg-type]
    hub.files[listing] = json.dumps(rows).encode()
    assert len(fetch_annotations("refcoco", "unc", tmp_path, patience=waits.patience()).files) == 2


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        ([{"type": "file", "path": "../../evil.json", "size": 2}], "who/refs holds '../../evil.json', which leads out"),
        ([{"type": "file", "path": "README.md", "size": 2}], "holds no file that ends in"),
        ([{"path": "a.json"}], "unknown form"),
        ({"error": "x"}, "unknown form"),
    ],
)
def test_listings_that_are_not_right(hub: Server, tmp_path: Path, listing: Any, words: str) -> None:
    archived = hub.files.pop("/refcoco.zip")
    hub.files["/api/datasets/who/refs/tree/main?recursive=true"] = json.dumps(listing).encode()
    with pytest.raises(VLFormerError, match=words):
        fetch_annotations("refcoco", "unc", tmp_path / "in")
    assert not list(tmp_path.rglob("evil*"))
    hub.files["/refcoco.zip"] = archived
    assert fetch_annotations("refcoco", "unc", tmp_path / "in").place.layout == "refer"


def test_places_without_the_training_split_have_to_be_asked_for(hub: Server, tmp_path: Path) -> None:
    for path in ("/refcoco.zip", "/api/datasets/who/refs/tree/main?recursive=true"):
        del hub.files[path]
    hub.files["/api/datasets/who/some/tree/main?recursive=true"] = b'[{"type": "file", "path": "v.json", "size": 2}]'
    hub.files["/datasets/who/some/resolve/main/v.json"] = b"{}"
    with pytest.raises(UnreachableError, match="no place gave the annotations of refcoco"):
        fetch_annotations("refcoco", "unc", tmp_path)
    assert fetch_annotations("refcoco", "unc", tmp_path, eval_only=True).place.eval_only


@pytest.mark.usefixtures("no_sockets")
def test_annotations_offline(tmp_path: Path) -> None:
    with pytest.raises(
        VLFormerError, match=r"put there https://web\.archive\.org.*/refcoco\.zip at .*/refcoco\.zip, or"
    ):
        fetch_annotations("refcoco", "unc", tmp_path / "none", offline=True)
    assert names(tmp_path) == []
    with pytest.raises(
        VLFormerError, match="no place is known that has refcoco split by umd: give its folder with --from"
    ):
        fetch_annotations("refcoco", "umd", tmp_path)


def test_every_partition_has_a_place() -> None:
    partitions = {
        (name, split_by) for name, places in PLACES.items() for place in places for split_by in place.split_by
    }
    trainable = {
        (name, split_by)
        for name, places in PLACES.items()
        for place in places
        if not place.eval_only
        for split_by in place.split_by
    }
    published = {("refcoco", "unc"), ("refcoco", "google"), ("refcoco+", "unc"), ("refcocog", "umd")}
    published |= {("refcocog", "google"), ("grefcoco", "unc")}
    assert trainable == published
    assert partitions == published
    for place in (place for places in PLACES.values() for place in places):
        assert bool(place.url) != bool(place.hub)
        assert re.match(r"https://web\.archive\.org/web/\d{14}id_/https://|$", place.url)


PICTURES = {f"p{i:03}.jpg": random.Random(i).randbytes(20_000 + 100 * i) for i in range(80)}
WANTED = [f"p{i:03}.jpg" for i in (71, 3, 4, 5, 40, 79, 0)]


@pytest.fixture
def coco(server: Server, tmp_path: Path) -> Server:
    """The server with PICTURES as train2014.zip."""
    (tmp_path / "made").mkdir()
    entries = [(f"train2014/{name}", data) for name, data in PICTURES.items()]
    archive = make_zip(tmp_path / "made" / "train2014.zip", [("train2014/", b""), *entries], zipfile.ZIP_STORED)
    server.files["/train2014.zip"] = archive.read_bytes()
    return server


def pictures(folder: Path) -> dict[str, bytes]:
    """All files below `folder / "train2014"`, temporary ones too."""
    return {p.name: p.read_bytes() for p in (folder / "train2014").rglob("*") if p.is_file()}


def get(coco: Server, folder: Path, wanted: list[str] | None = WANTED, **options: Any) -> int:
    return fetch_train2014(folder, wanted, urls=[coco.url("/train2014.zip")], **options)


def test_only_the_wanted_pictures_are_fetched(coco: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    assert get(coco, tmp_path, progress=lambda *counts: seen.append(counts)) == 7
    assert pictures(tmp_path) == {name: PICTURES[name] for name in WANTED}
    needed = sum(len(PICTURES[name]) for name in WANTED)
    assert coco.sent() < needed + 140_000  # with the directory, and gaps that were not worth a request of their own
    assert seen[0] == (0, needed)
    assert seen[-1] == (needed, needed)
    assert seen == sorted(seen)
    assert len(coco.asked) < 7  # neighbours come together
    assert [asked.headers["If-Range"] for asked in coco.asked] == [None, *['"v1"'] * (len(coco.asked) - 1)]

    coco.asked.clear()
    assert get(coco, tmp_path) == 0
    assert coco.asked == []
    assert get(coco, tmp_path, [*WANTED, "p050.jpg"]) == 1
    assert coco.sent() < len(PICTURES["p050.jpg"]) + 70_000
    assert get(coco, tmp_path, None) == 72
    assert pictures(tmp_path) == PICTURES


def test_pictures_far_apart_cost_no_more_than_themselves(
    coco: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "GAP", 0)
    wanted = list(PICTURES)[::4]
    assert len(wanted) > 2 * mirrors.CONNECTIONS
    assert get(coco, tmp_path, wanted) == len(wanted)
    assert coco.sent() < sum(len(PICTURES[name]) for name in wanted) + mirrors.TAIL + 300 * len(wanted)


def test_the_order_and_number_of_requests_do_not_matter(
    coco: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for round, (gap, window, ahead) in enumerate([(0, 1 << 22, 1 << 20), (0, 0, 30_000), (1 << 22, 50_000, 1000)]):
        monkeypatch.setattr(mirrors, "GAP", gap)
        monkeypatch.setattr(mirrors, "WINDOW", window)
        monkeypatch.setattr(mirrors, "READ_AHEAD", ahead)
        assert get(coco, tmp_path / str(round), None) == 80
        assert pictures(tmp_path / str(round)) == PICTURES


def test_ranges_survive_drops_and_busy_servers(coco: Server, tmp_path: Path, waits: Waits) -> None:
    coco.answers = [
        Answer(503),
        Answer(drop_after=9000),
        Answer(),
        Answer(drop_after=0),
        Answer(500),
        Answer(length=None),
    ]
    assert get(coco, tmp_path, patience=waits.patience()) == 7
    assert pictures(tmp_path) == {name: PICTURES[name] for name in WANTED}
    assert len(waits) == 4


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(ranges=False), "gives no ranges of bytes: fetch the file whole"),
        (Answer(404), "answered 404 Not Found"),
        (Answer(body=b"<html>gone</html>"), "is no whole zip file: it ends with b'<html>gone</html>'"),
        (Answer(body=b"GIF89a"), "is no whole zip file: it ends with b'GIF89a'"),
        (Answer(span="bytes 0-10/20"), "gives no ranges of bytes"),
        (Answer(stall=True), r"failed \(timed out\)"),
    ],
)
def test_servers_that_do_not_give_the_pictures(
    coco: Server, tmp_path: Path, waits: Waits, answer: Answer, words: str
) -> None:
    coco.usual = answer
    patience = waits.patience(timeout=0.2 if answer.stall else 30.0, attempts=2)
    with pytest.raises(UnreachableError, match=rf"train2014\.zip ({words})"):
        get(coco, tmp_path, patience=patience)
    assert pictures(tmp_path) == {}
    coco.answers = [answer] * (len(coco.asked))
    coco.usual = Answer()
    urls = [coco.url("/train2014.zip")] * 2
    assert fetch_train2014(tmp_path, WANTED, urls=urls, patience=replace(patience, attempts=50)) == 7


@pytest.mark.parametrize(
    "later",
    [
        Answer(etag='"v2"'),
        Answer(etag='"v2"', heeds_if_range=False),
        Answer(span="bytes 5-9/1000"),
        Answer(416),
    ],
)
def test_an_archive_that_changes_meanwhile(coco: Server, tmp_path: Path, waits: Waits, later: Answer) -> None:
    coco.answers, coco.usual = [Answer()], later
    with pytest.raises(UnreachableError, match=r"has changed meanwhile|answered 416"):
        get(coco, tmp_path, patience=waits.patience())
    assert pictures(tmp_path) == {}
    assert waits == []


def test_a_picture_that_is_damaged_on_the_server(coco: Server, tmp_path: Path) -> None:
    data = bytearray(coco.files["/train2014.zip"])  # type: ignore[arg-type]
    data[data.index(PICTURES["p004.jpg"][:50]) + 1000] ^= 1
    coco.files["/train2014.zip"] = bytes(data)
    with pytest.raises(VLFormerError, match=r"train2014\.zip is damaged .*CRC-32 for file 'train2014/p004\.jpg'"):
        get(coco, tmp_path)
    assert pictures(tmp_path) == {name: PICTURES[name] for name in ("p000.jpg", "p003.jpg")}


def test_pictures_that_the_archive_lacks(coco: Server, tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match=r"lacks 1 of 2 wanted members, such as 'train2014/q\.jpg'"):
        get(coco, tmp_path, ["p001.jpg", "q.jpg"])
    with pytest.raises(VLFormerError, match="needs 20,100"):
        get(coco, tmp_path, ["p001.jpg"], free=lambda folder: 20_099)
    assert pictures(tmp_path) == {}


def test_an_archive_on_the_disk_is_read_instead(coco: Server, tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match=r"lacks 7 pictures such as train2014/p071\.jpg: .*train2014\.zip at "):
        get(coco, tmp_path, offline=True)
    with pytest.raises(VLFormerError, match="lacks the pictures"):
        get(coco, tmp_path, None, offline=True)
    (tmp_path / "train2014.zip").write_bytes(coco.files["/train2014.zip"])  # type: ignore[arg-type]
    assert get(coco, tmp_path, offline=True) == 7
    assert pictures(tmp_path) == {name: PICTURES[name] for name in WANTED}
    assert coco.asked == []


def test_an_archive_beyond_4_gib(coco: Server, tmp_path: Path) -> None:
    archive = tmp_path / "made" / "large.zip"
    with archive.open("wb") as file:
        file.seek(5 << 30)  # a hole: the file takes no room
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as opened:
            for name in WANTED:
                opened.writestr(f"train2014/{name}", PICTURES[name])
    assert archive.stat().st_blocks * 512 < 10 << 20
    coco.files["/train2014.zip"] = archive
    with zipfile.ZipFile(archive) as opened:
        assert min(info.header_offset for info in opened.infolist()) == 5 << 30
    assert get(coco, tmp_path, WANTED[:3]) == 3
    assert pictures(tmp_path) == {name: PICTURES[name] for name in WANTED[:3]}
    assert coco.sent() < 300_000


def test_an_archive_with_more_members_than_65535(coco: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 5)  # so that the writer uses the larger records
    entries = [(f"train2014/{name}", PICTURES[name]) for name in WANTED]
    archive = make_zip(tmp_path / "made" / "train2014.zip", entries)
    monkeypatch.undo()
    assert b"PK\x06\x06" in archive.read_bytes()
    coco.files["/train2014.zip"] = archive
    assert get(coco, tmp_path, WANTED[:2]) == 2
    assert pictures(tmp_path) == {name: PICTURES[name] for name in WANTED[:2]}


def test_a_kill_between_pictures_goes_on(coco: Server, tmp_path: Path) -> None:
    (tmp_path / "rounds").mkdir()
    work = f"""
from vlformer_cli.data.mirrors import fetch_train2014
def work(root, step):
    fetch_train2014(root, ["p001.jpg", "p077.jpg"], urls=[{coco.url("/train2014.zip")!r}], progress=step)
"""
    absent, whole = kill_at_every_step(work, tmp_path / "rounds", "train2014/p001.jpg")
    assert absent > 3
    assert whole > 3
    for folder in (tmp_path / "rounds").iterdir():
        assert pictures(folder) == {name: PICTURES[name] for name in ("p001.jpg", "p077.jpg")}
