"""The REFER reader: what it makes of refs and instances, and what it says of every mistake.

The small world below, and how it is written to disk, also serves test_layouts.py and test_prepare.py: pictures that are
drawn here, with refs and annotations of REFER's very structure.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from vlformer_cli.data.prepare import make_ref
from vlformer_cli.data.rle import decode_rle
from vlformer_cli.data.sources.refer import NO_TARGET, check_unique, load_plain_pickle, read_refer
from vlformer_cli.types import Ref, VLFormerError

World = dict[str, Any]
SIZES = {9: (64, 48), 25: (48, 64), 30: (40, 40), 34: (80, 60), 36: (50, 70)}  # image id: width, height

BOWL, CUP, SPLIT_BOWL, VASE = 101, 102, 103, 104
PERSON_A, PERSON_B, LEFT_OF_EDGE, CROWD = 201, 202, 301, 302


def polygon(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def annotation(ann_id: int, image_id: int, category_id: int, segmentation: Any, iscrowd: int = 0) -> World:
    return {
        "segmentation": segmentation,
        "area": 10.5,
        "iscrowd": iscrowd,
        "image_id": image_id,
        "bbox": [1.0, 2.0, 3.0, 4.0],
        "category_id": category_id,
        "id": ann_id,
    }


def ref(ref_id: int, split: str, ann_id: Any, image_id: int, category_id: Any, *texts: tuple[str, str]) -> World:
    sentences = [
        {"tokens": sent.split(), "raw": raw, "sent": sent, "sent_id": 10 * ref_id + i}
        for i, (raw, sent) in enumerate(texts)
    ]
    return {
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "file_name": f"COCO_train2014_{image_id:012}_{ref_id}.jpg",
        "ann_id": ann_id,
        "ref_id": ref_id,
        "image_id": image_id,
        "split": split,
        "sentences": sentences,
        "category_id": category_id,
    }


def world() -> World:
    """Five pictures with eight annotations and seven refs: what refs(unc).p and instances.json hold of them."""
    images = [
        {"license": 1, "file_name": f"COCO_train2014_{i:012}.jpg", "height": height, "width": width, "id": i}
        for i, (width, height) in SIZES.items()
    ]
    parts = [
        polygon(2.5, 3.25, 20, 30),
        polygon(15, 20, 40.75, 40),
        [1.0, 1.0, 2.0, 2.0],
    ]  # they overlap; one is a line
    crowd = {"counts": [70, 60, 3370], "size": [70, 50]}
    annotations = [
        annotation(BOWL, 9, 51, [polygon(4, 5, 30.5, 20)]),
        annotation(CUP, 9, 47, [[10.2, 20.1, 50.9, 22.4, 31.3, 44.0]]),
        annotation(SPLIT_BOWL, 25, 51, parts),
        annotation(VASE, 25, 86, {"counts": [500, 100, 2472], "size": [64, 48]}),
        annotation(PERSON_A, 30, 1, [polygon(0, 0, 19, 39.5)]),
        annotation(PERSON_B, 34, 1, [polygon(70.5, 2, 81.5, 40)]),  # it reaches a pixel and a half out of the picture
        annotation(LEFT_OF_EDGE, 36, 47, [polygon(-1.5, 10, 20, 30)]),
        annotation(CROWD, 36, 1, crowd, iscrowd=1),
    ]
    refs = [
        ref(11, "train", BOWL, 9, 51, ("Blue pot, far right.", "blue pot far right"), ("the bowl", "the bowl")),
        ref(12, "val", PERSON_A, 30, 1, ("girl, 12:00", "girl 1200")),
        ref(13, "train", SPLIT_BOWL, 25, 51, ("CUP", "cup"), ("2nd bowl", "second bowl"), ("a bowl ", "a bowl ")),
        ref(14, "testA", PERSON_B, 34, 1, ("señor", "señor")),
        ref(15, "train", CUP, 9, 47, ("cup", "cup")),
        ref(16, "train", VASE, 25, 86, ("vase", "vase")),
        ref(17, "testB", LEFT_OF_EDGE, 36, 47, ("pot left", "pot left")),
    ]
    categories = [{"supercategory": "x", "id": i, "name": n} for i, n in CATEGORIES.items()]
    return {"refs": refs, "images": images, "annotations": annotations, "categories": categories}


CATEGORIES = {1: "person", 47: "cup", 51: "bowl", 86: "vase"}


def gref_world() -> World:
    """The same pictures with gRefCOCO's refs: several referents, one, none."""
    refs = [
        ref(0, "train", [BOWL], 9, [51], ("the Bowl.", "the bowl")),
        ref(200000, "train", [CUP, BOWL, CUP], 9, [47, 51, 47], ("Both things", "both things"), ("all", "all")),
        ref(200001, "train", [NO_TARGET], 9, [NO_TARGET], ("the dog", "the dog")) | {"no_target": True},
        ref(200002, "val", [LEFT_OF_EDGE, CROWD], 36, [47, 1], ("everything", "everything")),
    ]
    for entry in refs[1:]:  # the new ones' file names carry no annotation's number
        entry["file_name"] = f"COCO_train2014_{entry['image_id']:012}.jpg"
    return {**world(), "refs": refs}


