"""`vlformer data`: what stats count is there, what check reports is broken, what show draws was asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from vlformer_cli.data.check import check_split
from vlformer_cli.data.choose import random_refs, refs_by_id
from vlformer_cli.data.rle import encode_mask
from vlformer_cli.data.stats import split_stats
from vlformer_cli.data.store import PreparedSplit, PreparedWriter
from vlformer_cli.types import Ref, VLFormerError


def make_ref(number: int, image: str = "a.png", **changed: Any) -> Ref:
    mask = np.zeros((30, 40), np.bool_)
    mask[5:15, 10:20] = True
    fields = {
        "image": image, "image_id": 1, "width": 40, "height": 30, "ref_id": number, "ann_ids": (number,),
        "category": "cup", "bbox": (10.0, 5.0, 10.0, 10.0), "segmentation": encode_mask(mask),
        "expressions": ("red cup", "cup on the left"), "sent_ids": (2 * number, 2 * number + 1),
    }  # fmt: skip
    return Ref(**{**fields, **changed})


def prepare(folder: Path, refs: list[Ref]) -> PreparedSplit:
    with PreparedWriter(folder, dataset="toy", split_by="me") as writer:
        (writer.folder / "images").mkdir()
        for name in ("a.png", "b.png"):
            cv2.imwrite(str(writer.folder / "images" / name), np.full((30, 40, 3), 9, np.uint8))
        writer.write_split("val", refs)
    return PreparedSplit(folder, "val")


def test_stats_by_hand(tmp_path: Path) -> None:
    nothing = make_ref(3, "b.png", segmentation=None, ann_ids=(), expressions=("dog",), sent_ids=(9,), category="")
    several = make_ref(2, "b.png", ann_ids=(5, 6), category="cup, ball")
    stats = split_stats(prepare(tmp_path / "toy-me", [make_ref(1), several, nothing]))
    assert (stats.refs, stats.images, stats.expressions) == (3, 2, 5)
    assert (stats.no_target, stats.multi_target) == (1, 2)
    assert stats.words == {2: 2, 4: 2, 1: 1}
    assert stats.categories == {"cup": 1, "cup, ball": 1, "(none)": 1}
    assert stats.mask_shares == [pytest.approx(100 / 1200)] * 2


def test_show_draws_what_it_can(tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    split = prepare(tmp_path / "toy-me", [make_ref(1), make_ref(2, "b.png")])
    (split.image_root / "b.png").unlink()
    words = ("data", "show", "--data", tmp_path / "toy-me", "--split", "val")
    assert run(*words, "--ref", 1, "--ref", 2) == 1
    said = capsys.readouterr().err
    assert "1 refs drawn in outputs/data.png" in said
    assert "left out: ref 2: " in said
    assert Path("outputs/data.png").is_file()


def test_stats_of_a_split_without_masks(tmp_path: Path, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = make_ref(3, segmentation=None, ann_ids=(), expressions=("dog",), sent_ids=(9,), category="")
    for name, refs in (("nothing", [nothing]), ("empty", [])):
        prepare(tmp_path / f"{name}-me", refs)
        assert run("data", "stats", "--data", tmp_path / f"{name}-me", "--split", "val") == 0
        assert "< 1 %" in capsys.readouterr().out
    assert run("data", "stats", "--data", tmp_path / "nothing-me", "--png", "chart.txt") == 2
    assert "--png chart.txt: give a name that ends in .png" in capsys.readouterr().err


def test_a_whole_data_set_has_no_problem(small_scenes: Path) -> None:
    for split in ("train", "val", "test"):
        assert list(check_split(PreparedSplit(small_scenes, split), decode_images=True)) == []


empty = encode_mask(np.zeros((30, 40), np.bool_))
BROKEN = {
    "no expression": ({"expressions": (), "sent_ids": ()}, "no expression"),
    "empty expression": ({"expressions": ("red cup", " ")}, "expression 2 is empty"),
    "ids": ({"sent_ids": (2,)}, "2 expressions, but 1 sent_ids"),
    "kinds": ({"kinds": ("attribute",)}, "2 expressions, but 1 kinds"),
    "anchors": ({"anchors": (None,)}, "2 expressions, but 1 anchors"),
    "empty anchor": ({"anchors": (None, empty)}, "anchor 2: the mask is empty"),
    "anchor size": (
        {"anchors": (encode_mask(np.ones((40, 30), np.bool_)), None)}, "anchor 1: mask of height x width [40, 30]"
    ),
    "empty mask": ({"segmentation": empty}, "the mask is empty"),
    "cut mask": ({"segmentation": {"size": [30, 40], "counts": "5"}}, "does not fill"),
    "mask size": ({"segmentation": encode_mask(np.ones((40, 30), np.bool_))}, "in a picture of [30, 40]"),
    "bbox": ({"bbox": (0.0, 5.0, 10.0, 10.0)}, "10.0 pixels off"),
    "no mask": ({"segmentation": None}, "no mask, but annotations [1]"),
    "picture": ({"image": "c.png"}, "c.png"),
    "picture size": (
        {"width": 30, "height": 40, "segmentation": None, "ann_ids": ()}, "is 40 x 30 pixels, the row says 30 x 40"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), BROKEN.values(), ids=BROKEN)
def test_each_broken_row_is_reported_once(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    split = prepare(tmp_path / "toy-me", [make_ref(1, **changed), make_ref(7, "b.png")])
    (problem,) = check_split(split)
    assert problem.place == "val.jsonl line 1"
    assert message in problem.what


def test_ids_that_stand_twice(tmp_path: Path) -> None:
    split = prepare(tmp_path / "toy-me", [make_ref(1), make_ref(1, sent_ids=(2, 8))])
    found = [str(problem) for problem in check_split(split)]
    assert found == [
        "val.jsonl line 2: ref_id 1 stands in an earlier row too",
        "val.jsonl line 2: sent_id 2 stands in an earlier row too",
    ]


def edit_lines(folder: Path, change: Callable[[list[bytes]], list[bytes]]) -> PreparedSplit:
    """Rewrites the rows, and the index where they stand, as a careless hand would."""
    path = folder / "val.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    return PreparedSplit(folder, "val")


def test_a_changed_file_and_a_row_that_is_no_ref(tmp_path: Path) -> None:
    prepare(tmp_path / "toy-me", [make_ref(1), make_ref(2)])
    split = edit_lines(tmp_path / "toy-me", lambda lines: [b"x" + lines[0][1:], lines[1]])
    sha, row, count = (str(problem) for problem in check_split(split))
    assert "SHA-256" in sha
    assert row.startswith("val.jsonl line 1: not a ref (JSONDecodeError")
    assert "states 4 expressions for val, its rows have 2" in count


def test_a_missing_part_of_the_index(tmp_path: Path) -> None:
    split = prepare(tmp_path / "toy-me", [make_ref(1), make_ref(2)])
    table = np.load(tmp_path / "toy-me/val.index.npy")
    np.save(tmp_path / "toy-me/val.index.npy", table[:1])
    found = [str(problem) for problem in check_split(PreparedSplit(tmp_path / "toy-me", "val"))]
    assert found[0] == "val.index.npy: 1 rows, the manifest states 2"
    assert split.num_refs == 2


def test_a_picture_that_decodes_in_part_only(tmp_path: Path) -> None:
    split = prepare(tmp_path / "toy-me", [make_ref(1), make_ref(2, "b.png")])
    path = tmp_path / "toy-me/images/b.png"
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    cv2.imwrite(str(path), noise)
    path.write_bytes(path.read_bytes()[:2000])
    assert list(check_split(split)) == []  # its header is whole
    (problem,) = check_split(split, decode_images=True)
    assert problem.place == "val.jsonl line 2"
    assert "b.png" in problem.what


def test_refs_are_chosen_at_random_or_by_id(small_scenes: Path) -> None:
    split = PreparedSplit(small_scenes, "train")
    chosen = random_refs(split, 5, seed=1)
    assert len({ref.ref_id for ref in chosen}) == 5
    assert random_refs(split, 5, seed=1) == chosen != random_refs(split, 5, seed=2)
    assert len(random_refs(split, 10_000, seed=1)) == split.num_refs
    ids = [ref.ref_id for ref in chosen]
    assert refs_by_id(split, ids) == chosen
    with pytest.raises(VLFormerError, match="has no ref 987654"):
        refs_by_id(split, [*ids, 987654])


def test_the_commands(run: Any, small_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "stats", "--data", small_scenes, "--json", "--png", "charts.png") == 0
    document = json.loads(capsys.readouterr().out)
    manifest = json.loads((small_scenes / "manifest.json").read_text())
    for one in document["splits"]:
        split = one["name"].split("/")[1]
        assert {k: one[k] for k in ("refs", "images", "expressions")} == {
            k: manifest["splits"][split][k] for k in ("refs", "images", "expressions")
        }
    assert min(cv2.imread("charts.png").shape[:2]) > 400
    assert run("data", "stats", "--data", small_scenes, "--split", "val") == 0
    assert "scenes-seed7/val: words per expression" in capsys.readouterr().out
    assert run("data", "check", "--data", small_scenes) == 0
    assert run("data", "show", "--data", small_scenes, "--split", "train", "--count", "3", "-o", "sheet.png") == 0
    assert cv2.imread("sheet.png").std() > 5
    shutil.copytree(small_scenes, tmp_path / "broken-set")
    next((tmp_path / "broken-set/images/val").iterdir()).unlink()
    capsys.readouterr()
    assert run("data", "check", "--data", tmp_path / "broken-set") == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert "1 problem" in captured.err
