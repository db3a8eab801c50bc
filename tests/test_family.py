"""`vlformer prepare-data refcoco` as a user types it: from a folder, from a server, offline; and what comes after."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_model import SMALL
from test_download import Server, server  # noqa: F401 - a fixture
from test_refer import draw_pictures, world, write_refer

from vlformer_cli.config import Config, DataConfig, DataSource, LossConfig, TrainConfig
from vlformer_cli.data import family, mirrors
from vlformer_cli.data.mirrors import Place
from vlformer_cli.tree import to_tree


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A REFER folder with its pictures, as detectron2 users have it."""
    write_refer(tmp_path / "disk/refcoco", world())
    draw_pictures(tmp_path / "disk/coco/train2014", world())
    return tmp_path / "disk"


def zipped(folder: Path, name: str) -> bytes:
    """The folder as a zip file, its members below `name`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, f"{name}/{path.name}")
    return buffer.getvalue()


def test_from_a_folder_through_check_show_and_train(
    run: Any, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prepare-data", "refcoco", "--from", disk]
    assert run(*words) == 1
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert lines.count(["train", "4", "2", "7"]) == 1  # our table, and the published one
    assert lines.count(["train", "42404", "16994", "120624"]) == 1
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())
    assert run(*words, "--allow-count-mismatch", "--check-images") == 0
    told = capsys.readouterr().err
    assert f"pictures in {disk / 'coco/train2014'}" in told
    assert "data/refcoco-unc train: 2 images, 4 refs, 7 expressions" in told
    assert run(*words, "--allow-count-mismatch") == 1
    assert "--overwrite" in capsys.readouterr().err
    assert run("data", "check", "--dataset", "refcoco", "--check-images") == 0
    assert run("data", "show", "--dataset", "refcoco", "--split", "train", "--ref", "13") == 0
    config = Config(
        model=SMALL,
        data=DataConfig(train=(DataSource("refcoco-unc"),), val=DataSource("refcoco-unc", "val"), workers=0),
        loss=LossConfig(points=32),
        train=TrainConfig(steps=2, threads=1, device="cpu"),
    )
    Path("small.yaml").write_text(yaml.safe_dump(to_tree(config)))
    assert run("train", "--config", "small.yaml", "-o", "run") == 0
    assert run("eval", "--dataset", "refcoco", "--split", "testA", "--weights", "run/model.safetensors") == 0
    assert "refcoco-unc/testA" in capsys.readouterr().out


def test_an_alias_and_the_pictures_left_out(run: Any, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = world()
    for entry in content["refs"]:  # the same picture in train and testA
        if entry["split"] == "testA":
            entry.update(
                image_id=9, ann_id=content["annotations"][0]["id"], file_name="COCO_train2014_000000000009_1.jpg"
            )
    write_refer(disk / "refcoco", content)
    words = ["prepare-data", "RefCOCO", "--from", disk, "--allow-count-mismatch"]
    assert run(*words, "--exclude-eval-images") == 0
    said = capsys.readouterr().err
    assert "left out of train: 1 images with 2 refs, 3 expressions" in said
    assert "refcoco+ and refcocog are not where the annotations are" in said


def test_a_new_archive_is_unpacked_where_an_older_one_was(run: Any, mirror: Server, disk: Path) -> None:
    words = ["prepare-data", "refcoco", "--allow-count-mismatch", "--only-needed", "--overwrite"]
    assert run(*words) == 0
    before = json.loads(Path("data/refcoco-unc/manifest.json").read_text())["splits"]["train"]["expressions"]
    content = world()
    content["refs"] = [entry for entry in content["refs"] if entry["ref_id"] != 11]
    write_refer(disk / "refcoco", content)
    mirror.files["/refcoco.zip"] = zipped(disk / "refcoco", "refcoco")
    for path in ("refcoco.zip", "pins.json"):
        (Path("data/downloads") / path).unlink()
    assert run(*words) == 0
    after = json.loads(Path("data/refcoco-unc/manifest.json").read_text())["splits"]["train"]["expressions"]
    assert after < before


@pytest.fixture
def mirror(server: Server, disk: Path, monkeypatch: pytest.MonkeyPatch) -> Server:  # noqa: F811
    """The annotations and COCO's pictures, on a server; one picture more than refcoco asks about."""
    server.files["/refcoco.zip"] = zipped(disk / "refcoco", "refcoco")
    (disk / "coco/train2014/COCO_train2014_000000000999.jpg").write_bytes(b"not asked about")
    server.files["/train2014.zip"] = zipped(disk / "coco/train2014", "train2014")
    monkeypatch.setitem(mirrors.PLACES, "refcoco", (Place("here", "refer", ("unc",), url=server.url("/refcoco.zip")),))
    monkeypatch.setattr(
        family, "fetch_train2014", partial(mirrors.fetch_train2014, urls=[server.url("/train2014.zip")])
    )
    return server


