"""Unpacking: good archives come out as they are, hostile and damaged ones leave nothing, a kill leaves nothing half."""

from __future__ import annotations

import gzip
import io
import json
import random
import stat
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vlformer_cli.data.unpack import Limits, extract_members, locked, safe_path, unpack
from vlformer_cli.types import VLFormerError

FILES = {
    "refcoco/instances.json": b'{"images": []}' * 300,
    "refcoco/refs(unc).p": bytes(range(256)) * 40,
    "refcoco/empty": b"",
    "top é.txt": b"caf\xc3\xa9",
}
KINDS = ("zip", "tar", "tar.gz")

STEPS = """
import json, os, signal, sys
from pathlib import Path

def state(path):
    if not os.path.lexists(path):
        return "absent"
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [[p.relative_to(path).as_posix(), p.read_bytes().hex()] for p in files]

def run(work, round, root):
    # in a process of its own, which kills itself before the `round`-th thing it does to the disk
    if not (pid := os.fork()):
        left = round
        def step(*_):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        def hook(event, args):
            if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir") and str(root) in str(args[0]):
                step()
        sys.addaudithook(hook)
        try:
            work(root, step)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def main(work, final):
    round, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL and round < 500:
        round += 1
        root = Path(sys.argv[1]) / str(round)
        root.mkdir()
        status = run(work, round, root)
        killed = state(root / final)
        again = status and run(work, 0, root)
        whole = state(root / final)
        left = sorted(p.name for p in root.iterdir() if p.name != final)
        print(json.dumps([status, killed, again, whole, left]))
"""


