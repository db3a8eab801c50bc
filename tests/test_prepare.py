"""Preparing a data set of the family: what is written, what is checked, what is left behind (nothing)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from test_layouts import prepared, write_cris, write_mdetr
from test_refer import SIZES, World, draw_pictures, gref_world, ref, world, write_refer

from vlformer_cli.data import prepare
from vlformer_cli.data.prepare import prepare_family
from vlformer_cli.data.sources import published
from vlformer_cli.data.sources.published import PUBLISHED, Counts, check_counts
from vlformer_cli.types import VLFormerError

COUNTS = {"train": Counts(4, 2, 7), "val": Counts(1, 1, 1), "testA": Counts(1, 1, 1), "testB": Counts(1, 1, 1)}
PICTURE = "COCO_train2014_000000000025.jpg"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The world as a REFER folder in detectron2's layout."""
    write_refer(tmp_path / "disk" / "refcoco", world())
    draw_pictures(tmp_path / "disk" / "coco" / "train2014", world())
    return tmp_path / "disk"


def run(disk: Path, name: str = "refcoco-unc", **options: Any) -> dict[str, Any]:
    given = {"dataset": "refcoco", "source": disk, "allow_count_mismatch": True, **options}
    return prepare_family(disk.parent / "data" / name, **given)


def left_behind(disk: Path) -> list[Path]:
    folder = disk.parent / "data"
    return sorted(folder.rglob("*")) if folder.exists() else []


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_what_is_written(disk: Path) -> None:
    manifest = run(disk)
    out = disk.parent / "data" / "refcoco-unc"
    assert json.loads((out / "manifest.json").read_text()) == manifest
    assert (manifest["dataset"], manifest["split_by"]) == ("refcoco", "unc")
    assert manifest["image_root"] == str(disk / "coco" / "train2014")
    assert manifest["sources"] == {
        name: hashlib.sha256((disk / name).read_bytes()).hexdigest()
        for name in ("refcoco/refs(unc).p", "refcoco/instances.json")
    }
    counts = {split: (c["refs"], c["images"], c["expressions"]) for split, c in manifest["splits"].items()}
    assert counts == COUNTS
    assert "excluded_eval_images" not in manifest
    train = prepared(out)["train"]
    assert [ref.image_id for ref in train] == [9, 9, 25, 25]  # refs of a picture in a row
    assert [ref.ref_id for ref in train] == [11, 15, 13, 16]


def test_counts_are_compared_with_the_published(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VLFormerError) as caught:
        run(disk, allow_count_mismatch=False)
    message = str(caught.value)
    assert "refs(unc).p in" in message
    assert "is not refcoco (unc) as published" in message
    assert "--allow-count-mismatch" in message
    rows = [line.split() for line in message.splitlines()[1:]]
    assert ["found", "refs", "images", "expressions"] in rows
    assert ["published", "refs", "images", "expressions"] in rows
    assert ["train", "4", "2", "7"] in rows
    assert ["train", "42404", "16994", "120624"] in rows
    assert ["testB", "1810", "750", "5095"] in rows
    assert not left_behind(disk)
    assert run(disk)["counts_as_published"] is False

    monkeypatch.setitem(published.PUBLISHED, ("refcoco", "unc"), COUNTS)
    assert run(disk, "again", allow_count_mismatch=False)["counts_as_published"] is True
    for place, value in (("refs", 5), ("images", 3), ("expressions", 8)):
        monkeypatch.setitem(
            published.PUBLISHED, ("refcoco", "unc"), {**COUNTS, "train": COUNTS["train"]._replace(**{place: value})}
        )
        with pytest.raises(VLFormerError, match="as published"):
            run(disk, "other", allow_count_mismatch=False)


def test_splits_too_few_and_too_many_are_mismatches() -> None:
    google = PUBLISHED["refcocog", "google"]
    found = {split: Counts(counts.refs, counts.images, 77) for split, counts in google.items()}
    check_counts("here", found, "refcocog", "google")  # no number of expressions is published
    for wrong in ({"train": found["train"]}, {**found, "test": Counts(1, 1, 1)}):
        with pytest.raises(VLFormerError, match="here is not refcocog"):
            check_counts("here", wrong, "refcocog", "google")


