"""The importer of a user's own data: what it writes, and what it says of every mistake."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vlformer_cli.data.images import read_image
from vlformer_cli.data.rle import decode_rle
from vlformer_cli.data.sources.custom import find_custom_inputs, prepare_custom
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.types import Ref, VLFormerError

EXAMPLE = Path(__file__).parents[1] / "examples" / "custom"
COCO128 = Path(__file__).parents[2] / "shared" / "data" / "coco128"

HEIGHT, WIDTH = 24, 32
LEFT, RIGHT = [[2, 2, 12, 2, 12, 20, 2, 20]], [[18, 4, 30, 4, 30, 10, 18, 10]]


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def instances() -> dict[str, Any]:
    return {
        "images": [
            {"id": i, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for i, n in ((7, "a"), (9, "b"))
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "segmentation": LEFT},
            {"id": 2, "image_id": 7, "category_id": 4, "segmentation": RIGHT},
            {"id": 5, "image_id": 9, "category_id": 3, "segmentation": LEFT},
        ],
        "categories": [{"id": 3, "name": "cup"}, {"id": 4, "name": "plate"}],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, a mask and instances.json; tests add the expressions."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(tmp_path / "images" / f"{name}.png")
    Image.fromarray(np.where(box(3, 5, 9, 8), 255, 0).astype(np.uint8)).save(tmp_path / "mask.png")
    (tmp_path / "instances.json").write_text(json.dumps(instances()))
    return tmp_path


ROWS: list[dict[str, Any]] = [
    {"image": "a.png", "expression": " the  left\ncup ", "annotation_id": 1, "kind": "location"},
    {"image": "b.png", "expression": "a cup", "annotation_id": 5, "split": "val"},
    {"image": "a.png", "expression": "cup, and plate", "annotation_ids": [2, 1]},
    {"image": "a.png", "expression": "the café dog"},
    {"image": "a.png", "expression": "the cup", "annotation_id": 1},
    {"image": "b.png", "expression": "the small thing", "mask": "mask.png"},
    {"image": "a.png", "expression": "both", "annotation_ids": [1, 2, 1]},
]


def write(folder: Path, rows: list[dict[str, Any]], suffix: str = "json") -> None:
    path = folder / f"expressions.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:  # with the mark that spreadsheets put first
            writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
            writer.writeheader()
            for row in rows:
                ids = {"annotation_ids": " ".join(map(str, row["annotation_ids"]))} if "annotation_ids" in row else {}
                writer.writerow({**row, **ids})


def prepare(folder: Path, name: str = "mine-own", **options: Any) -> dict[str, Any]:
    expressions, coco, images = find_custom_inputs(folder)
    return prepare_custom(folder / name, expressions=expressions, images=images, instances=coco, **options)


def refs(directory: Path, split: str) -> list[Ref]:
    opened = PreparedSplit(directory, split)
    return [opened.ref(row) for row in range(opened.num_refs)]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_rows_become_one_ref_per_picture_and_referent(folder: Path, suffix: str) -> None:
    write(folder, ROWS, suffix)
    prepare(folder)
    cup, both, nothing, small = refs(folder / "mine-own", "train")
    (other,) = refs(folder / "mine-own", "val")

    assert cup.expressions == ("the left cup", "the cup")
    assert (cup.ann_ids, cup.category, cup.image_id, cup.bbox) == ((1,), "cup", 7, (2, 2, 10, 18))
    assert cup.kinds == ("location", "")
    assert cup.segmentation is not None
    np.testing.assert_array_equal(decode_rle(cup.segmentation), box(2, 2, 12, 20))

    assert both.expressions == ("cup, and plate", "both")
    assert (both.ann_ids, both.category, both.bbox) == ((1, 2), "cup, plate", (2, 2, 28, 18))
    assert both.segmentation is not None
    np.testing.assert_array_equal(decode_rle(both.segmentation), box(2, 2, 12, 20) | box(18, 4, 30, 10))

    assert nothing.expressions == ("the café dog",)
    assert (nothing.ann_ids, nothing.segmentation, nothing.bbox) == ((), None, (0, 0, 0, 0))

    assert (small.image, small.image_id, small.category, small.bbox) == ("b.png", 9, "", (3, 5, 6, 3))
    assert small.segmentation is not None
    np.testing.assert_array_equal(decode_rle(small.segmentation), box(3, 5, 9, 8))
    assert len(small.ann_ids) == 1
    assert small.ann_ids[0] not in (1, 2, 5)

    everything = (cup, both, nothing, small, other)
    assert len({ref.ref_id for ref in everything}) == 5
    assert len({sent_id for ref in everything for sent_id in ref.sent_ids}) == len(ROWS)
    assert {(ref.width, ref.height) for ref in everything} == {(WIDTH, HEIGHT)}


def test_the_manifest(folder: Path) -> None:
    write(folder, ROWS)
    manifest = prepare(folder)
    assert (manifest["dataset"], manifest["split_by"]) == ("mine", "own")
    assert manifest["image_root"] == str((folder / "images").resolve())
    assert manifest["sources"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("expressions.json", "instances.json")
    }
    split = PreparedSplit(folder / "mine-own", "train")
    assert read_image(split.image_path(split.ref(0))).shape == (HEIGHT, WIDTH, 3)
    assert len(split) == 6
    assert prepare(folder, "plain")["split_by"] == "custom"
    with pytest.raises(VLFormerError, match="--overwrite"):
        prepare(folder)
    prepare(folder, overwrite=True, default_split="test")
    assert len(refs(folder / "mine-own", "test")) == 4


def test_one_expression_for_two_things_is_said_and_kept(
    run: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one picture, whatever the split; the same words about another picture, or twice about one thing, are fine."""
    write(folder, ROWS)
    assert prepare(folder, "clear")["ambiguous"] == []
    rows = [
        *ROWS,
        {"image": "a.png", "expression": "The  Cup", "annotation_id": 2, "split": "val"},
        {"image": "b.png", "expression": "the cup", "annotation_id": 5},
        {"image": "a.png", "expression": "the cup", "annotation_id": 1},
        *({"image": "a.png", "expression": "both", "annotation_id": 1} for _ in range(6)),
    ]
    write(folder, rows)
    assert run("prepare-data", "custom", "--from", folder, "--root", folder / "data") == 0
    told = capsys.readouterr().err.splitlines()
    place = folder / "expressions.json"
    assert f"vlformer: {place} row 8: 'The Cup' meant something else in {place} row 5: say which" in told
    assert sum(line.endswith(f"in {place} row 7: say which") for line in told) == 4
    assert f"vlformer: 2 more of these stand in {folder / 'data/custom-own/manifest.json'}" in told
    made = PreparedSplit(folder / "data/custom-own", "train")
    assert len(made.manifest["ambiguous"]) == 7
    assert len(made) + len(PreparedSplit(folder / "data/custom-own", "val")) == len(rows)


