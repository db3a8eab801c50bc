"""Annotated photographs in the formats of three tools, read to the same objects; views of them; the whole command."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from vlformer_cli.data.photos.annotations import AnnotatedPhoto
from vlformer_cli.data.photos.captions import read_captions
from vlformer_cli.data.photos.compose import Window, cut_out, paste, show, side_by_side
from vlformer_cli.data.photos.find import find_photos
from vlformer_cli.data.photos.generate import Recipe, prepare_photos
from vlformer_cli.data.photos.objects import LabelledImage, open_photo
from vlformer_cli.data.photos.views import split_of
from vlformer_cli.data.rle import decode_rle
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.types import VLFormerError

WIDTH, HEIGHT = 160, 120
SQUARES = {"cup": [(20, 30, 40, 40), (100, 30, 30, 30)], "plate": [(60, 80, 40, 30)]}
"""Category -> x, y, width, height."""
COLORS = {"cup": [(220, 20, 20), (20, 40, 220)], "plate": [(240, 240, 240)]}


def polygon(box: tuple[int, int, int, int]) -> list[float]:
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def save_image(path: Path) -> None:
    pixels = np.full((HEIGHT, WIDTH, 3), (60, 140, 60), np.uint8)
    for category, boxes in SQUARES.items():
        for (x, y, w, h), color in zip(boxes, COLORS[category], strict=True):
            pixels[y : y + h, x : x + w] = color
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def objects() -> list[tuple[str, tuple[int, int, int, int]]]:
    return [(category, box) for category, boxes in SQUARES.items() for box in boxes]


def coco_folder(folder: Path, images: int = 1, **fields: object) -> Path:
    ids = {"cup": 1, "plate": 2}
    document = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT, **fields} for n in range(1, images + 1)
        ],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "annotations": [
            {"id": 10 * n + k, "image_id": n, "category_id": ids[c], "iscrowd": 0, "segmentation": [polygon(box)]}
            for n in range(1, images + 1)
            for k, (c, box) in enumerate(objects())
        ],
    }
    for n in range(1, images + 1):
        save_image(folder / "images" / f"{n}.png")
    (folder / "instances.json").write_text(json.dumps(document))
    return folder


def yolo_folder(folder: Path) -> Path:
    save_image(folder / "train" / "images" / "1.png")
    lines = []
    for category, box in objects():
        points = np.array(polygon(box)).reshape(-1, 2) / (WIDTH, HEIGHT)
        lines.append(f"{['cup', 'plate'].index(category)} " + " ".join(f"{value:.6f}" for value in points.ravel()))
    (folder / "train" / "labels").mkdir()
    (folder / "train" / "labels" / "1.txt").write_text("\n".join(lines) + "\n")
    (folder / "data.yaml").write_text("train: train/images\nnc: 2\nnames: [cup, plate]\n")
    return folder


def labelme_folder(folder: Path) -> Path:
    save_image(folder / "1.png")
    shapes = []
    for number, (category, (x, y, w, h)) in enumerate(objects()):
        # the three kinds of shape that hold an area, each drawn to the same pixels
        if number == 0:
            points = [[x, y], [x + w - 1, y], [x + w - 1, y + h - 1], [x, y + h - 1]]
            shapes.append({"label": category, "points": points, "shape_type": "polygon"})
        elif number == 1:
            shapes.append({"label": category, "points": [[x, y], [x + w, y + h]], "shape_type": "rectangle"})
        else:
            stream = io.BytesIO()
            Image.fromarray(np.full((h, w), 255, np.uint8)).save(stream, "PNG")
            mask = base64.b64encode(stream.getvalue()).decode()
            shape = {"label": category, "points": [[x, y], [x + w, y + h]], "shape_type": "mask", "mask": mask}
            shapes.append(shape)
    shapes.append({"label": "cup", "points": [[5, 5]], "shape_type": "point"})
    document = {"version": "5.5.0", "imagePath": "1.png", "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}
    (folder / "1.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("make", [coco_folder, yolo_folder, labelme_folder])
def test_all_formats_give_the_same_objects(tmp_path: Path, make: object) -> None:
    (photo,) = find_photos(make(tmp_path))  # type: ignore[operator]
    assert photo.labelled == {"cup", "plate"}
    assert (photo.width, photo.height) == (WIDTH, HEIGHT)
    for annotation, (category, (x, y, w, h)) in zip(photo.annotations, objects(), strict=True):
        assert annotation.category == category
        assert annotation.mask is not None
        expected = np.zeros((HEIGHT, WIDTH), np.bool_)
        expected[y : y + h, x : x + w] = True
        assert np.array_equal(decode_rle(annotation.mask), expected)


def test_labelled_says_what_is_complete(tmp_path: Path) -> None:
    assert find_photos(coco_folder(tmp_path / "a", labelled=["cup"]))[0].labelled == {"cup"}
    everything = find_photos(coco_folder(tmp_path / "b", labelled="all"))[0].labelled
    assert "person" in everything
    assert len(everything) == 80
    nothing = find_photos(coco_folder(tmp_path / "c", labelled=[]))[0]
    assert not open_photo(nothing).labelled & {"cup", "plate"}
    assert {"cup", "plate"} <= open_photo(nothing, trust_annotated=True).labelled


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "data.yaml").write_text("nc: 2\n"), "names"),
        (lambda f: (f / "train/labels/1.txt").write_text("7 0 0 1 0 1 1\n"), "class 7"),
        (lambda f: (f / "train/labels/1.txt").write_text("cup 0 0 1 0 1 1\n"), "line 1"),
        (lambda f: (f / "train/labels/1.txt").write_text("0 0.5 0.5 0.2 0.2\n"), "--boxes"),
        (lambda f: (f / "train/labels/1.txt").write_text("0 0.1 0.1 0.2 0.2 0.3\n"), "pairs"),
        (lambda f: (f / "train/labels/1.txt").unlink(), "no photograph has an annotated object"),
    ],
)
def test_faults_of_yolo_files_are_named(tmp_path: Path, break_it: object, message: str) -> None:
    folder = yolo_folder(tmp_path)
    break_it(folder)  # type: ignore[operator]
    with pytest.raises(VLFormerError, match=message):
        find_photos(folder)


def test_folders_without_annotations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match="holds no annotations"):
        find_photos(tmp_path)
    with pytest.raises(VLFormerError, match="not a folder"):
        find_photos(tmp_path / "missing")


def image(tmp_path: Path) -> LabelledImage:
    return open_photo(find_photos(coco_folder(tmp_path))[0])


def test_colors_are_those_of_the_pixels(tmp_path: Path) -> None:
    assert [one.color for one in image(tmp_path).objects] == ["red", "blue", "white"]


def test_masks_move_with_the_pixels(tmp_path: Path) -> None:
    """The red cup's mask covers the red pixels of every view."""
    whole = image(tmp_path)
    for window in (Window(0, 0, 160, 120, True), Window(10, 20, 80, 60, False), Window(10, 20, 80, 60, True)):
        view = show(whole, window, (90, 120))
        red = (view.pixels_HW3[..., 0] >= 138) & (view.pixels_HW3[..., 1] <= 82)  # half of the color or more
        (cup,) = [one for one in view.objects if one.color == "red"]
        overlap = np.count_nonzero(red & cup.mask_HW) / np.count_nonzero(red | cup.mask_HW)
        assert overlap > 0.95
        assert cup.visible == pytest.approx(1.0, abs=0.05)


