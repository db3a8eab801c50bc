"""Where images come from: each word of the command line becomes named sources.

A word is a file, a folder, a pattern that the shell did not expand, an http or https address, or `-` for standard
input. This module imports nothing heavy, so that wrong usage is told at once.
"""

from __future__ import annotations

import glob
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPResponse
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote, unquote, urlsplit

from vlformer_cli.types import VLFormerError, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ENDINGS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".jp2", ".ppm", ".pgm"),
        *(".heic", ".heif", ".avif"),
    )
)
STDIN = ("-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
MAX_BYTES = 1 << 29  # of a pipe or a download: more than any image of MAX_PIXELS needs in a compressed format
TIMEOUT, MAX_SECONDS = 30.0, 300.0  # of each wait for a server, and of a whole download


@dataclass(frozen=True, slots=True)
class ImageSource:
    """One image that can be read."""

    name: str
    """As results and messages call it: a path, an address or `-`."""
    stem: str
    """What the names of its result files begin with."""
    read: Callable[[], NDArray[np.uint8]]
    """The image as HW3 RGB; raises VLFormerError where it cannot be read."""
    fault: str = ""
    """Why it cannot be read, where that is known beforehand."""


def find_sources(words: Sequence[str]) -> list[ImageSource]:
    """The images that the words name, in order; what is wrong with a word is the `fault` of a source.

    Raises VLFormerError if none of them can be read.
    """
    sources = [source for word in words for source in _sources(word)]
    if all(source.fault for source in sources):
        raise VLFormerError("; ".join(source.fault for source in sources))
    return sources


def names_input(word: str) -> bool:
    """Whether a word is a file, or is written like an image, an address or a path to a folder.

    >>> names_input("photo.JPG"), names_input("https://example.com/7"), names_input("-"), names_input("red cup")
    (True, True, True, False)
    """
    mode = _mode(word)
    is_folder = stat.S_ISDIR(mode) and ("/" in word or word in (".", ".."))
    is_file = bool(mode) and not stat.S_ISDIR(mode)
    return is_file or is_folder or _is_written_like_image(word)


def names_image(word: str) -> bool:
    """As `names_input`, but a file with another ending counts only if it holds an image."""
    mode = _mode(word)
    if stat.S_ISREG(mode) and not _is_written_like_image(word):
        return _holds_image(Path(word))
    return names_input(word)


def _is_written_like_image(word: str) -> bool:
    is_pattern = glob.has_magic(word) and bool(_matches(word))
    return word in STDIN or bool(ADDRESS.match(word)) or has_image_ending(word) or is_pattern


def has_image_ending(name: str) -> bool:
    """Whether a name ends as files of images do.

    >>> has_image_ending("a/photo.JPEG"), has_image_ending("notes.txt")
    (True, False)
    """
    return PurePosixPath(name).suffix.lower() in ENDINGS


def _holds_image(path: Path) -> bool:
    from vlformer_cli.data.images import image_size

    try:
        return image_size(path) is not None
    except VLFormerError:
        return False


def _sources(word: str) -> Iterator[ImageSource]:
    mode = _mode(word)
    if word in STDIN:
        yield _standard_input(word)
    elif ADDRESS.match(word):
        yield _address(word)
    elif stat.S_ISDIR(mode):
        yield from _folder(Path(word))
    elif glob.has_magic(word) and not mode:
        found = [_file(Path(path)) for path in _matches(word)]
        yield from found or [_faulty(word, f"no image matches the pattern {word!r}: check the path")]
    elif mode and not stat.S_ISREG(mode):  # a pipe, such as a shell's <(...)
        yield ImageSource(word, "pipe", partial(_read_pipe, Path(word)))
    else:
        yield _file(Path(word))


def _file(path: Path) -> ImageSource:
    return ImageSource(str(path), path.stem, partial(_read_file, path))


def _faulty(name: str, fault: str) -> ImageSource:
    def refuse() -> NDArray[np.uint8]:
        raise VLFormerError(fault)

    return ImageSource(name, "", refuse, fault)


def _folder(folder: Path) -> Iterator[ImageSource]:
    try:
        paths = sorted(path for path in folder.iterdir() if _is_visible_image(path))
    except OSError as error:
        yield _faulty(str(folder), f"the folder {folder} cannot be read ({error.strerror}): check its permissions")
        return
    nothing = f"the folder {folder} holds no image ({', '.join(sorted(ENDINGS))}): name another folder, or files in it"
    yield from map(_file, paths)
    if not paths:
        yield _faulty(str(folder), nothing)


def _matches(pattern: str) -> list[str]:
    """The images that match, sorted; `**` is no more than `*`."""
    return sorted(path for path in glob.glob(pattern) if _is_visible_image(Path(path)))  # noqa: PTH207  # also absolute


def _is_visible_image(path: Path) -> bool:
    return has_image_ending(path.name) and not path.name.startswith(".") and path.is_file()


def _standard_input(word: str) -> ImageSource:
    if sys.stdin is None or sys.stdin.isatty():
        return _faulty(word, f'no image comes from standard input: cat photo.jpg | vlformer predict {word} "red cup"')
    return ImageSource(word, "stdin", lambda: _read_stream(sys.stdin.buffer, "standard input"))


def _address(url: str) -> ImageSource:
    try:
        parts = urlsplit(url)
    except ValueError:  # such as a bracket that is not closed
        return _faulty(url, f"{url} is no address: check it")
    if parts.scheme.lower() not in ("http", "https"):
        return _faulty(url, f"{url} is no http or https address: download the image and give its path")
    stem = Path(unquote(PurePosixPath(parts.path).name)).stem or parts.hostname or "image"
    return ImageSource(url, stem, partial(_download, url))


def _read_file(path: Path) -> NDArray[np.uint8]:
    from vlformer_cli.data.images import read_image

    return read_image(path)


def _read_pipe(path: Path) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as stream:
            return _read_stream(stream, str(path))
    except OSError as error:
        raise VLFormerError(f"{path} cannot be read ({error.strerror}): give a file") from error


def _read_stream(stream: BinaryIO, name: str) -> NDArray[np.uint8]:
    from vlformer_cli.data.images import decode_image

    try:
        data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise VLFormerError(f"{name} cannot be read ({one_line(error)}): give a file") from error
    _check_length(len(data), name)
    return decode_image(data, name)


def _download(url: str) -> NDArray[np.uint8]:
    from vlformer_cli.data.download import GiveUp, TryAgain, ask
    from vlformer_cli.data.images import decode_image

    try:
        with ask(quote(url, safe="%/:=&?~#+!$,;'@()*[]"), TIMEOUT, {}) as response:
            kind = response.headers.get_content_type()
            if kind == "text/html":
                raise VLFormerError(f"{url} is a web page: give the address of the image itself")
            data = _body(response, url)
    except VLFormerError:
        raise
    except (GiveUp, TryAgain, ValueError) as error:  # the latter for hosts that no name can be
        raise VLFormerError(f"{url} {error}: check the address, or download the image and give its path") from error
    return decode_image(data, url)


def _body(response: HTTPResponse, url: str) -> bytes:
    from vlformer_cli.data.download import BLOCK, read_block

    data, end = bytearray(), time.monotonic() + MAX_SECONDS
    while block := read_block(response, BLOCK):
        data += block
        _check_length(len(data), url)
        if time.monotonic() > end:
            raise VLFormerError(f"{url} takes over {MAX_SECONDS:.0f} s: download the image and give its path")
    expected = response.headers.get("Content-Length", "")
    if expected.isdecimal() and len(data) < int(expected):
        raise VLFormerError(f"{url} ended after {len(data):,} of {int(expected):,} bytes: try again")
    return bytes(data)


def _check_length(length: int, name: str) -> None:
    if length > MAX_BYTES:
        raise VLFormerError(f"{name} gives over {MAX_BYTES >> 20} MiB: make the image smaller")
    if length == 0:
        raise VLFormerError(f"{name} is empty (0 bytes): give an image")


def _mode(word: str) -> int:
    """The kind of file that a word names, as `stat` has it; 0: nothing is there."""
    try:
        return Path(word).stat().st_mode if word.strip() else 0
    except (OSError, ValueError):  # longer than names can be, or with a null byte
        return 0