def write_refer(folder: Path, content: World, name: str = "refs(unc).p") -> tuple[Path, Path]:
    """`refs(...).p` or `grefs(...).json` and `instances.json` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    refs, instances = folder / name, folder / "instances.json"
    if refs.suffix == ".json":
        refs.write_text(json.dumps(content["refs"]))
    else:
        refs.write_bytes(pickle.dumps(content["refs"], protocol=2))
    instances.write_text(json.dumps({part: content[part] for part in ("images", "annotations", "categories")}))
    return refs, instances


def draw_pictures(folder: Path, content: World) -> None:
    """A JPEG of noise for each entry of `images`."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        pixels = np.random.default_rng(image["id"]).integers(
            0, 256, (image["height"], image["width"], 3), dtype=np.uint8
        )
        assert cv2.imwrite(str(folder / image["file_name"]), pixels)


def mask_of(content: World, *ann_ids: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The union of annotations by pycocotools alone, as the REFER code makes it."""
    masks = []
    for entry in (entry for entry in content["annotations"] if entry["id"] in ann_ids):
        image = next(image for image in content["images"] if image["id"] == entry["image_id"])
        segmentation = entry["segmentation"]
        if isinstance(segmentation, list):
            segmentation = [part for part in segmentation if len(part) >= 6]
        rles = coco_mask.frPyObjects(segmentation, image["height"], image["width"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' own, under numpy 2
            masks += [coco_mask.decode(rle).astype(bool) for rle in (rles if isinstance(rles, list) else [rles])]
    return np.any(masks, axis=0)


def read(folder: Path, content: World, name: str = "refs(unc).p", text_field: str = "sent") -> list[Ref]:
    """Written and read again, masks and all."""
    found = read_refer(*write_refer(folder, content, name), text_field=text_field)
    check_unique(found)
    return [make_ref(entry, *entry.size) for entry in found if entry.size is not None]


def python2_pickle(value: Any) -> bytes:
    """As Python 2 wrote it with protocol 2: text as bytes in Latin-1."""

    def emit(value: Any) -> bytes:
        if isinstance(value, str):
            return b"U" + bytes([len(value)]) + value.encode("latin-1")
        if isinstance(value, int):
            return b"J" + value.to_bytes(4, "little", signed=True)
        if isinstance(value, list):
            return b"](" + b"".join(map(emit, value)) + b"e"
        return b"}(" + b"".join(emit(part) for pair in value.items() for part in pair) + b"u"

    return b"\x80\x02" + emit(value) + b"."


def test_every_field_of_every_ref(tmp_path: Path) -> None:
    content = world()
    refs = read(tmp_path, content)
    assert [ref.ref_id for ref in refs] == [11, 12, 13, 14, 15, 16, 17]
    for found, entry in zip(refs, content["refs"], strict=True):
        width, height = SIZES[entry["image_id"]]
        assert found.image == f"COCO_train2014_{entry['image_id']:012}.jpg"
        assert (found.image_id, found.width, found.height) == (entry["image_id"], width, height)
        assert (found.ann_ids, found.category) == ((entry["ann_id"],), CATEGORIES[entry["category_id"]])
        assert found.expressions == tuple(sentence["sent"].strip() for sentence in entry["sentences"])
        assert found.sent_ids == tuple(entry["sent_ids"])
        assert found.segmentation is not None
        mask = mask_of(content, entry["ann_id"])
        np.testing.assert_array_equal(decode_rle(found.segmentation), mask)
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        x, y = columns[0], rows[0]
        assert found.bbox == (x, y, columns[-1] + 1 - x, rows[-1] + 1 - y)
    assert refs[2].expressions == ("cup", "second bowl", "a bowl")
    assert refs[3].bbox[0] + refs[3].bbox[2] == 80  # what reached out is cut at the edge


def test_three_forms_of_rle_are_one_mask(tmp_path: Path) -> None:
    content = world()
    plain = content["annotations"][3]["segmentation"]
    packed = coco_mask.frPyObjects(plain, *plain["size"])
    for counts in (packed["counts"].decode(), plain["counts"]):
        content["annotations"][3]["segmentation"] = {"size": plain["size"], "counts": counts}
        vase = read(tmp_path, content)[5]
        assert vase.segmentation == {"size": [64, 48], "counts": packed["counts"].decode()}


def test_grefs_have_several_referents_or_none(tmp_path: Path) -> None:
    content = gref_world()
    one, several, nothing, without_crowd = read(tmp_path, content, "grefs(unc).json", text_field="raw")
    assert (one.ann_ids, one.expressions, one.category) == ((BOWL,), ("the Bowl.",), "bowl")
    assert (several.ann_ids, several.category, several.expressions) == (
        (CUP, BOWL),
        "cup, bowl",
        ("Both things", "all"),
    )
    assert several.segmentation is not None
    np.testing.assert_array_equal(decode_rle(several.segmentation), mask_of(content, CUP, BOWL))
    assert (nothing.ann_ids, nothing.segmentation, nothing.bbox, nothing.category) == ((), None, (0, 0, 0, 0), "")
    assert nothing.expressions == ("the dog",)
    assert without_crowd.segmentation is not None
    assert without_crowd.ann_ids == (LEFT_OF_EDGE,)
    np.testing.assert_array_equal(decode_rle(without_crowd.segmentation), mask_of(content, LEFT_OF_EDGE))
    assert read(tmp_path / "p", content, "grefs(unc).p", text_field="raw") == [one, several, nothing, without_crowd]


def test_a_crowd_region_that_stands_alone_is_kept(tmp_path: Path) -> None:
    content = world()
    content["refs"] = [ref(1, "val", CROWD, 36, 1, ("people", "people"))]
    (crowd,) = read(tmp_path, content)
    assert crowd.segmentation is not None
    assert decode_rle(crowd.segmentation).sum() == 60


def test_python_2_pickles_with_latin_1_text(tmp_path: Path) -> None:
    content = world()
    refs, instances = write_refer(tmp_path, content)
    expected = read_refer(refs, instances)
    refs.write_bytes(python2_pickle(content["refs"]))
    assert b"se\xf1or" in refs.read_bytes()
    assert read_refer(refs, instances) == expected
    assert expected[3].expressions == ("señor",)


class Run:
    """What a hostile pickle is made of."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_runs_a_command_is_refused_unrun(tmp_path: Path, protocol: int) -> None:
    ran, path = tmp_path / "ran", tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"ref_id": Run(f"touch {ran}")}], protocol=protocol))
    with pytest.raises(VLFormerError, match=r"refs\(unc\)\.p would run (posix|nt)\.system.*delete it") as caught:
        load_plain_pickle(path)
    assert "\n" not in str(caught.value)
    assert not ran.exists()