@pytest.mark.parametrize("only_needed", [False, True])
def test_downloaded_is_as_from_a_folder(
    run: Any, mirror: Server, disk: Path, tmp_path: Path, only_needed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--allow-count-mismatch", *(["--only-needed"] if only_needed else [])]
    assert run("prepare-data", "refcoco", *options) == 0
    pictures = sorted(path.name for path in Path("data/downloads/train2014").iterdir())
    assert len(pictures) == (5 if only_needed else 6)
    assert run("prepare-data", "refcoco", "--from", disk, "--root", "other", "--allow-count-mismatch") == 0
    for name in ("train.jsonl", "val.jsonl", "testA.jsonl", "testB.jsonl", "train.index.npy"):
        assert (Path("data/refcoco-unc") / name).read_bytes() == (Path("other/refcoco-unc") / name).read_bytes()
    asked = len(mirror.asked)
    assert run("prepare-data", "refcoco", *options, "--overwrite", "--offline") == 0
    assert len(mirror.asked) == asked  # everything was there
    assert json.loads(Path("data/refcoco-unc/manifest.json").read_text())["sources"]


def test_what_was_parsed_once_is_pinned(
    run: Any, mirror: Server, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another archive under the same name is refused from then on, and what was prepared stays."""
    words = ["prepare-data", "refcoco", "--allow-count-mismatch", "--only-needed", "--overwrite"]
    assert run(*words) == 0
    pins = json.loads(Path("data/downloads/pins.json").read_text())
    assert pins == {"refcoco.zip": hashlib.sha256(mirror.files["/refcoco.zip"]).hexdigest()}  # type: ignore[arg-type]
    before = Path("data/refcoco-unc/train.jsonl").read_bytes()
    Path("data/downloads/refcoco.zip").unlink()
    shutil.rmtree("data/downloads/refcoco")
    mirror.files["/refcoco.zip"] = zipped(disk / "coco/train2014", "refcoco")
    capsys.readouterr()
    assert run(*words) == 1
    assert pins["refcoco.zip"][:8] in capsys.readouterr().err
    assert Path("data/refcoco-unc/train.jsonl").read_bytes() == before
    assert not Path("data/downloads/refcoco").exists()


def test_pictures_are_fetched_only_once_the_annotations_are_right(run: Any, mirror: Server) -> None:
    assert run("prepare-data", "refcoco") == 1  # the counts are not the published ones
    assert [asked.path for asked in mirror.asked] == ["/refcoco.zip"]
    assert not Path("data/downloads/train2014").exists()


def test_offline_says_what_to_put_where(run: Any, mirror: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prepare-data", "refcoco", "--offline") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "data/downloads/refcoco.zip" in line
    assert mirror.asked == []


def test_a_hostile_pickle_in_the_download_runs_nothing(
    run: Any, mirror: Server, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (disk / "refcoco/refs(unc).p").write_bytes(
        b"cposix\nsystem\n(S'touch " + str(tmp_path / "pwned").encode() + b"'\ntR."
    )
    mirror.files["/refcoco.zip"] = zipped(disk / "refcoco", "refcoco")
    assert run("prepare-data", "refcoco", "--allow-count-mismatch") == 1
    assert "refs(unc).p" in capsys.readouterr().err
    assert not (tmp_path / "pwned").exists()
    assert not Path("data/refcoco-unc").exists()
