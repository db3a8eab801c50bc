"""The layouts that users have on disk: each is found by itself, and all of them give the same refs."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from test_refer import BOWL, CUP, NO_TARGET, World, draw_pictures, gref_world, mask_of, read, world, write_refer

from vlformer_cli.data.prepare import prepare_family
from vlformer_cli.data.sources.detect import find_source, find_sources, read_source
from vlformer_cli.data.sources.mdetr import read_mdetr
from vlformer_cli.data.sources.published import COCO_CATEGORIES, resolve_dataset
from vlformer_cli.data.store import PreparedSplit, file_sha256
from vlformer_cli.types import Ref, VLFormerError


def write_mdetr(folder: Path, content: World, dataset: str = "refcoco", with_masks: bool = False) -> None:
    """As scripts/fine-tuning/refexp_coco_format.py and gRefCOCO's grefexp_coco_format.py write it."""
    folder.mkdir(parents=True, exist_ok=True)
    annotations = {entry["id"]: entry for entry in content["annotations"]}
    images = {entry["id"]: entry for entry in content["images"]}
    numbers = iter(range(10**6))
    for split in dict.fromkeys(entry["split"] for entry in content["refs"]):
        out: World = {"info": {}, "licenses": [], "images": [], "annotations": [], "categories": content["categories"]}
        for entry in (entry for entry in content["refs"] if entry["split"] == split):
            for sentence in entry["sentences"]:
                image = images[entry["image_id"]]
                number = next(numbers)
                sizes = {"height": image["height"], "width": image["width"]}
                ids = {"id": number, "original_id": image["id"], "file_name": image["file_name"]}
                out["images"].append({**ids, **sizes, "caption": sentence["sent"], "dataset_name": dataset})
                ann_ids = entry["ann_id"] if isinstance(entry["ann_id"], list) else [entry["ann_id"]]
                for ann_id in dict.fromkeys(ann_ids):
                    original = annotations.get(ann_id, {"iscrowd": -1, "category_id": -1, "empty": True})
                    row = {**original, "image_id": number, "id": next(numbers), "original_id": ann_id}
                    if not with_masks:
                        row.pop("segmentation", None)
                    out["annotations"].append(row)
        (folder / f"finetune_{dataset}_{split}.json").write_text(json.dumps(out))


def write_cris(base: Path, content: World, name: str = "refcoco") -> None:
    """As tools/data_process.py writes it, with an overlap of a mask's parts at 254."""
    (base / "masks" / name).mkdir(parents=True)
    (base / "anns" / name).mkdir(parents=True)
    files = {entry["id"]: entry["file_name"] for entry in content["images"]}
    names = list(COCO_CATEGORIES)
    for split in dict.fromkeys(entry["split"] for entry in content["refs"]):
        rows = []
        for entry in (entry for entry in content["refs"] if entry["split"] == split):
            sentences = [
                {"idx": i, "sent_id": sentence["sent_id"], "sent": sentence["sent"].strip()}
                for i, sentence in enumerate(entry["sentences"])
            ]
            ids = {"segment_id": entry["ref_id"], "img_name": files[entry["image_id"]]}
            category = names.index(entry["category_id"])
            row = {"bbox": [0, 0, 1, 1], "cat": category, "sentences": sentences, "sentences_num": len(sentences)}
            rows.append({**ids, **row})
            mask = mask_of(content, entry["ann_id"]) * np.uint8(255)
            mask[(mask > 0) & (np.arange(mask.shape[1]) % 2 == 0)] = 254
            assert cv2.imwrite(str(base / "masks" / name / f"{entry['ref_id']}.png"), mask)
        (base / "anns" / name / f"{split}.json").write_text(json.dumps(rows))