@pytest.mark.parametrize(
    "value",
    [np.int64(3), Path("x"), b"bytes under protocol 2", {1, 2}, 1j],
    ids=["numpy", "path", "bytes", "set", "complex"],
)
def test_a_pickle_of_anything_but_plain_values_is_refused(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([value], protocol=2))
    with pytest.raises(VLFormerError, match="would run"):
        load_plain_pickle(path)


def test_plain_values_of_all_kinds_are_read(tmp_path: Path) -> None:
    value = [{"a": (1, 2.5, None, True, -(10**30))}, {2, 3}, "é", ["x"] * 3]
    (tmp_path / "x.p").write_bytes(pickle.dumps(value, protocol=4))
    assert load_plain_pickle(tmp_path / "x.p") == value


@pytest.mark.parametrize("kept", [0, 1, 2, 0.3, 0.9, -1])
def test_cut_pickles(tmp_path: Path, kept: float) -> None:
    refs, instances = write_refer(tmp_path, world())
    whole = refs.read_bytes()
    refs.write_bytes(whole[: int(kept if kept >= 1 or kept <= 0 else kept * len(whole))])
    with pytest.raises(VLFormerError, match=r"refs\(unc\)\.p is not a whole pickle .*fetch the file again"):
        read_refer(refs, instances)


def test_damaged_pickles_never_end_in_another_error(tmp_path: Path) -> None:
    refs, instances = write_refer(tmp_path, world())
    whole, rng = refs.read_bytes(), np.random.default_rng(5)
    messages = []
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(0, 256)
        refs.write_bytes(damaged)
        try:
            read_refer(refs, instances)
        except VLFormerError as error:
            messages.append(str(error))
    assert len(messages) > 150
    assert all("refs(unc).p" in message for message in messages)


