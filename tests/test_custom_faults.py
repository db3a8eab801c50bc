"""Custom data as people have it: ids that pandas wrote, parts that nobody uses, and many faults at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlformer_cli.data.sources.custom import find_custom_inputs, prepare_custom
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.types import VLFormerError

STUMBLES = Path(__file__).parents[2] / "shared" / "data" / "stumbles" / "custom"
IMPORTED = {
    *("01_bom_crlf", "06_jsonl_blank_bom_crlf", "15_rle_unc_crowd", "20_float_ids", "26_partly_outside"),
    *("34_no_categories", "36_unused_missing_file", "37_quoted_newline", "38_ids_comma", "39_ids_list", "40_ids_float"),
    *("45_mask_01", "47_mask_255ignore", "49_zero_ids", "50_bom_json", "57_no_target_blank", "62_cr_only"),
    *("66_same_text_conflict", "70_unused_bbox_only", "71_unused_unknown_category", "72_unused_float_id"),
    *("73_unused_empty_seg", "77_pandas_float_no_target", "81_curly_quotes", "87_nan_expr", "89_exif_square"),
    *("90_crowd0_rle", "91_self_intersect"),
}
PYTHONS_WORDS = ("invalid literal", "codec", "NoneType", "Traceback", "Errno", "object has no", "base 10")

SQUARE = [[2, 2, 12, 2, 12, 20, 2, 20]]


def annotation(ann_id: Any, **fields: Any) -> dict[str, Any]:
    return {"id": ann_id, "image_id": 7, "category_id": 3, "segmentation": SQUARE, **fields}


def without(name: str, ann_id: int) -> dict[str, Any]:
    return {key: value for key, value in annotation(ann_id).items() if key != name}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 24), "grey").save(tmp_path / "images" / "a.png")
    return tmp_path


def write(folder: Path, rows: str, annotations: list[Any], **image: Any) -> None:
    (folder / "expressions.csv").write_text(rows)
    images = [{"id": 7, "file_name": "a.png", "width": 32, "height": 24, **image}]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "cup"}]}
    (folder / "instances.json").write_text(json.dumps(document))


def prepare(folder: Path, **options: Any) -> dict[str, Any]:
    expressions, coco, images = find_custom_inputs(folder)
    return prepare_custom(folder / "mine-own", expressions=expressions, images=images, instances=coco, **options)


@pytest.mark.parametrize("ids", ["1.0", "1.0 ", "1e0"])
def test_ids_that_pandas_made_floats(folder: Path, ids: str) -> None:
    write(folder, f"image,expression,annotation_id\na.png,cup,{ids}\na.png,dog,\n", [annotation(1.0, image_id=7.0)])
    prepare(folder)
    cup, dog = (PreparedSplit(folder / "mine-own", "train").ref(row) for row in (0, 1))
    assert (cup.ann_ids, cup.image_id, dog.ann_ids, dog.segmentation) == ((1,), 7, (), None)
    assert type(cup.ann_ids[0]) is int


@pytest.mark.parametrize("ids", ["[1, 2]", "1;2", "1.0 2.0"])
def test_lists_of_ids(folder: Path, ids: str) -> None:
    write(folder, f'image,expression,annotation_ids\na.png,cups,"{ids}"\n', [annotation(1), annotation(2)])
    prepare(folder)
    assert PreparedSplit(folder / "mine-own", "train").ref(0).ann_ids == (1, 2)


@pytest.mark.parametrize("ids", ["1.5", "one", "nan", "inf", "--"])
def test_ids_that_are_no_whole_numbers(folder: Path, ids: str) -> None:
    write(folder, f"image,expression,annotation_id\na.png,cup,{ids}\n", [annotation(1)])
    with pytest.raises(VLFormerError, match=r"line 2 has the annotation ids .*: give whole numbers") as caught:
        prepare(folder)
    assert not any(words in str(caught.value) for words in PYTHONS_WORDS)


UNUSABLE = [
    without("segmentation", 9),
    without("image_id", 9),
    annotation(9, category_id=44),
    annotation(9, image_id=None),
    annotation(9, segmentation=[]),
    annotation(3.5),
    annotation("x"),
    {},
    "text",
]


@pytest.mark.parametrize("unusable", UNUSABLE, ids=str)
def test_annotations_that_no_row_names_stop_nothing(
    run: Any, folder: Path, unusable: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, "image,expression,annotation_id\na.png,cup,1\n", [annotation(1), unusable, annotation(2)])
    assert run("prepare-data", "custom", "--from", folder, "--root", folder / "data") == 0
    assert "annotations of instances.json that no row names: 2" in capsys.readouterr().err
    manifest = json.loads((folder / "data/custom-own/manifest.json").read_text())
    assert (manifest["unused_annotations"], manifest["skipped_rows"]) == (2, 0)


@pytest.mark.parametrize("unusable", [one for one in UNUSABLE if isinstance(one, dict) and one.get("id") == 9], ids=str)
def test_the_same_annotations_stop_a_row_that_names_them(folder: Path, unusable: Any) -> None:
    write(folder, "image,expression,annotation_id\na.png,cup,1\na.png,dog,9\n", [annotation(1), unusable])
    with pytest.raises(VLFormerError, match=r"line 3.* annotation 9|line 3.*`annotations` entry 1"):
        prepare(folder)


def test_all_bad_rows_are_told_at_once_in_their_order(folder: Path) -> None:
    rows = ["image,expression,annotation_id", "a.png,cup,1", "a.png,,1", "b.png,dog,1", "a.png,dog,8", "a.png,...,1"]
    write(folder, "\n".join([*rows, "a.png,left, right,1"]), [annotation(1)])
    with pytest.raises(VLFormerError) as caught:
        prepare(folder)
    head, *told = str(caught.value).splitlines()
    assert "expressions.csv has 5 bad rows" in head
    assert "--skip-bad-rows" in head
    assert [f"line {number}" in line for number, line in enumerate(told, 3)] == [True] * 5
    assert not (folder / "mine-own").exists()


def test_bad_rows_are_left_out_and_counted(run: Any, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["image,expression,annotation_id", "a.png,cup,1", "a.png,dog,8", "a.png,cat,8", "a.png,...,1"]
    write(folder, "\n".join(rows), [annotation(1)])
    words = ("prepare-data", "custom", "--from", folder, "--root", folder / "data", "--skip-bad-rows")
    assert run(*words) == 0
    assert "left out 3 bad rows" in capsys.readouterr().err
    made = PreparedSplit(folder / "data/custom-own", "train")
    assert len(made) == 1
    assert made.manifest["skipped_rows"] == 3
    assert ["line 3" in made.manifest["faults"][0], "line 5" in made.manifest["faults"][1]] == [True, True]
    assert "and 1 more rows like it" in made.manifest["faults"][0]
    write(folder, "\n".join([rows[0], *rows[2:]]), [annotation(1)])
    assert run(*words, "--overwrite") == 1
    assert "no row that can be used" in capsys.readouterr().err
    assert run("prepare-data", "scenes", "--skip-bad-rows") == 2


def test_the_list_of_faults_has_an_end(folder: Path) -> None:
    rows = [f"a.png,thing {number},{number + 50}" for number in range(33)]
    write(folder, "\n".join(["image,expression,annotation_id", *rows]), [annotation(1)])
    with pytest.raises(VLFormerError) as caught:
        prepare(folder)
    lines = str(caught.value).splitlines()
    assert "33 bad rows" in lines[0]
    assert len(lines) == 22
    assert lines[-1] == "  and 13 more"


@pytest.mark.parametrize(
    ("segmentation", "part"),
    [
        ([2, 2, 12, 2, 12, 20], "put it in a list, [[...]]"),
        ([[[2, 2], [12, 2], [12, 20]]], "without brackets around each point"),
        ([["2", "2", "12", "2", "12", "20"]], "write numbers without quotes"),
        ([[2, 2, 12, 2, 12, 20, 2]], "7 numbers are no pairs"),
        ([[2, 2, 12, 20]], "add the missing points"),
        ("[[2, 2, 12, 2, 12, 20]]", "without quotes"),
        ({"size": [24, 32], "counts": "b'abc'"}, "bytes have to be decoded"),
        ({"size": [24, 32], "counts": "é"}, "not COCO's text form"),
        ({"size": [24, 32]}, "it needs `size`"),
    ],
)
def test_a_wrong_segmentation_gets_its_remedy(folder: Path, segmentation: Any, part: str) -> None:
    write(folder, "image,expression,annotation_id\na.png,cup,1\n", [annotation(1, segmentation=segmentation)])
    with pytest.raises(VLFormerError) as caught:
        prepare(folder)
    assert "line 2: annotation 1: " in str(caught.value)
    assert part in str(caught.value)
    assert not any(words in str(caught.value) for words in PYTHONS_WORDS)


@pytest.mark.parametrize(
    ("name", "part"),
    [("A.PNG", "did you mean 'a.png'?"), ("images\\a.png", "write / between folders"), ("zzz", "zzz is not there")],
)
def test_an_image_that_is_not_there_gets_a_hint(folder: Path, name: str, part: str) -> None:
    write(folder, f"image,expression\n{name},cup\n", [annotation(1)])
    with pytest.raises(VLFormerError) as caught:
        prepare(folder)
    assert part in str(caught.value)


def test_the_index_that_pandas_writes_is_told(folder: Path) -> None:
    write(folder, ",image,expression\n0,a.png,cup\n", [])
    with pytest.raises(VLFormerError, match=r"column without a name.*index=False"):
        prepare(folder)


@pytest.mark.skipif(not STUMBLES.is_dir(), reason="the shared folders are not here")
def test_every_folder_is_imported_or_told_what_to_do(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = set()
    folders = [path for path in STUMBLES.iterdir() if path.is_dir()]
    for folder in folders:
        code = run("prepare-data", "custom", "--from", folder, "--root", tmp_path / folder.name)
        said = capsys.readouterr().err
        assert code in (0, 1), folder.name
        assert not any(words in said for words in PYTHONS_WORDS), said
        if code == 0:
            imported.add(folder.name)
        else:
            assert str(folder) in said
            assert "bug" not in said
    assert imported == IMPORTED
    assert len(folders) > 60