def test_masks_alone_need_no_instances(folder: Path) -> None:
    (folder / "instances.json").unlink()
    write(folder, [ROWS[5], {**ROWS[5], "image": "a.png"}, ROWS[3]])
    assert list(prepare(folder)["sources"]) == ["expressions.json"]
    found = refs(folder / "mine-own", "train")
    assert [ref.image for ref in found] == ["b.png", "a.png", "a.png"]
    assert len({ref.image_id for ref in found}) == 2


def row(**fields: Any) -> dict[str, Any]:
    return {"image": "a.png", "expression": "x", **fields}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row(annotation_id=44), "row 2 names annotation 44, which instances.json does not have"),
        (row(annotation_id=5), "annotation 5 is not of a.png"),
        (row(annotation_id="1"), "annotation ids .*'1'.*whole numbers"),
        (row(annotation_ids=[1, True]), "annotation ids .*whole numbers"),
        (row(annotation_ids=1), "as a list"),
        (row(annotation_id=1, mask="mask.png"), "both annotation_id and mask"),
        (row(image="c.png"), "row 2: .*c.png is not there"),
        (row(image="../mask.png"), "give a path below"),
        (row(image=""), "row 2 has no image"),
        (row(image=3), "image 3: it must be text"),
        (row(expression="  "), "row 2 has no expression"),
        (row(expresion="x"), "unknown field 'expresion'.*did you mean 'expression'"),
        (row(mask="gone.png"), "row 2: .*gone.png is not there"),
        (row(split="../x"), "split '../x': use letters"),
        ("text", "row 2 holds 'text'"),
    ],
)
def test_bad_rows_are_named(folder: Path, bad: Any, words: str) -> None:
    write(folder, [ROWS[0], bad])
    with pytest.raises(VLFormerError, match=words) as caught:
        prepare(folder)
    assert "expressions.json" in str(caught.value)
    assert not (folder / "mine-own").exists()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("expressions.csv", "image,expresion\na.png,x\n", "line 1 has an unknown field 'expresion'.*did you mean"),
        ("expressions.csv", "image,image,expression\na.png,a.png,x\n", "names a column twice"),
        ("expressions.csv", "image;expression\na.png;x\n", "line 1 has ';' between its columns: use commas"),
        ("expressions.csv", "image,expression\na.png,the cup, left\n", "line 2 has more cells than the header"),
        ("expressions.csv", 'image,expression\na.png,"x\n', "is not CSV .*quotes"),
        (
            "expressions.csv",
            "image,expression,annotation_id\na.png,x,one\n",
            "line 2 has the annotation ids 'one': give whole numbers",
        ),
        ("expressions.csv", "expression\nx\n", "line 2 has no image"),
        ("expressions.csv", "", "holds no expressions"),
        ("expressions.jsonl", '\n{"image": "a.png"\n', "line 2 is not JSON"),
        ("expressions.jsonl", '["x"]\n', "line 1 holds"),
        ("expressions.json", '[\n{"image": }]', "line 2 is not JSON"),
        ("expressions.json", "{}", "holds a dict: it must be a list"),
    ],
)
def test_malformed_files(folder: Path, name: str, text: str, words: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(VLFormerError, match=words) as caught:
        prepare(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv"])
def test_other_encodings_are_refused(folder: Path, suffix: str) -> None:
    (folder / f"expressions.{suffix}").write_bytes("image,expression\na.png,café\n".encode("latin-1"))
    with pytest.raises(VLFormerError, match=r"expressions\..* UTF-8"):
        prepare(folder)


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The instances with one place replaced."""
    document = instances()
    place: Any = document
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "instances.json holds a list"),
        (changed(("images",), None), "no list `images`"),
        (changed(("images", 1, "width"), None), "`images` entry 1 .*no 'width'"),
        (changed(("images", 1, "id"), "9"), "`images` entry 1 has id '9'"),
        (changed(("images", 1, "id"), 7), "image id 7 twice"),
        (changed(("images", 1, "file_name"), "a.png"), "'a.png' twice"),
        (changed(("annotations", 1, "id"), 1), "annotation id 1 twice"),
        (changed(("annotations", 0, "category_id"), 77), "annotation 1 has category_id 77"),
        (changed(("annotations", 0, "segmentation"), [[1, 2]]), r"row 1: annotation 1: polygon \[1, 2\]"),
        (changed(("annotations", 0, "segmentation"), [[3, 3, 3, 3, 3, 3]]), "annotation 1 covers no pixel"),
        (changed(("images", 0, "file_name"), "aa.png"), "does not list 'a.png'.*did you mean 'aa.png'"),
        (changed(("images", 0, "width"), 64), "a.png is 32 x 24 .* says 64 x 24"),
    ],
)
def test_bad_instances_are_named(folder: Path, document: Any, words: str) -> None:
    write(folder, ROWS)
    (folder / "instances.json").write_text(json.dumps(document))
    with pytest.raises(VLFormerError, match=words):
        prepare(folder)


def test_a_photo_on_its_side_does_not_fit_annotations_of_its_stored_pixels(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / "a.png", exif=exif)
    write(folder, [ROWS[0]])
    with pytest.raises(VLFormerError, match=r"24 x 32 with its EXIF orientation applied, .* says 32 x 24"):
        prepare(folder)


def test_masks_that_do_not_fit(folder: Path) -> None:
    write(folder, [ROWS[5]])
    Image.new("L", (WIDTH, HEIGHT)).save(folder / "mask.png")
    with pytest.raises(VLFormerError, match=r"mask\.png is empty"):
        prepare(folder)
    Image.new("L", (HEIGHT, WIDTH), 255).save(folder / "mask.png")
    with pytest.raises(VLFormerError, match=r"mask\.png is 24 x 32, but b\.png is 32 x 24"):
        prepare(folder)


def test_finding_the_inputs(folder: Path) -> None:
    with pytest.raises(VLFormerError, match="not a folder"):
        find_custom_inputs(folder / "nowhere")
    with pytest.raises(VLFormerError, match="no expressions file"):
        find_custom_inputs(folder)
    write(folder, ROWS, "csv")
    assert find_custom_inputs(folder) == (folder / "expressions.csv", folder / "instances.json", folder / "images")
    write(folder, ROWS, "json")
    with pytest.raises(VLFormerError, match=r"expressions\.json and expressions\.csv"):
        find_custom_inputs(folder)
    with pytest.raises(VLFormerError, match="with --images"):
        prepare_custom(folder / "x", expressions=folder / "expressions.csv", images=folder / "no", instances=None)
    (folder / "instances.json").unlink()
    with pytest.raises(VLFormerError, match=r"there is no instances\.json"):
        prepare_custom(folder / "x", expressions=folder / "expressions.csv", images=folder / "images", instances=None)


def test_the_example(tmp_path: Path) -> None:
    expressions, coco, images = find_custom_inputs(EXAMPLE)
    manifest = prepare_custom(tmp_path / "ex-own", expressions=expressions, images=images, instances=coco)
    assert {split: counts["expressions"] for split, counts in manifest["splits"].items()} == {"train": 6, "val": 4}
    by_text = {
        text: ref for split in ("train", "val") for ref in refs(tmp_path / "ex-own", split) for text in ref.expressions
    }
    colours = {}
    for text in ("the red cup", "the blue cup", "the yellow ball", "the bigger tree"):
        rle = by_text[text].segmentation
        assert rle is not None
        colours[text] = read_image(images / by_text[text].image)[decode_rle(rle)].mean(axis=0)
    red, blue, yellow, green = colours.values()  # of the pixels that are meant
    assert red.argmax() == 0
    assert blue.argmax() == 2
    assert yellow.argmin() == 2
    assert green.argmax() == 1
    both = by_text["both cups"]
    assert both.bbox[2] > by_text["the red cup"].bbox[2] + 50
    assert by_text["the dog under the tree"].segmentation is None
    assert (
        "prepare-data custom --from examples/custom --images examples/custom/images"
        in (EXAMPLE / "README.md").read_text()
    )


@pytest.mark.skipif(not COCO128.is_dir(), reason="the shared sample of COCO is not here")
def test_real_coco_photos(tmp_path: Path) -> None:
    coco = json.loads((COCO128 / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    images = {image["id"]: image for image in coco["images"]}
    of_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in coco["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    alone = [annotations[0] for annotations in of_image.values() if len(annotations) == 1][:8]
    assert len(alone) == 8
    rows = [
        {
            "image": images[annotation["image_id"]]["file_name"],
            "expression": f"the {names[annotation['category_id']]}",
            "annotation_id": annotation["id"],
        }
        for annotation in alone
    ]
    (tmp_path / "expressions.json").write_text(json.dumps(rows))
    prepare_custom(
        tmp_path / "coco-one",
        expressions=tmp_path / "expressions.json",
        images=COCO128 / "images",
        instances=COCO128 / "instances.json",
    )
    for ref, annotation in zip(refs(tmp_path / "coco-one", "train"), alone, strict=True):
        expected = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], ref.height, ref.width))
        assert ref.segmentation is not None
        assert ref.segmentation["counts"] == expected["counts"].decode()
        assert ref.category == names[annotation["category_id"]]
        assert np.abs(np.subtract(ref.bbox, annotation["bbox"])).max() <= 3  # a thin tip covers no pixel


def test_the_example_with_mask_files_runs_as_its_readme_says(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of the README, typed as they stand, from a folder that holds the examples."""
    folder = EXAMPLE.parent / "custom-jsonl"
    (tmp_path / "examples").symlink_to(EXAMPLE.parent)
    commands = [
        line.split()[1:] for line in (folder / "README.md").read_text().splitlines() if line.startswith("    vlformer ")
    ]
    assert len(commands) == 2
    for words in commands:
        assert run(*words) == 0
    written = [json.loads(line) for line in (folder / "expressions.jsonl").read_text().splitlines()]
    found = [ref for split in ("train", "val") for ref in refs(tmp_path / "data/custom-jsonl", split)]
    assert sorted(e for ref in found for e in ref.expressions) == sorted(row["expression"] for row in written)
    for ref in found:
        mask = next(row.get("mask") for row in written if row["expression"] == ref.expressions[0])
        if mask is None:
            assert ref.segmentation is None
        else:
            assert ref.segmentation is not None
            np.testing.assert_array_equal(decode_rle(ref.segmentation), cv2.imread(str(folder / mask), 0) > 0)
    assert cv2.imread("outputs/data.png") is not None


def test_pictures_are_decoded_where_that_is_asked_for(folder: Path) -> None:
    write(folder, ROWS)
    picture = folder / "images/a.png"
    picture.write_bytes(picture.read_bytes()[:-30])
    assert prepare(folder, "toy-a")["splits"]["train"]["images"] == 2
    with pytest.raises(VLFormerError, match=r"row 1: .*a\.png cannot be read as a picture"):
        prepare(folder, "toy-b", check_images=True)


def test_half_a_character_is_named(folder: Path) -> None:
    """As a tool leaves it that cuts a text with an emoji at its end."""
    write(folder, [{"image": "a.png", "expression": "the red cup \ud83d", "annotation_id": 1}])
    with pytest.raises(VLFormerError, match=r"row 1 has half a character after 'the red cup '"):
        prepare(folder)
    assert not (folder / "mine-own").exists()


@pytest.mark.parametrize("option", ["--allow-count-mismatch", "--exclude-eval-images", "--only-needed"])
@pytest.mark.parametrize("dataset", ["custom", "scenes"])
def test_options_of_published_data_are_refused(run: Any, folder: Path, option: str, dataset: str, capsys: Any) -> None:
    assert run("prepare-data", dataset, "--from", folder, option) == 2
    assert f"vlformer: {option}: for published data sets; {dataset}" in capsys.readouterr().err