def changed(path: str, value: Any) -> World:
    """The world with one place replaced, or removed by None. A path is like `refs.0.ann_id`."""
    content = copy.deepcopy(world())
    place: Any = content
    *steps, last = (int(step) if step.isdecimal() else step for step in path.split("."))
    for step in steps:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("refs", {}, r"refs\(unc\)\.p holds a dict: it must be a list of refs"),
        ("refs.1", "x", r"refs\(unc\)\.p entry 1 \(from 0\) has no 'ref_id'"),
        ("refs.1.ref_id", None, r"entry 1 \(from 0\) has no 'ref_id'"),
        ("refs.1.ref_id", "12", r"entry 1 .* has the ref_id '12': it must be of type int"),
        ("refs.1.ref_id", True, "has the ref_id True"),
        ("refs.1.ref_id", 11, r"entry 1 .*, ref_id 11 has ref_id 11, as .*entry 0 .* has: ids must be unique"),
        ("refs.1.sentences.0.sent_id", 111, r"entry 1 .*, ref_id 12 has sent_id 111, as .*entry 0"),
        ("refs.0.sentences.0.sent_id", 111, r"entry 0 .* has sent_id 111, as .*entry 0"),
        ("refs.0.sentences.0.sent", 7, r"ref_id 11: a sentence has the sent 7: it must be of type str"),
        ("refs.0.sentences", [], "ref_id 11 has no sentences"),
        ("refs.0.sentences", ["x"], "a sentence has no 'sent'"),
        ("refs.0.split", None, "ref_id 11 has no 'split'"),
        ("refs.0.ann_id", None, "ref_id 11 has no 'ann_id'"),
        ("refs.0.ann_id", 999, r"ref_id 11 names ann_id 999, which .*instances\.json does not have"),
        ("refs.0.ann_id", PERSON_A, rf"names ann_id {PERSON_A}, which is of image 30, not 9, in .*instances\.json"),
        ("refs.0.ann_id", [NO_TARGET, BOWL], r"ann_id \[-1, 101\]: -1 means no target and stands alone"),
        ("refs.0.ann_id", ["x"], r"ann_id \['x'\]: give whole numbers"),
        ("refs.0.image_id", 77, r"names image_id 77, which .*instances\.json does not list"),
        ("refs.0.file_name", "COCO_train2014_000000000025_3.jpg", r"file_name .*25_3\.jpg'.* is 'COCO.*09\.jpg' in"),
        ("refs.0.category_id", 999, r"ref_id 11 has category_id 999, which .*instances\.json does not have"),
        ("refs.0.category_id", [[1]], r"category_id \[1\], which"),
        ("annotations.0.category_id", 999, "annotation 101 has category_id 999: no category has it"),
        ("annotations.0.category_id", None, r"instances\.json: annotation 101 has no category"),
        ("annotations.0.segmentation", None, r"instances\.json: `annotations` entry 0 .* no 'segmentation'"),
        ("annotations.1.id", BOWL, r"instances\.json has annotation id 101 twice"),
        ("images.0.height", "48", r"instances\.json: `images` entry 0 .*height '48'"),
    ],
)  # fmt: skip
def test_wrong_entries_are_named(tmp_path: Path, path: str, value: Any, words: str) -> None:
    with pytest.raises(VLFormerError, match=words) as caught:
        read(tmp_path, changed(path, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("segmentation", "words"),
    [
        ([polygon(70, 5, 90, 20)], r"point at x = 90, outside the picture of 64 x 48"),
        ([polygon(4, -20, 30, 20)], r"point at y = -20, outside the picture"),
        ([polygon(4, 5, 3000, 20)], r"point at 3000, far outside"),
        ([polygon(4, 5, float("nan"), 20)], "coordinate nan"),
        ([polygon(64.5, 5, 66, 20)], r"its mask covers no pixel of COCO_train2014_000000000009\.jpg"),
        ([[1, 2, 3, 4]], r"polygon \[1, 2, 3, 4\] is not a list .* three points"),
        ([], r"segmentation \[\] is neither"),
        (None, r"no 'segmentation'"),
        ({"size": [64, 48], "counts": [0, 3072]}, r"RLE of size \[64, 48\] does not fit"),
        ({"size": [48, 64], "counts": [3072]}, "covers no pixel"),
        ({"size": [48, 64], "counts": [0, 3000]}, "runs over 3000 pixels"),
        ({"size": [48, 64], "counts": "~~~"}, "is malformed"),
    ],
)
def test_masks_that_do_not_fit(tmp_path: Path, segmentation: Any, words: str) -> None:
    with pytest.raises(VLFormerError, match=words) as caught:
        read(tmp_path, changed("annotations.0.segmentation", segmentation))
    if segmentation is not None:
        assert "entry 0 (from 0), ref_id 11, annotation 101: " in str(caught.value)


def test_truncated_and_missing_instances(tmp_path: Path) -> None:
    refs, instances = write_refer(tmp_path, world())
    instances.write_bytes(instances.read_bytes()[:-300])
    with pytest.raises(VLFormerError, match=r"instances\.json line 1 is not JSON .*again"):
        read_refer(refs, instances)
    instances.unlink()
    with pytest.raises(VLFormerError, match=r"instances\.json cannot be read \(No such file"):
        read_refer(refs, instances)


def test_the_other_form_of_a_sentence_stands_in(tmp_path: Path) -> None:
    content = world()
    del content["refs"][1]["sentences"][0]["sent"]
    assert read(tmp_path, content)[1].expressions == ("girl, 12:00",)
