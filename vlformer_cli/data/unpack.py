"""Archives: unpacking them whole, or chosen members of a zip file, wherever the archive's author wants them to land.

An archive comes from elsewhere: its names, sizes and kinds are claims. Files and folders below the target are all that
is ever made, bytes are counted as they are written, and nothing is under its final name before it is whole.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from vlformer_cli.types import VLFormerError

BLOCK = 1 << 18
HEADER_MOST = 1 << 24  # bytes that a tar header may claim: long names take some hundred
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, struct.error)
UNREADABLE = (NotImplementedError, RuntimeError, ValueError, LookupError)  # what zipfile raises of what it cannot read

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes that are there (those of earlier runs too) and the bytes of the whole, None if unknown."""
Report = Callable[[str], None]
"""Called with a sentence for the person: what failed, what is tried next, what is waited for."""


@dataclass(frozen=True)
class Limits:
    """What an archive may grow to: the largest we unpack, COCO train2014, has 82,783 members and 13 GB."""

    total_bytes: int = 64 << 30
    ratio: int = 200
    """Bytes out of a byte of the archive; the text of annotations comes to about 10, deflate's most is 1032."""
    members: int = 1_000_000


class Member(NamedTuple):
    """A file or folder that an archive claims to hold."""

    name: str
    is_folder: bool
    odd: str | None
    """What it is instead of a file or a folder; None where it is one."""
    size: int
    open: Callable[[], IO[bytes] | None]


class Budget:
    """Counts the bytes that an archive becomes, and ends it when they are too many."""

    def __init__(self, archive: str, most: int) -> None:
        self.archive, self.most, self.spent = archive, most, 0

    def spend(self, count: int, name: str) -> None:
        """Raises VLFormerError if `count` more bytes are too many; `name` is the member that they belong to."""
        self.spent += count
        if self.spent > self.most:
            raise VLFormerError(
                f"{self.archive} unpacks to more than {self.most:,} bytes (at {name!r}): "
                "it looks like a size bomb; get it from another place"
            )


LIMITS = Limits()


def ignore(*_: object) -> None:
    """No progress, no reports."""


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder that is there."""
    return shutil.disk_usage(folder).free


def check_space(needed: int, folder: Path, free: Callable[[Path], int]) -> None:
    """Raises VLFormerError if fewer than `needed` bytes are free in `folder`."""
    if needed > (there := free(folder)):
        raise VLFormerError(
            f"{folder} has {there:,} bytes free and needs {needed:,}: free some, or choose a folder on another disk"
        )


@contextlib.contextmanager
def locked(path: Path, report: Report = ignore) -> Iterator[None]:
    """Keeps other processes from working on `path`; a kill ends it. Leaves the empty `.<name>.lock` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"another process is at work on {path}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def publish(whole: Path, path: Path) -> None:
    """Gives a whole file or folder its final name; a file is on the disk before."""
    if whole.is_file():
        _sync(whole)
    whole.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def safe_path(name: str, archive: str) -> PurePosixPath:
    """A member's name as a path below the target folder; raises VLFormerError where it could lead elsewhere.

    >>> safe_path("./refcoco/instances.json", "a.zip")
    PurePosixPath('refcoco/instances.json')
    >>> safe_path("refcoco/../../.ssh/config", "a.zip")
    Traceback (most recent call last):
    vlformer_cli.types.VLFormerError: a.zip holds 'refcoco/../../.ssh/config', which leads out of its folder: ...
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or re.match("[A-Za-z]:", name):
        what = "which leads out of its folder"
    elif not name or re.search(r"[\x00-\x1f]", name):
        what = "which is no name of a file"
    else:
        return path
    raise VLFormerError(f"{archive} holds {name!r}, {what}: do not trust this archive; get it from another place")


def unpack(
    archive: Path,
    folder: Path,
    *,
    limits: Limits = LIMITS,
    progress: Progress = ignore,
    report: Report = ignore,
    free: Callable[[Path], int] = free_bytes,
) -> None:
    """Unpacks a .zip, .tar or .tar.gz whole into `folder`, which must not be there yet.

    Raises VLFormerError if it is there, or if the archive is damaged, encrypted or hostile: a name that leads out of
    the folder, a link, a device, the same name twice, more than `limits`. Then, and after a kill, there is no `folder`;
    the `.<name>.partial` that a kill leaves is cleared by the next call.
    """
    with locked(folder, report), _clear_errors(archive.name):
        if folder.exists():
            raise VLFormerError(f"{folder} is there already: move it away to unpack {archive} again")
        unfinished = folder.with_name(f".{folder.name}.partial")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        try:
            with archive.open("rb") as file:
                members = _members(file, archive.name, lambda needed: check_space(needed, unfinished, free))
                budget = _budget(archive.name, archive.stat().st_size, limits)
                for count, member in enumerate(members, 1):
                    if count > limits.members:
                        raise VLFormerError(f"{archive.name} has over {limits.members:,} members: get it elsewhere")
                    _write_member(member, unfinished, budget)
                    progress(budget.spent, None)
            publish(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def extract_members(
    archive: BinaryIO,
    folder: Path,
    *,
    name: str,
    members: Collection[str] | None = None,
    plan: Callable[[list[tuple[int, int]]], None] = ignore,
    limits: Limits = LIMITS,
    progress: Progress = ignore,
    free: Callable[[Path], int] = free_bytes,
) -> int:
    """Puts `members` (None: every one) of an open zip file called `name` below `folder`; returns how many were missing.

    Each file is written under a temporary name, its CRC is checked, and it is renamed; those that are there with the
    right size are kept, so that a call after a kill goes on. `plan` is told which bytes will be read, in order.
    Raises VLFormerError as `unpack` does, and if the archive lacks one of `members`. To be called with `folder` locked.
    """
    with _clear_errors(name), zipfile.ZipFile(archive) as opened:
        chosen = {safe_path(info.orig_filename, name): info for info in _choose(opened, name, members)}
        missing = [(path, info) for path, info in chosen.items() if not _is_there(folder / path, info)]
        missing.sort(key=lambda pair: pair[1].header_offset)
        total, needed = (sum(info.file_size for info in infos) for infos in (chosen.values(), dict(missing).values()))
        check_space(needed, folder, free)
        plan([(info.header_offset, info.header_offset + _span(info)) for _, info in missing])
        budget = _budget(name, sum(info.compress_size for _, info in missing), limits)
        progress(total - needed, total)
        for path, info in missing:
            unfinished = (folder / path).with_name(f".{path.name}.partial")
            unfinished.unlink(missing_ok=True)  # of a kill
            try:
                _write_member(_zip_member(opened, info), folder, budget, unfinished)
                unfinished.replace(folder / path)
            finally:
                unfinished.unlink(missing_ok=True)
            progress(total - needed + budget.spent, total)
    return len(missing)


def _budget(archive: str, packed: int, limits: Limits) -> Budget:
    return Budget(archive, min(limits.total_bytes, max(limits.ratio * packed, 1 << 20)))


def _choose(archive: zipfile.ZipFile, name: str, members: Collection[str] | None) -> list[zipfile.ZipInfo]:
    held = {info.filename: info for info in archive.infolist() if not info.filename.endswith("/")}
    if members is None:
        return list(held.values())
    if lacking := [member for member in members if member not in held]:
        raise VLFormerError(f"{name} lacks {len(lacking)} of {len(members)} wanted members, such as {lacking[0]!r}")
    return [held[member] for member in members]


def _is_there(path: Path, info: zipfile.ZipInfo) -> bool:
    return path.is_file() and path.stat().st_size == info.file_size


def _span(info: zipfile.ZipInfo) -> int:
    """Bytes that a member takes in its archive; the local header's extra fields, often longer, are guessed."""
    return 30 + len(info.orig_filename.encode()) + len(info.extra) + 64 + info.compress_size