def test_what_is_cut_off_is_less_visible(tmp_path: Path) -> None:
    view = show(image(tmp_path), Window(40, 0, 120, 120, False), (120, 120))
    assert view.objects[0].visible == pytest.approx(0.5, abs=0.01)  # the red cup spans x from 20 to 60


def test_tiles_keep_their_objects_and_what_all_of_them_know(tmp_path: Path) -> None:
    whole = image(tmp_path)
    other = LabelledImage(whole.pixels_HW3, whole.objects[:1], frozenset({"cup"}))
    both = side_by_side([whole, other], columns=2)
    assert both.size == (HEIGHT, 2 * WIDTH)
    assert len(both.objects) == 4
    assert both.labelled == {"cup"}
    assert np.array_equal(both.objects[3].mask_HW[:, WIDTH:], whole.objects[0].mask_HW)
    assert not both.objects[3].mask_HW[:, :WIDTH].any()


def test_a_pasted_object_hides_what_is_behind_it(tmp_path: Path) -> None:
    whole = image(tmp_path)
    rng = np.random.default_rng(0)
    pasted = paste(rng, whole, cut_out(whole, 0), share=0.08, spot=(0.5, 0.8))  # onto the plate
    new, plate = pasted.objects[-1], pasted.objects[2]
    assert np.count_nonzero(new.mask_HW) == pytest.approx(0.08 * WIDTH * HEIGHT, rel=0.1)
    assert not (new.mask_HW & plate.mask_HW).any()
    assert plate.visible < 0.6
    inside = cv2.erode(new.mask_HW.view(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert (pasted.pixels_HW3[inside][:, 0] > 180).all()  # red as the cup was
    outside = cv2.dilate(new.mask_HW.view(np.uint8), np.ones((5, 5), np.uint8)) == 0
    assert np.array_equal(pasted.pixels_HW3[outside], whole.pixels_HW3[outside])


def test_captions_mean_the_only_object_of_a_category() -> None:
    said = read_captions(
        [
            "A man in a red hat sits on a bench.",
            "Two men on a bench.",
            "The guy is reading a book",
            "A bench in a park",
        ],
        "person",
    )
    assert said.noun == "man"
    assert said.expressions == ("man in a red hat sits on a bench", "man in a red hat sits", "guy is reading a book")
    assert read_captions(["A bed room with a lamp", "A bed in a room"], "bed").expressions == ("bed in a room",)
    assert read_captions(["A woman smiles", "A man smiles"], "person").noun == ""


def refs(directory: Path, split: str) -> list[str]:
    return (directory / f"{split}.jsonl").read_text().splitlines()


def test_the_same_seed_gives_the_same_data_set(tmp_path: Path) -> None:
    source = coco_folder(tmp_path / "source", images=12)
    recipe = Recipe(views=20, size=96, seed=3)
    manifests = [
        prepare_photos(tmp_path / name, source, recipe, workers=workers) for name, workers in (("a", 1), ("b", 2))
    ]
    assert manifests[0]["splits"] == manifests[1]["splits"]
    assert manifests[0]["splits"]["train"]["images"] > 10
    first = (tmp_path / "a/images/train/000003.jpg").read_bytes()
    assert first == (tmp_path / "b/images/train/000003.jpg").read_bytes()
    other = prepare_photos(tmp_path / "c", source, Recipe(views=20, size=96, seed=4), workers=1)
    assert other["splits"] != manifests[0]["splits"]


def test_the_command_uses_photographs_in_place(tmp_path: Path, run: Any) -> None:
    source = coco_folder(tmp_path / "source", images=3)
    assert run("prepare-data", "photos", "--from", source, "--root", tmp_path / "data", "--workers", 1) == 0
    split = PreparedSplit(tmp_path / "data" / "photos-whole", "train")
    ref = split.ref(0)
    assert split.image_path(ref).parent == (source / "images").resolve()
    for row in range(split.num_refs):
        ref = split.ref(row)
        if ref.segmentation is not None:
            assert coco_mask.area(dict(ref.segmentation)) > 0


def test_the_command_refuses_what_it_cannot_use(tmp_path: Path, run: Any) -> None:
    assert run("prepare-data", "photos", "--root", tmp_path) == 2
    assert run("prepare-data", "scenes", "--views", 5, "--root", tmp_path) == 2


def test_photographs_stay_in_their_split(tmp_path: Path) -> None:
    """By the name of the file, whatever else is in the folder."""
    few, many = (find_photos(coco_folder(tmp_path / str(n), images=n)) for n in (20, 60))

    def val(photos: list[AnnotatedPhoto]) -> set[str]:
        return {photo.path.name for photo in photos if split_of(photo) == "val"}

    assert val(few) == val(many) & {photo.path.name for photo in few}
    assert val(many)