def write_parquet(folder: Path, content: World) -> None:
    """With the columns of jxu124/refcoco, one file a split; testA is in the file called test."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir(parents=True)
    annotations = {entry["id"]: entry for entry in content["annotations"]}
    images = {entry["id"]: entry for entry in content["images"]}
    names = {"val": "validation", "testA": "test"}
    for split in dict.fromkeys(entry["split"] for entry in content["refs"]):
        rows = [
            {
                **entry,
                "raw_anns": json.dumps(annotations[entry["ann_id"]]),
                "raw_image_info": json.dumps(images[entry["image_id"]]),
                "raw_sentences": json.dumps(entry["sentences"]),
                "image_path": f"coco/train2014/{images[entry['image_id']]['file_name']}",
                "bbox": [0.0, 0.0, 1.0, 1.0],
                "captions": [sentence["raw"] for sentence in entry["sentences"]],
                "global_image_id": f"coco.{entry['image_id']}",
                "anns_id": f"refcoco.{entry['ann_id']}",
            }
            for entry in content["refs"]
            if entry["split"] == split
        ]
        name = f"{names.get(split, split)}-00000-of-00001-0123456789abcdef.parquet"
        parquet.write_table(arrow.Table.from_pylist(rows), folder / name)


def refer_layout(annotations: str, pictures: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        write_refer(root / annotations, world())
        draw_pictures(root / pictures, world())

    return build


def mdetr_layout(with_masks: bool) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        write_mdetr(root / "mdetr_annotations", world(), with_masks=with_masks)
        if not with_masks:
            write_refer(root / "annotations", world())
            (root / "annotations" / "instances.json").rename(root / "annotations" / "instances_train2014.json")
            (root / "annotations" / "refs(unc).p").unlink()
        draw_pictures(root / "train2014", world())

    return build


def cris_layout(root: Path) -> None:
    write_cris(root / "datasets", world())
    draw_pictures(root / "datasets" / "images" / "train2014", world())


def parquet_layout(folder: str) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        write_parquet(root / folder, world())
        draw_pictures(root / "coco" / "train2014", world())

    return build


MSCOCO = "images/mscoco/images/train2014"
LAYOUTS: dict[str, tuple[Callable[[Path], None], str, str]] = {
    # how it is built, what --from names in it, what it is called
    "plain": (refer_layout("refcoco", "images"), ".", "REFER files"),
    "plain, the folder itself": (refer_layout("somewhere", "somewhere/images"), "somewhere", "REFER files"),
    "plain, the folder by its name": (refer_layout("RefCOCO", "train2014"), "RefCOCO", "REFER files"),
    "LAVT, its root": (refer_layout("refer/data/refcoco", f"refer/data/{MSCOCO}"), ".", "refer's and LAVT's"),
    "LAVT, refer": (refer_layout("refer/data/refcoco", f"refer/data/{MSCOCO}"), "refer", "refer's and LAVT's"),
    "LAVT, data": (refer_layout("refer/data/refcoco", f"refer/data/{MSCOCO}"), "refer/data", "refer's and LAVT's"),
    "LAVT, refcoco": (refer_layout("refer/data/refcoco", f"refer/data/{MSCOCO}"), "refer/data/refcoco", "LAVT's"),
    "detectron2": (refer_layout("datasets/refcoco", "datasets/coco/train2014"), "datasets", "detectron2's layout"),
    "detectron2, its root": (refer_layout("datasets/refcoco", "datasets/coco/train2014"), ".", "detectron2's layout"),
    "ReLA": (refer_layout("datasets/refcoco", "datasets/images/train2014"), "datasets", "ReLA's layout"),
    "VLFormer": (refer_layout("datasets/coco/refcoco", "datasets/coco/train2014"), ".", "detectron2's layout"),
    "LISA": (refer_layout("dataset/refer_seg/refcoco", f"dataset/refer_seg/{MSCOCO}"), ".", "LISA's layout"),
    "LISA, refer_seg": (refer_layout("refer_seg/refcoco", f"refer_seg/{MSCOCO}"), "refer_seg", "LISA's layout"),
    "MDETR": (mdetr_layout(with_masks=False), ".", "MDETR's files"),
    "MDETR, its folder": (mdetr_layout(with_masks=False), "mdetr_annotations", "MDETR's files"),
    "MDETR with masks": (mdetr_layout(with_masks=True), ".", "MDETR's files"),
    "CRIS": (cris_layout, ".", "CRIS's files"),
    "CRIS, datasets": (cris_layout, "datasets", "CRIS's files"),
    "CRIS, anns": (cris_layout, "datasets/anns", "CRIS's files"),
    "parquet": (parquet_layout("refcoco/data"), ".", "a parquet mirror"),
    "parquet, its folder": (parquet_layout("x/data"), "x", "a parquet mirror"),
    "parquet, Hugging Face's cache": (
        parquet_layout("hub/datasets--jxu124--refcoco/snapshots/0123abc/data"),
        "hub",
        "a parquet mirror",
    ),
}


def prepared(directory: Path) -> dict[str, list[Ref]]:
    """The refs of a prepared data set, by split."""
    splits = sorted(path.name.removesuffix(".jsonl") for path in directory.glob("*.jsonl"))
    opened = {split: PreparedSplit(directory, split) for split in splits}
    return {name: [split.ref(row) for row in range(split.num_refs)] for name, split in opened.items()}


def expected(tmp_path: Path) -> dict[str, list[Ref]]:
    """What the REFER reader makes of the world, refs of one picture in a row."""
    of_id = {ref.ref_id: ref for ref in read(tmp_path / "expected", world())}
    ids = {"train": (11, 15, 13, 16), "val": (12,), "testA": (14,), "testB": (17,)}
    return {split: [of_id[i] for i in of_split] for split, of_split in ids.items()}


def without_ids(refs: dict[str, list[Ref]], *lost: str) -> dict[str, list[Ref]]:
    blank: dict[str, Any] = {"ref_id": 0, "ann_ids": (), "sent_ids": ()}
    return {k: [replace(ref, **{name: blank[name] for name in lost}) for ref in same] for k, same in refs.items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_refs(tmp_path: Path, name: str) -> None:
    build, source, title = LAYOUTS[name]
    build(tmp_path / "disk")
    root = tmp_path / "disk" / source
    if name == "parquet, Hugging Face's cache":
        (tmp_path / "disk" / "coco").rename(root / "coco")

    found = find_source(root, "refcoco", "unc")
    assert title in str(found)
    assert found.files[0].name in str(found)
    manifest = prepare_family(tmp_path / "out", dataset="refcoco", source=root, allow_count_mismatch=True)

    lost = {"MDETR": ("ref_id", "sent_ids"), "CRIS": ("ann_ids",)}.get(name.split(",")[0].split(" ")[0], ())
    assert without_ids(prepared(tmp_path / "out"), *lost) == without_ids(expected(tmp_path), *lost)
    assert manifest["layout"] == found.title
    split = PreparedSplit(tmp_path / "out", "train")
    assert split.image_path(split.ref(0)).is_file()
    assert manifest["image_root"].startswith(str(tmp_path / "disk"))
    hashed = {(root / path).resolve(): value for path, value in manifest["sources"].items()}
    assert {path.resolve() for path in found.files} <= hashed.keys()
    assert all(file_sha256(path) == value for path, value in hashed.items() if path.is_file())
    assert len(hashed) == len(found.files) + (found.masks is not None)


def test_ids_that_a_layout_loses_are_made_up_without_repetition(tmp_path: Path) -> None:
    mdetr_layout(with_masks=True)(tmp_path / "mdetr")
    cris_layout(tmp_path / "cris")
    for name in ("mdetr", "cris"):
        refs = read_source(find_source(tmp_path / name, "refcoco", "unc"))
        sent_ids = [sent_id for ref in refs for sent_id in ref.sent_ids]
        assert len(refs) == len({ref.ref_id for ref in refs}) == len({ref.ann_ids for ref in refs}) == 7
        assert len(sent_ids) == len(set(sent_ids)) == 10


def test_grefcoco_in_relas_and_mdetrs_layout(tmp_path: Path) -> None:
    content = gref_world()
    write_refer(tmp_path / "rela" / "grefcoco", content, "grefs(unc).json")
    draw_pictures(tmp_path / "rela" / "images" / "train2014", content)
    write_mdetr(tmp_path / "mdetr", content, "grefcoco", with_masks=True)
    draw_pictures(tmp_path / "mdetr" / "images", content)
    for name in ("rela", "mdetr"):
        prepare_family(tmp_path / f"{name}-out", dataset="grefcoco", source=tmp_path / name, allow_count_mismatch=True)
    rela, mdetr = prepared(tmp_path / "rela-out"), prepared(tmp_path / "mdetr-out")
    assert [ref.expressions for ref in rela["train"]] == [("the Bowl.",), ("Both things", "all"), ("the dog",)]  # raw
    assert [ref.expressions for ref in mdetr["train"]] == [("the bowl",), ("both things", "all"), ("the dog",)]  # sent
    assert [ref.ann_ids for ref in rela["train"]] == [(BOWL,), (CUP, BOWL), ()]
    for ours, theirs in zip(rela["train"] + rela["val"], mdetr["train"] + mdetr["val"], strict=True):
        same = {"ref_id": 0, "sent_ids": (), "expressions": ()}
        assert replace(ours, **same) == replace(theirs, **same)


def test_names_of_the_family() -> None:
    assert resolve_dataset("refcoco") == ("refcoco", "unc")
    assert resolve_dataset("refcocog") == resolve_dataset("gref") == resolve_dataset("G-Ref") == ("refcocog", "umd")
    assert resolve_dataset("refcocop") == resolve_dataset("RefCOCO+") == resolve_dataset("refcoco_plus")
    assert resolve_dataset("refcocog_u") == ("refcocog", "umd")
    assert resolve_dataset("refcocog_g") == resolve_dataset("gref", "google") == ("refcocog", "google")
    assert resolve_dataset("grefcoco") == ("grefcoco", "unc")
    for name, split_by, words in [
        ("refcoc", None, "no data set is called 'refcoc'.*refcoco, refcoco\\+, refcocog, grefcoco"),
        ("refcoco", "umd", "no partition 'umd': give --split-by unc or google"),
        ("refcocog_g", "umd", "refcocog_g has no partition 'umd': give --split-by google"),
    ]:
        with pytest.raises(VLFormerError, match=words):
            resolve_dataset(name, split_by)


def test_where_nothing_is_found_it_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match="nowhere is not a folder"):
        find_source(tmp_path / "nowhere", "refcoco", "unc")
    write_refer(tmp_path / "refcoco", world(), "refs(google).p")
    with pytest.raises(VLFormerError) as caught:
        find_source(tmp_path, "refcoco", "unc")
    message = str(caught.value)
    assert "\n" not in message
    for words in (
        f"{tmp_path} holds no refcoco (unc)",
        "refcoco/refs(unc).p with instances.json in ., data, refer/data, refer_seg",
        "finetune_refcoco_{train,val,testA,testB}.json in ., mdetr_annotations",
        "anns/refcoco/{train,val,testA,testB}.json with masks/refcoco in ., datasets",
        "mirror jxu124/refcoco in ., data, refcoco, refcoco/data",
        f"it has refcoco (google) as REFER files: refs(google).p in {tmp_path / 'refcoco'}",
    ):
        assert words in message
    with pytest.raises(VLFormerError, match=r"grefs\(unc\)\.json or grefs\(unc\)\.p"):
        find_source(tmp_path, "grefcoco", "unc")
    with pytest.raises(VLFormerError) as caught:
        find_source(tmp_path, "refcocog", "google")  # which neither MDETR nor the mirrors have
    assert "anns/refcocog_g" in str(caught.value)
    assert "finetune" not in str(caught.value)
    assert "parquet" not in str(caught.value)


def test_where_several_are_found_it_names_them(tmp_path: Path) -> None:
    write_refer(tmp_path / "datasets" / "refcoco", world())
    cris_layout(tmp_path)
    with pytest.raises(VLFormerError, match=r"more than once: give --from one of them: .*REFER.*; .*CRIS") as caught:
        find_source(tmp_path, "refcoco", "unc")
    assert str(tmp_path / "datasets" / "refcoco") in str(caught.value)
    assert str(tmp_path / "datasets" / "anns" / "refcoco") in str(caught.value)
    assert find_source(tmp_path / "datasets" / "refcoco", "refcoco", "unc").layout == "refer"
    assert find_source(tmp_path / "datasets" / "anns", "refcoco", "unc").layout == "cris"


def test_one_file_behind_two_links_is_one_source(tmp_path: Path) -> None:
    write_refer(tmp_path / "real" / "refcoco", world())
    for name in ("data", "datasets"):
        (tmp_path / name).symlink_to(tmp_path / "real")
    assert find_source(tmp_path, "refcoco", "unc").files[0].parent == tmp_path / "data" / "refcoco"


def test_the_whole_family_is_found(tmp_path: Path) -> None:
    for name in ("refs(unc).p", "refs(google).p"):
        write_refer(tmp_path / "refcoco", world(), name)
    write_refer(tmp_path / "refcocop", world())
    write_refer(tmp_path / "gref", world(), "refs(umd).p")
    write_refer(tmp_path / "grefcoco", gref_world(), "grefs(unc).json")
    write_refer(tmp_path / "refclef", world())
    found = [(source.dataset, source.split_by) for source in find_sources(tmp_path, "refcoco")]
    assert sorted(found) == [
        ("grefcoco", "unc"),
        ("refcoco", "google"),
        ("refcoco", "unc"),
        ("refcoco+", "unc"),
        ("refcocog", "umd"),
    ]
    cris = tmp_path / "cris"
    for name in ("refcocog_u", "refcocog_g", "refcoco+"):
        write_cris(cris, world(), name)
    found = [(source.dataset, source.split_by) for source in find_sources(cris, "refcoco")]
    assert sorted(found) == [("refcoco+", "unc"), ("refcocog", "google"), ("refcocog", "umd")]


def mdetr_document(root: Path, change: Callable[[World], None]) -> Path:
    """The validation file of the MDETR layout with a change made to it."""
    write_mdetr(root, world(), with_masks=True)
    path = root / "finetune_refcoco_val.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("images"), "has no 'images'"),
        (lambda d: d["images"][0].pop("caption"), r"`images` entry 0 \(from 0\) has no 'caption'"),
        (lambda d: d["images"][0].update(original_id="x"), "has the original_id 'x'"),
        (lambda d: d["annotations"].clear(), "`images` entry 0 .* has no annotation"),
        (lambda d: d["annotations"][0].update(category_id=999), "has category_id 999, which"),
        (lambda d: d["annotations"][0].pop("segmentation"), "boxes but no masks.*instances_train2014"),
        (lambda d: d["categories"][0].pop("name"), r"category 1 has no 'name'"),
    ],
)
def test_mdetr_files_that_are_wrong(tmp_path: Path, change: Callable[[World], None], words: str) -> None:
    path = mdetr_document(tmp_path, change)
    with pytest.raises(VLFormerError, match=words) as caught:
        read_mdetr([path], None)
    assert "finetune_refcoco_val.json" in str(caught.value)


def test_mdetr_boxes_with_instances_of_other_data(tmp_path: Path) -> None:
    content = copy.deepcopy(world())
    content["annotations"][4]["image_id"] = 34
    path = mdetr_document(tmp_path, lambda d: d["annotations"][0].pop("segmentation"))
    with pytest.raises(VLFormerError, match=r"annotation 201 of image 30, which .*instances\.json does not have"):
        read_mdetr([path], write_refer(tmp_path, content)[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segment_id": "x"}, "entry 0 .* has the segment_id 'x'"),
        ({"img_name": "cat.jpg"}, r"img_name 'cat\.jpg': it must be like COCO_train2014"),
        ({"cat": 80}, "has the cat 80"),
        ({"sentences": []}, "has no sentences"),
        ({"segment_id": 99}, r"99\.png is not there"),
    ],
)
def test_cris_files_that_are_wrong(tmp_path: Path, change: World, words: str) -> None:
    cris_layout(tmp_path)
    path = tmp_path / "datasets" / "anns" / "refcoco" / "val.json"
    path.write_text(json.dumps([{**json.loads(path.read_text())[0], **change}]))
    with pytest.raises(VLFormerError, match=words) as caught:
        prepare_family(tmp_path / "out", dataset="refcoco", source=tmp_path, allow_count_mismatch=True)
    assert "val.json entry 0 (from 0)" in str(caught.value)
    path.write_text("{}")
    with pytest.raises(VLFormerError, match=r"val\.json holds a dict"):
        read_source(find_source(tmp_path, "refcoco", "unc"))


def test_cris_masks_that_do_not_fit(tmp_path: Path) -> None:
    cris_layout(tmp_path)
    mask = tmp_path / "datasets" / "masks" / "refcoco" / "12.png"
    for pixels, words in (
        (np.zeros((40, 40), np.uint8), "segment_id 12, annotation 12: its mask covers no pixel of COCO"),
        (np.full((40, 41), 255, np.uint8), r"12\.png is 41 x 40 pixels, but the picture 40 x 40"),
    ):
        assert cv2.imwrite(str(mask), pixels)
        with pytest.raises(VLFormerError, match=words):
            prepare_family(tmp_path / "out", dataset="refcoco", source=tmp_path, allow_count_mismatch=True)


def test_parquet_files_that_are_wrong(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    write_parquet(tmp_path / "refcoco", world())
    path = next((tmp_path / "refcoco").glob("validation-*"))
    whole = parquet.read_table(path).to_pylist()[0]
    for change, words in (
        ({"raw_anns": "{"}, r"row 0 \(from 0\), ref_id 12 has no JSON in raw_anns"),
        ({"raw_anns": "[]"}, "it must be an object"),
        ({"raw_anns": '{"id": 201}'}, "has no 'segmentation'"),
        ({"ann_id": 5}, "has ann_id 5 beside the entry of 201"),
        ({"category_id": 12}, "category_id 12, which is none of COCO's"),
        ({"sentences": None}, "has the sentences None"),
    ):
        parquet.write_table(arrow.Table.from_pylist([{**whole, **change}]), path)
        with pytest.raises(VLFormerError, match=words) as caught:
            read_source(find_source(tmp_path, "refcoco", "unc"))
        assert str(path) in str(caught.value)
    parquet.write_table(arrow.Table.from_pylist([{"image": 1}]), path)
    with pytest.raises(VLFormerError, match="has no column 'ref_id'"):
        read_source(find_source(tmp_path, "refcoco", "unc"))
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(VLFormerError, match="is not a whole parquet file"):
        read_source(find_source(tmp_path, "refcoco", "unc"))


def test_the_mirrors_names_of_splits(tmp_path: Path) -> None:
    content = world()
    for entry in content["refs"]:
        entry["split"] = {"val": "validation", "testA": "test"}.get(entry["split"], entry["split"])
    for name, test in (("refcoco", "testA"), ("refcocoplus", "testA"), ("refcocog", "test")):
        write_parquet(tmp_path / name, content)
        refs = read_source(find_source(tmp_path, *resolve_dataset(name)))
        assert {ref.ref_id: ref.split for ref in refs if ref.split != "train"} == {12: "val", 14: test, 17: "testB"}


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"")
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> Any:
        if name.startswith("pyarrow"):
            raise ModuleNotFoundError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(VLFormerError, match=r"pip install 'vlformer\[parquet\]' or pip install pyarrow"):
        read_source(find_source(tmp_path, "refcoco", "unc"))


def test_no_target_is_no_annotation_in_every_layout(tmp_path: Path) -> None:
    content = gref_world()
    content["refs"][2]["ann_id"] = NO_TARGET
    assert read(tmp_path, content, "grefs(unc).json")[2].segmentation is None
    content["refs"][2]["ann_id"] = []
    assert read(tmp_path, content, "grefs(unc).json")[2].segmentation is None