def _write_member(member: Member, folder: Path, budget: Budget, unfinished: Path | None = None) -> None:
    """Writes to `unfinished` if one is given, and else straight to where the member's name says."""
    path = folder / safe_path(member.name, budget.archive)
    if member.odd:
        raise VLFormerError(f"{budget.archive} holds {member.name!r}, which is {member.odd}: get it from another place")
    try:
        if member.is_folder:
            path.mkdir(parents=True, exist_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with (unfinished or path).open("xb") as file:
            _copy(member, file, budget)
    except (FileExistsError, NotADirectoryError) as error:
        raise VLFormerError(f"{budget.archive} holds {member.name!r} twice: get it from another place") from error


def _copy(member: Member, file: IO[bytes], budget: Budget) -> None:
    source = member.open()
    assert source is not None, "a regular file opens"
    written = 0
    with source:
        while block := source.read(BLOCK):
            budget.spend(len(block), member.name)
            written += file.write(block)
    if written != member.size:
        raise VLFormerError(
            f"{budget.archive} is damaged: {member.name!r} has {written} bytes instead of {member.size}; get it again"
        )
    file.flush()
    os.fsync(file.fileno())


def _members(file: BinaryIO, name: str, need: Callable[[int], None]) -> Iterator[Member]:
    """What an archive holds, in its order. `need` is told the bytes that it claims to unpack to, where it says so."""
    head = file.read(512)
    file.seek(0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with zipfile.ZipFile(file) as archive:
            need(sum(info.file_size for info in archive.infolist()))
            yield from (_zip_member(archive, info) for info in archive.infolist())
    elif head.startswith(b"\x1f\x8b"):
        with _Gzip(fileobj=file) as plain:
            yield from _tar_members(plain)
    elif head[257:262] == b"ustar":
        yield from _tar_members(file)
    else:
        raise VLFormerError(f"{name} is no .zip, .tar or .tar.gz: it begins with {head[:16]!r}; get it again")


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    odd = None
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        odd = "a link" if kind == stat.S_IFLNK else "a device or the like"
    return Member(info.orig_filename, info.filename.endswith("/"), odd, info.file_size, partial(archive.open, info))


def _tar_members(file: IO[bytes] | gzip.GzipFile) -> Iterator[Member]:
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for info in archive:
            odd = None
            if not (info.isreg() or info.isdir()):
                odd = "a link" if info.issym() or info.islnk() else "a device or the like"
            yield Member(info.name, info.isdir(), odd, info.size, partial(archive.extractfile, info))
        file.seek(archive.offset)  # tarfile takes a cut between two members, or noise, for the end
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")
        file.read(HEADER_MOST)  # to where gzip's checksum is


class _Gzip(gzip.GzipFile):
    """Refuses what tarfile would read at once of a header that claims gigabytes."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= HEADER_MOST:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return super().read(size)


@contextlib.contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    try:
        yield
    except VLFormerError:
        raise
    except DAMAGE as error:
        raise VLFormerError(f"{name} is damaged ({error}): get it again") from error
    except (OSError, *UNREADABLE) as error:
        raise VLFormerError(
            f"{name} could not be unpacked ({error}): mend that, or get it from another place"
        ) from error
