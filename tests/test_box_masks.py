"""Masks for boxes: kept where they agree, and the other objects still count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_photo_sources import coco_folder

from vlformer_cli.config import ModelConfig
from vlformer_cli.data.photos.annotations import read_coco
from vlformer_cli.data.photos.facts import Facts
from vlformer_cli.data.photos.find import find_photos
from vlformer_cli.data.photos.objects import open_photo
from vlformer_cli.data.photos.propose import write_expressions
from vlformer_cli.data.rle import decode_rle
from vlformer_cli.engine.box_masks import box_iou, write_filled
from vlformer_cli.engine.predict import Predictor, Segmentation
from vlformer_cli.types import VLFormerError

BOXES = {"red": (20, 30, 40, 40), "blue": (100, 30, 30, 30)}


class RedThings(Predictor):
    """Finds what is red, so that one of the two boxes gets a mask."""

    def __init__(self) -> None:
        self.config, self.asked = ModelConfig(name="red"), list[str]()

    def predict(self, image_HW3: Any, expressions: Any) -> list[Segmentation]:
        self.asked += expressions
        mask = (image_HW3[..., 0] > 150) & (image_HW3[..., 1] < 100)
        return [Segmentation(expression, 0.9, mask, cut=False) for expression in expressions]


def boxes_folder(folder: Path) -> Path:
    pixels = np.full((120, 160, 3), (60, 140, 60), np.uint8)
    for color, (x, y, w, h) in BOXES.items():
        pixels[y : y + h, x : x + w] = (220, 20, 20) if color == "red" else (20, 40, 220)
    (folder / "boxes").mkdir(parents=True)
    Image.fromarray(pixels).save(folder / "boxes" / "a.png")
    entry = {"file_name": "a.png", "width": 160, "height": 120, "labelled": ["cup"]}
    boxes = [{"category": "cup", "bbox": list(box)} for box in BOXES.values()]
    (folder / "boxes.json").write_text(json.dumps([{**entry, "boxes": boxes}]))
    (folder / "captions.json").write_text(json.dumps({"a.png": ["A red cup and a blue cup"]}))
    return folder


def test_masks_are_kept_where_they_agree_with_their_boxes(tmp_path: Path) -> None:
    predictor = RedThings()
    filled = write_filled(boxes_folder(tmp_path / "in"), tmp_path / "out", predictor)
    assert (filled.found, filled.boxes) == (1, 2)
    assert predictor.asked == ["the cup", "the cup"]
    (photo,) = find_photos(tmp_path / "out", boxes=True)
    red, blue = photo.annotations
    expected = np.zeros((120, 160), np.bool_)
    expected[30:70, 20:60] = True
    assert red.mask is not None
    assert np.array_equal(decode_rle(red.mask), expected)
    assert blue.mask is None
    assert blue.box == BOXES["blue"]
    assert photo.captions == ("A red cup and a blue cup",)


def test_a_mask_that_would_go_on_beyond_the_crop_is_not_kept(tmp_path: Path) -> None:
    """As where two people stand arm in arm: the box of both, within the crop, agrees with the box of one."""

    class Everything(RedThings):
        def predict(self, image_HW3: Any, expressions: Any) -> list[Segmentation]:
            mask = np.zeros(image_HW3.shape[:2], np.bool_)
            mask[7:-7, 7:] = True  # the annotated box, and all that is right of it
            return [Segmentation(expression, 0.9, mask, cut=False) for expression in expressions]

    assert write_filled(boxes_folder(tmp_path / "in"), tmp_path / "out", Everything()).found == 0


def test_boxes_alone_name_the_option(tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match="give --boxes"):
        find_photos(boxes_folder(tmp_path))


def test_an_object_without_a_mask_is_counted_and_never_meant(tmp_path: Path) -> None:
    write_filled(boxes_folder(tmp_path / "in"), tmp_path / "out", RedThings())
    facts = Facts(open_photo(find_photos(tmp_path / "out", boxes=True)[0]))
    assert facts.referents == [0]
    assert len(facts.called("cup")) == 2
    expressions = write_expressions(np.random.default_rng(0), facts, most=20, no_target=0.0)
    assert {expression.referents for expression in expressions} <= {(0,)}
    assert "cup" not in {expression.text for expression in expressions}  # there are two


def test_boxes_have_to_be_asked_for(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path)
    document = json.loads((folder / "instances.json").read_text())
    for entry in document["annotations"]:
        del entry["segmentation"]
        entry["bbox"] = [10, 10, 30, 30]
    (folder / "instances.json").write_text(json.dumps(document))
    with pytest.raises(VLFormerError, match="--boxes"):
        find_photos(folder)
    (photo,) = read_coco(folder / "instances.json", folder / "images", boxes=True)
    assert all(one.mask is None for one in photo.annotations)


def test_iou_of_boxes_apart_is_zero() -> None:
    assert box_iou((0, 0, 10, 10), (20, 20, 5, 5)) == 0
    assert box_iou((3, 4, 10, 20), (3, 4, 10, 20)) == pytest.approx(1)