def kill_at_every_step(work: str, root: Path, final: str, *arguments: str) -> tuple[int, int]:
    """Runs `work(root, step)` killed before the first thing it does to the disk, the second, and so on until it ends.

    After each kill `final` is absent or whole, and a second run makes it whole. Returns how often it was which.
    """
    code = f"{STEPS}\n{work}\nmain(work, {final!r})"
    command = [sys.executable, "-c", code, str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    statuses, killed, again, whole, left = zip(*rows, strict=True)
    assert statuses == (-9,) * (len(rows) - 1) + (0,), done.stderr
    assert set(again) == {0}, done.stderr
    assert whole[-1] != "absent"
    assert all(end == whole[-1] for end in whole)
    assert all(state in ("absent", whole[-1]) for state in killed)
    assert not any(".partial" in name for names in left for name in names)
    absent = killed.count("absent")
    return absent, len(rows) - absent


Entry = tuple[str, bytes] | zipfile.ZipInfo | tarfile.TarInfo


def make_zip(path: Path, entries: Sequence[Entry], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for entry in entries:
            if isinstance(entry, zipfile.ZipInfo):
                archive.writestr(entry, b"x")
            elif isinstance(entry, tuple):
                info = zipfile.ZipInfo("placeholder")
                info.filename, info.compress_type = entry[0], method  # the constructor would mend the name
                archive.writestr(info, entry[1])
    return path


def make_tar(path: Path, entries: Sequence[Entry]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            elif isinstance(entry, tuple):
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                archive.addfile(info, io.BytesIO(entry[1]))
    return path


def make(folder: Path, kind: str, entries: Sequence[Entry]) -> Path:
    path = folder / f"archive.{kind}"
    return make_zip(path, entries) if kind == "zip" else make_tar(path, entries)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refuse(archive: Path, words: str, **options: Any) -> None:
    """Unpacking fails with `words` and leaves nothing but the archive and a lock, nor anything above the folder."""
    folder = archive.parent / "deep" / "out"
    folder.parent.mkdir(exist_ok=True)
    with pytest.raises(VLFormerError, match=words) as caught:
        unpack(archive, folder, **options)
    assert archive.name in str(caught.value) or "needs" in str(caught.value)
    assert sorted(p.name for p in archive.parent.rglob("*")) == sorted([archive.name, "deep", ".out.lock"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_comes_out_as_it_went_in(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path, kind, [*FILES.items(), ("./refcoco/./more/deep.txt", b"deep")])
    seen: list[int] = []
    unpack(archive, tmp_path / "out", progress=lambda done, total: seen.append(done))
    assert contents(tmp_path / "out") == {**FILES, "refcoco/more/deep.txt": b"deep"}
    assert seen == sorted(seen)
    assert seen[-1] == sum(map(len, FILES.values())) + 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.lock", archive.name, "out"]


@pytest.mark.parametrize("kind", KINDS)
def test_folders_are_made_and_modes_are_ours(tmp_path: Path, kind: str) -> None:
    if kind == "zip":
        entries: list[Entry] = [zipfile.ZipInfo("empty/"), zipfile.ZipInfo("run.sh")]
        entries[1].external_attr = (stat.S_IFREG | 0o6777) << 16  # type: ignore[union-attr]
    else:
        folder, tool = tarfile.TarInfo("empty"), tarfile.TarInfo("run.sh")
        folder.type, tool.mode = tarfile.DIRTYPE, 0o6777
        entries = [folder, tool]
    unpack(make(tmp_path, kind, entries), tmp_path / "out")
    assert (tmp_path / "out" / "empty").is_dir()
    assert not (tmp_path / "out" / "run.sh").stat().st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_IXUSR)


LEADING_OUT = ["../x", "a/../../x", "..", "/etc/x", "//etc/x", "C:/x", "c:x", "a\\..\\..\\x", "\\\\host\\x", "a/..\\x"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LEADING_OUT)
def test_names_that_lead_out_of_the_folder(tmp_path: Path, kind: str, name: str) -> None:
    refuse(make(tmp_path, kind, [("good.txt", b"good"), (name, b"evil")]), "leads out of its folder")


@pytest.mark.parametrize("name", ["a\0b", "a\nb", ""])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    refuse(make(tmp_path, "zip", [("good.txt", b"good"), (name, b"evil")]), "no name of a file")
    with pytest.raises(VLFormerError, match="no name of a file"):
        safe_path(name, "x.tar")


def test_a_zip_with_a_link(tmp_path: Path) -> None:
    for kind, words in ((stat.S_IFLNK, "a link"), (stat.S_IFIFO, "a device"), (stat.S_IFCHR, "a device")):
        info = zipfile.ZipInfo("link")
        info.external_attr = (kind | 0o777) << 16
        refuse(make_zip(tmp_path / "archive.zip", [("good.txt", b"good"), info, ("link/x", b"evil")]), words)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a link"),
        (tarfile.FIFOTYPE, "a device"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
    ],
)
def test_a_tar_with_what_is_no_file(tmp_path: Path, kind: bytes, words: str) -> None:
    info = tarfile.TarInfo("link")
    info.type, info.linkname = kind, "/etc"
    refuse(make_tar(tmp_path / "archive.tar", [("good.txt", b"good"), info, ("link/x", b"evil")]), f"'link'.*{words}")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("second", ["a", "./a", "a/b"])
def test_a_name_twice(tmp_path: Path, kind: str, second: str) -> None:
    refuse(make(tmp_path, kind, [("a", b"1"), (second, b"2")]), f"{second!r} twice")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_size_bomb(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path, kind, [("bomb", bytes(8 << 20))])
    assert archive.stat().st_size < 20_000
    refuse(archive, "size bomb")
    refuse(archive, "more than 5,000 bytes", limits=Limits(total_bytes=5_000))
    unpack(archive, tmp_path / "out", limits=Limits(ratio=1100))
    assert (tmp_path / "out" / "bomb").stat().st_size == 8 << 20


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_members(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path, kind, [(str(i), b"") for i in range(50)])
    refuse(archive, "over 49 members", limits=Limits(members=49))
    unpack(archive, tmp_path / "out", limits=Limits(members=50))
    assert len(contents(tmp_path / "out")) == 50


@pytest.mark.parametrize("claim", [10, 1 << 20])
def test_a_header_that_lies_about_the_size(tmp_path: Path, claim: int) -> None:
    archive = make_zip(tmp_path / "archive.zip", [("a", bytes(5000))])
    data = archive.read_bytes()
    assert data.count(struct.pack("<L", 5000)) == 2  # in the local header and in the directory
    archive.write_bytes(data.replace(struct.pack("<L", 5000), struct.pack("<L", claim)))
    refuse(archive, "damaged")


def test_a_tar_header_that_claims_gigabytes_is_not_read_into_memory(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    (tmp_path / "archive.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(1 << 20)))
    refuse(tmp_path / "archive.tar.gz", "claims 3221225472 bytes")


def test_a_sparse_tar_member_counts_as_what_it_becomes(tmp_path: Path) -> None:
    info = tarfile.TarInfo("hole")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(1 << 40)}
    info.pax_headers |= {"GNU.sparse.map": f"0,0,{1 << 40},0"}
    refuse(make_tar(tmp_path / "archive.tar", [info]), "size bomb")


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_was_cut_off(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path, kind, [*FILES.items(), ("noise", random.Random(1).randbytes(4000))])
    data = archive.read_bytes()
    for end in (0, 1, 100, 512, 600, len(data) // 2, len(data) - 1 if kind != "tar" else len(data) - 10240):
        archive.write_bytes(data[:end])
        refuse(archive, r"damaged|is no \.zip, \.tar or \.tar\.gz")


def test_a_tar_that_was_cut_off_between_two_members(tmp_path: Path) -> None:
    archive = make(tmp_path, "tar", [("a", bytes(512)), ("b", bytes(512))])
    archive.write_bytes(archive.read_bytes()[:1024])
    refuse(archive, "its end is missing")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_checksum_that_does_not_fit(tmp_path: Path, kind: str) -> None:
    noise = random.Random(2).randbytes(3000)
    archive = make_zip(tmp_path / "archive.zip", [("a", noise)], zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    if kind == "tar.gz":
        archive.unlink()
        archive = make(tmp_path, kind, [("a", noise)])
        data = bytearray(archive.read_bytes())
        data[-6] ^= 1  # in gzip's own CRC
    else:
        data[500] ^= 1
    archive.write_bytes(data)
    refuse(archive, "damaged.*CRC")


def test_other_things_that_cannot_be_unpacked(tmp_path: Path) -> None:
    archive = make(tmp_path, "zip", [("a", b"1")])
    data = archive.read_bytes()
    encrypted = data.replace(b"PK\x03\x04\x14\0\0", b"PK\x03\x04\x14\0\1").replace(
        b"\x14\x03\x14\0\0", b"\x14\x03\x14\0\1"
    )
    assert encrypted != data
    archive.write_bytes(encrypted)
    refuse(archive, "encrypted")
    archive.write_bytes(b"<!DOCTYPE html><title>404</title>")
    refuse(archive, r"no \.zip, \.tar or \.tar\.gz: it begins with b'<!DOCTYPE html><'")
    archive.unlink()
    with pytest.raises(VLFormerError, match=r"archive\.zip could not be unpacked.*No such file"):
        unpack(archive, tmp_path / "out")


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(VLFormerError, match="out is there already"):
        unpack(make(tmp_path, "zip", list(FILES.items())), tmp_path / "out")
    assert contents(tmp_path / "out") == {"mine": b"precious"}


def test_the_disk_is_asked_first(tmp_path: Path) -> None:
    archive = make(tmp_path, "zip", list(FILES.items()))
    size = sum(map(len, FILES.values()))
    refuse(archive, f"{size - 1:,} bytes free and needs {size:,}", free=lambda folder: size - 1)
    unpack(archive, tmp_path / "out", free=lambda folder: size)
    assert contents(tmp_path / "out") == FILES


def test_what_a_kill_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "half").write_text("half")
    unpack(make(tmp_path, "zip", list(FILES.items())), tmp_path / "out")
    assert contents(tmp_path / "out") == FILES
    assert not (tmp_path / ".out.partial").exists()


def test_one_waits_for_the_other(tmp_path: Path) -> None:
    archive = make(tmp_path, "zip", list(FILES.items()))
    waiting = threading.Event()
    said: list[str] = []
    errors: list[str] = []

    def report(text: str) -> None:
        said.append(text)
        waiting.set()

    def second() -> None:
        try:
            unpack(archive, tmp_path / "out", report=report)
        except VLFormerError as error:
            errors.append(str(error))

    thread = threading.Thread(target=second)
    with locked(tmp_path / "out"):
        thread.start()
        assert waiting.wait(30)
        assert not (tmp_path / "out").exists()
        (tmp_path / "out").mkdir()
    thread.join(30)
    assert "another process is at work" in said[0]
    assert "is there already" in errors[0]


def flip_some(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        changed[dice.randrange(len(changed))] = dice.choice([0, 1, 255, dice.randrange(256)])
    return bytes(changed[: dice.choice([len(changed), dice.randrange(len(changed))])])


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_is_a_clear_error_or_harmless(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path, kind, [("a/b.txt", b"text " * 30), ("c", b"more"), ("é", b"")])
    data = archive.read_bytes()
    if kind == "tar":
        data = data[: 512 * 8]
    dice, failed = random.Random(5), 0
    (tmp_path / "in").mkdir()
    for round in range(80):
        archive.write_bytes(flip_some(data, dice))
        folder = tmp_path / "in" / str(round)
        try:
            unpack(archive, folder)
        except VLFormerError:
            failed += 1
            assert not folder.exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == [archive.name, "in"]
    assert failed > 25
    assert not [p for p in (tmp_path / "in").rglob("*") if p.is_symlink() or ".partial" in p.name]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kill_at_any_step_leaves_all_or_nothing(tmp_path: Path, kind: str) -> None:
    archive = make(tmp_path, kind, list(FILES.items()))
    (tmp_path / "rounds").mkdir()
    work = f"""
from vlformer_cli.data.unpack import unpack
def work(root, step):
    if not (root / "out").exists():
        unpack(Path({str(archive)!r}), root / "out", progress=step)
"""
    absent, whole = kill_at_every_step(work, tmp_path / "rounds", "out")
    assert absent > 8
    assert whole >= 1
    assert contents(tmp_path / "rounds" / "1" / "out") == FILES


def extract(archive: Path, folder: Path, **options: Any) -> int:
    folder.mkdir(exist_ok=True)
    with archive.open("rb") as file:
        return extract_members(file, folder, name=archive.name, **options)


def test_chosen_members(tmp_path: Path) -> None:
    archive = make(tmp_path, "zip", list(FILES.items()))
    chosen = ["top é.txt", "refcoco/refs(unc).p"]
    plans: list[list[tuple[int, int]]] = []
    seen: list[tuple[int, int | None]] = []
    options: dict[str, Any] = {"plan": plans.append, "progress": lambda *counts: seen.append(counts)}
    assert extract(archive, tmp_path / "out", members=chosen, **options) == 2
    assert contents(tmp_path / "out") == {name: FILES[name] for name in chosen}
    total = sum(len(FILES[name]) for name in chosen)
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert plans[0] == sorted(plans[0])
    data = archive.read_bytes()
    for (start, end), name in zip(plans[0], reversed(chosen), strict=True):
        assert data[start : start + 4] == b"PK\x03\x04"
        assert name.encode() in data[start:end]

    (tmp_path / "out" / chosen[0]).write_bytes(b"cut")
    assert extract(archive, tmp_path / "out", members=chosen) == 1  # the size tells it apart
    assert extract(archive, tmp_path / "out") == 2  # all the others
    assert extract(archive, tmp_path / "out") == 0
    assert contents(tmp_path / "out") == FILES


def test_members_that_are_not_right(tmp_path: Path) -> None:
    archive = make(tmp_path, "zip", [*FILES.items(), ("../evil", b"evil")])
    with pytest.raises(VLFormerError, match=r"lacks 2 of 3 wanted members, such as 'b\.jpg'"):
        extract(archive, tmp_path / "out", members=["b.jpg", "top é.txt", "c.jpg"])
    with pytest.raises(VLFormerError, match=r"'\.\./evil', which leads out"):
        extract(archive, tmp_path / "out")
    with pytest.raises(VLFormerError, match="needs 10,240"):
        extract(archive, tmp_path / "out", members=["refcoco/refs(unc).p"], free=lambda folder: 10_239)
    with pytest.raises(VLFormerError, match="size bomb"):
        extract(archive, tmp_path / "out", members=["refcoco/refs(unc).p"], limits=Limits(total_bytes=99))
    assert contents(tmp_path / "out") == {}


def test_a_damaged_member_is_not_written(tmp_path: Path) -> None:
    noise = random.Random(3).randbytes(3000)
    archive = make_zip(tmp_path / "archive.zip", [("a", b"good"), ("b", noise)], zipfile.ZIP_STORED)
    data = bytearray(archive.read_bytes())
    data[1000] ^= 1
    archive.write_bytes(data)
    with pytest.raises(VLFormerError, match=r"archive\.zip is damaged .*CRC-32 for file 'b'"):
        extract(archive, tmp_path / "out")
    assert (tmp_path / "out" / "a").read_bytes() == b"good"
    assert not (tmp_path / "out" / "b").exists()
    archive.write_bytes(bytes(data[:-30]))
    with pytest.raises(VLFormerError, match="damaged"):
        extract(archive, tmp_path / "out")


def test_a_kill_between_members_goes_on(tmp_path: Path) -> None:
    archive = make(tmp_path, "zip", list(FILES.items()))
    (tmp_path / "rounds").mkdir()
    work = f"""
from vlformer_cli.data.unpack import extract_members
def work(root, step):
    with open({str(archive)!r}, "rb") as file:
        extract_members(file, root, name="a.zip", members=["refcoco/refs(unc).p"], progress=step)
"""
    absent, whole = kill_at_every_step(work, tmp_path / "rounds", "refcoco/refs(unc).p")
    assert absent > 3
    assert whole >= 1