def test_published_counts_are_those_of_the_papers() -> None:
    totals = {
        names: tuple(sum(counts[i] or 0 for counts in splits.values()) for i in (0, 2))
        for names, splits in PUBLISHED.items()
    }
    assert totals["refcoco", "unc"] == (50000, 142210)
    assert totals["refcoco", "google"][0] == 50000
    assert totals["refcoco+", "unc"] == (49856, 141564)
    assert totals["refcocog", "umd"] == (49822, 95010)
    assert totals["refcocog", "google"][0] == 49822
    assert totals["grefcoco", "unc"][1] == 259859
    names = published.COCO_CATEGORIES
    assert (len(names), names[1], names[13], names[51], names[67], names[90]) == (
        80,
        "person",
        "stop sign",
        "bowl",
        "dining table",
        "toothbrush",
    )


def test_runs_are_repeatable_to_the_byte(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(disk, "a-1")
    with pytest.raises(VLFormerError, match="--overwrite"):
        run(disk, "a-1")
    first = bytes_of(disk.parent / "data" / "a-1")
    run(disk, "a-1", overwrite=True)
    assert bytes_of(disk.parent / "data" / "a-1") == first
    monkeypatch.chdir(disk.parent)
    run(disk, "a-1", overwrite=True, source=Path("disk"))
    assert bytes_of(disk.parent / "data" / "a-1") == first
    monkeypatch.setattr(prepare, "MASKS_CHUNK", 2)
    monkeypatch.setattr(prepare, "IMAGES_CHUNK", 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    run(disk, "a-1", overwrite=True, check_images=True)  # in two processes
    assert bytes_of(disk.parent / "data" / "a-1") == first


KILLED = """
import os, signal, sys
from pathlib import Path
from vlformer_cli.data.prepare import prepare_family

disk, stage = Path(sys.argv[1]), sys.argv[2]

def progress(what, done, total):
    if what.startswith(stage) and done:
        os.kill(os.getpid(), signal.SIGKILL)

out = disk.parent / "data" / "k-1"
prepare_family(out, dataset="refcoco", source=disk, allow_count_mismatch=True, progress=progress)
"""


@pytest.mark.parametrize("stage", ["reading ref", "reading the pictures", "making masks"])
def test_a_killed_run_leaves_nothing_under_the_name(disk: Path, stage: str) -> None:
    run(disk, "k-2")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(disk), stage], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not (disk.parent / "data" / "k-1").exists()
    run(disk, "k-1")
    ours, other = (bytes_of(disk.parent / "data" / name) for name in ("k-1", "k-2"))
    assert ours == other


def test_progress_is_reported_for_every_stage(disk: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    run(disk, check_images=True, progress=lambda *call: calls.append(call))
    assert [(what.split()[0], done, total) for what, done, total in calls] == [
        ("reading", 0, 1),
        ("reading", 1, 1),
        ("decoding", 5, 5),
        ("making", 7, 7),
    ]
    assert calls[0][0].startswith("reading refcoco (unc) as REFER files in detectron2's layout: refs(unc).p in ")


def test_a_ref_that_stands_there_twice(disk: Path) -> None:
    content = world()
    write_refer(disk / "refcoco", {**content, "refs": [*content["refs"], content["refs"][3]]})
    words = r"refs\(unc\)\.p entry 7 .*, ref_id 14 has ref_id 14, as .*entry 3 .*: ids must be unique"
    with pytest.raises(VLFormerError, match=words):
        run(disk)


def test_two_sizes_of_one_picture(tmp_path: Path) -> None:
    write_mdetr(tmp_path / "disk", world(), with_masks=True)
    draw_pictures(tmp_path / "disk" / "images", world())
    path = tmp_path / "disk" / "finetune_refcoco_train.json"
    document = json.loads(path.read_text())
    document["images"][-1]["width"] += 1
    path.write_text(json.dumps(document))
    with pytest.raises(VLFormerError, match=r"entry 6 .* states another size of .*25\.jpg than .*entry 2 .*: mend one"):
        run(tmp_path / "disk")


def picture(disk: Path, name: str = PICTURE) -> Path:
    return disk / "coco" / "train2014" / name


def test_pictures_that_are_missing(disk: Path) -> None:
    picture(disk).unlink()
    picture(disk, "COCO_train2014_000000000034.jpg").unlink()
    words = (
        rf"refs\(unc\)\.p entry 2 .*, ref_id 13 needs .*{PICTURE}, which is not there \(2 of 5 are missing\).*--images"
    )
    with pytest.raises(VLFormerError, match=words):
        run(disk)
    assert not left_behind(disk)
    for path in picture(disk).parent.iterdir():
        path.unlink()
    picture(disk).parent.rmdir()
    with pytest.raises(
        VLFormerError, match=r"no folder of pictures for refcoco \(unc\).*give --images.*coco/train2014"
    ):
        run(disk)
    with pytest.raises(VLFormerError, match="gone is not a folder"):
        run(disk, images=disk / "gone")


def test_pictures_of_another_size(disk: Path) -> None:
    width, height = SIZES[25]
    assert cv2.imwrite(str(picture(disk)), np.zeros((width, height, 3), np.uint8))
    with pytest.raises(
        VLFormerError, match=rf"ref_id 13: .*{PICTURE} is {height} x {width} .*for {width} x {height}: use"
    ):
        run(disk)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (width, height)).save(picture(disk), exif=exif)
    with pytest.raises(VLFormerError, match="with its EXIF orientation applied"):
        run(disk)


def test_a_cut_picture_is_found_by_decoding_it(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = picture(disk).read_bytes()
    picture(disk).write_bytes(whole[: len(whole) // 2])
    run(disk)  # its header is sound
    monkeypatch.setattr(prepare, "IMAGES_CHUNK", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    for workers in (2, 1):
        monkeypatch.setattr(os, "cpu_count", lambda workers=workers: workers)
        with pytest.raises(VLFormerError, match=rf"ref_id 13: .*{PICTURE} cannot be read as a picture"):
            run(disk, "other", check_images=True)
    picture(disk).write_bytes(b"")
    with pytest.raises(VLFormerError, match="is empty"):
        run(disk, "other")


def test_the_folder_of_pictures(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (disk / "images" / "train2014").mkdir(parents=True)  # an empty one that would come first
    assert run(disk)["image_root"] == str(disk / "coco" / "train2014")
    draw_pictures(disk.parent / "elsewhere", world())
    assert run(disk, "other", images=disk.parent / "elsewhere")["image_root"] == str(disk.parent / "elsewhere")
    monkeypatch.chdir(disk.parent)
    assert run(disk, "third", images=Path("elsewhere"))["image_root"] == str(disk.parent / "elsewhere")


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd"])
def test_pictures_outside_the_folder_are_refused(disk: Path, name: str) -> None:
    content = world()
    content["images"][0]["file_name"] = name
    content["refs"][0].pop("file_name")
    content["refs"][4].pop("file_name")
    write_refer(disk / "refcoco", content)
    with pytest.raises(VLFormerError, match=rf"ref_id 11 has the picture '{name}': it must be a path below"):
        run(disk)


def test_an_error_in_a_mask_leaves_nothing(disk: Path) -> None:
    content = world()
    content["annotations"][6]["segmentation"] = [[40, 20, 60, 20, 60, 30]]
    write_refer(disk / "refcoco", content)
    with pytest.raises(VLFormerError, match=r"ref_id 17, annotation 301: a polygon has a point at x = 60, outside"):
        run(disk)
    assert not left_behind(disk)


@pytest.mark.parametrize("split", ["../x", "", "a b"])
def test_splits_become_file_names(disk: Path, split: str) -> None:
    content = world()
    content["refs"][1]["split"] = split
    write_refer(disk / "refcoco", content)
    with pytest.raises(VLFormerError, match=rf"ref_id 12 has the split '{split}': it must be one of train, val"):
        run(disk)
    write_refer(disk / "refcoco", {**content, "refs": []})
    with pytest.raises(VLFormerError, match="holds no refs"):
        run(disk)


def family(disk: Path) -> None:
    """Beside the world: RefCOCO+ whose val shows picture 25, RefCOCOg whose test shows 9 and another."""
    content = world()
    plus = [ref(1, "val", 103, 25, 51, ("x", "x")), ref(2, "train", 101, 9, 51, ("x", "x"))]
    write_refer(disk / "refcoco+", {**content, "refs": plus})
    refcocog = [ref(1, "test", 205, 34, 1, ("x", "x"))]
    content["annotations"][5]["id"] = 205
    write_refer(disk / "refcocog", {**content, "refs": refcocog}, "refs(umd).p")


def test_evaluation_pictures_are_left_out_of_training(disk: Path) -> None:
    family(disk)
    calls: list[str] = []
    manifest = run(disk, exclude_eval_images=True, progress=lambda what, done, total: calls.append(what))
    out = prepared(disk.parent / "data" / "refcoco-unc")
    assert [ref.ref_id for ref in out["train"]] == [11, 15]
    assert [len(out[split]) for split in ("val", "testA", "testB")] == [1, 1, 1]
    assert manifest["splits"]["train"]["images"] == 1
    assert manifest["excluded_eval_images"] == {
        "images": 1,
        "refs": 2,
        "expressions": 4,
        "images_by_split": {
            "refcoco+-unc/val": 1,
            "refcoco-unc/testA": 0,
            "refcoco-unc/testB": 0,
            "refcoco-unc/val": 0,
            "refcocog-umd/test": 0,
        },
    }
    assert any("refcocog (umd)" in what for what in calls)

    (disk / "refcocog" / "instances.json").write_text("{")
    with pytest.raises(VLFormerError, match=r"refcocog/instances\.json"):  # what cannot be read cannot be left out
        run(disk, "other", exclude_eval_images=True)


def test_excluding_for_another_layout_and_the_google_partition(disk: Path) -> None:
    content = world()
    write_refer(disk / "refcoco", {**content, "refs": [ref(1, "val", 101, 9, 51, ("x", "x"))]}, "refs(google).p")
    manifest = run(disk, exclude_eval_images=True)
    assert manifest["excluded_eval_images"]["images_by_split"]["refcoco-google/val"] == 1
    assert [ref.image_id for ref in prepared(disk.parent / "data" / "refcoco-unc")["train"]] == [25, 25]


def test_hashes_of_a_folder_of_masks_change_with_a_mask(tmp_path: Path) -> None:
    write_cris(tmp_path / "disk", world())
    draw_pictures(tmp_path / "disk" / "images" / "train2014", world())
    before = run(tmp_path / "disk", "a")["sources"]["masks/refcoco"]
    mask = tmp_path / "disk" / "masks" / "refcoco" / "12.png"
    pixels = cv2.imread(str(mask), cv2.IMREAD_GRAYSCALE)
    pixels[0, 0] ^= 255
    cv2.imwrite(str(mask), pixels)
    assert run(tmp_path / "disk", "b")["sources"]["masks/refcoco"] != before


def test_grefcoco_is_written_with_nulls(tmp_path: Path) -> None:
    content: World = gref_world()
    write_refer(tmp_path / "disk" / "grefcoco", content, "grefs(unc).json")
    draw_pictures(tmp_path / "disk" / "images", content)
    run(tmp_path / "disk", "grefcoco-unc", dataset="GRefCOCO")
    lines = (tmp_path / "data" / "grefcoco-unc" / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["segmentation"] is None for row in rows] == [False, False, True]
    assert rows[2]["ann_ids"] == []
    assert rows[2]["bbox"] == [0, 0, 0, 0]
