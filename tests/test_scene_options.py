"""Scenes with photographs, with bent outlines, and with expressions that mean nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scene_reading import read, usual

from vlformer_cli.data.rle import decode_rle
from vlformer_cli.data.scenes.collage import SELDOM, collage
from vlformer_cli.data.scenes.generate import IDS, Recipe, draw_scene, generate_scenes, refs_of
from vlformer_cli.data.scenes.meaning import Looks, matching
from vlformer_cli.data.scenes.objects import KINDS, SceneObject
from vlformer_cli.data.scenes.photos import PhotoLibrary, cut_out, view
from vlformer_cli.data.scenes.plan import Draft
from vlformer_cli.data.scenes.render import ZOOM, sprite
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.types import VLFormerError

MAGENTA, GREEN = (230, 0, 230), (0, 200, 0)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs of gray noise: one with two magenta cups, one with a green boat that touches the edge."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "images").mkdir()
    shapes = {
        1: [("cup", (90, 80), (40, 25), MAGENTA), ("cup", (230, 150), (60, 50), MAGENTA)],
        2: [("boat", (20, 120), (90, 40), GREEN), ("dog", (220, 60), (50, 30), MAGENTA)],
    }
    names = ["boat", "cup", "dog", "zebra"]
    document: dict[str, list[dict[str, object]]] = {"images": [], "annotations": []}
    for number, things in shapes.items():
        picture = np.random.default_rng(number).integers(90, 110, (240, 320, 3)).astype(np.uint8)
        for name, centre, axes, colour in things:
            outline = cv2.ellipse2Poly(centre, axes, 20, 0, 360, 5).clip(0, (319, 239))
            cv2.fillPoly(picture, [outline], colour)
            entry = {
                "id": len(document["annotations"]) + 1,
                "image_id": number,
                "category_id": names.index(name) + 1,
                "segmentation": [outline.ravel().tolist()],
                "bbox": [0, 0, 1, 1],
                "area": 1,
                "iscrowd": 0,
            }
            document["annotations"].append(entry)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), picture[..., ::-1])
        document["images"].append({"id": number, "file_name": f"{number}.png", "width": 320, "height": 240})
    document["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    (folder / "instances.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def iou(one: NDArray[np.bool_], two: NDArray[np.bool_]) -> float:
    return float((one & two).sum() / (one | two).sum())


def magenta(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    red, green, blue = picture.astype(int).transpose(2, 0, 1)
    return np.asarray((red - green > 60) & (blue - green > 60))


def grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """By three pixels of the doubled canvas: OpenCV fills the edge of a polygon, pycocotools half of it."""
    return np.asarray(cv2.dilate(mask.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0)


def test_things_of_a_photograph_stay_where_they_are_seen_cut_mirrored_and_enlarged(photographs: Path) -> None:
    library, rng, seen = PhotoLibrary(photographs), np.random.default_rng(0), 0
    for _ in range(40):
        shown = view(rng, library, 96, 80)
        around = np.zeros((2000, 2000), dtype=bool)  # the canvas with 800 pixels on all sides
        for item in shown.sprites:
            if item.draft.kind != "boat":
                y, x = item.y + 800, item.x + 800
                around[y : y + item.tones_hw.shape[0], x : x + item.tones_hw.shape[1]] |= item.tones_hw > 0
        canvas = (slice(800, 800 + 80 * ZOOM), slice(800, 800 + 96 * ZOOM))
        coloured = magenta(shown.backdrop_hw3)
        seen += bool(coloured.sum() > 200)
        assert not (coloured & ~grown(around)[canvas]).any()
        inner = ~grown(~around)[canvas]
        assert not (inner & ~coloured).any()
    assert seen > 20


def test_a_cut_out_brings_its_own_pixels_and_keeps_its_size(photographs: Path) -> None:
    library, rng = PhotoLibrary(photographs), np.random.default_rng(1)
    for _ in range(20):
        found = library.draw_thing(rng, "cup")
        assert found is not None
        pasted = cut_out(rng, found, Draft("cup", "red", "mid", "plain", extent=44, x=50, y=40), unit=1.0)
        assert pasted.pixels_hw3 is not None
        assert iou(pasted.tones_hw > 0, magenta(pasted.pixels_hw3)) > 0.95
        assert abs(max(pasted.tones_hw.shape) - 44 * ZOOM) <= 1
        assert (pasted.draft.colour, pasted.draft.pattern) == ("", "")  # neither red nor any other name of ours
    assert library.draw_thing(rng, "boat") is None  # it touches the edge: part of it is missing
    assert library.draw_thing(rng, "zebra") is None


def test_every_expression_about_photographs_is_true_of_its_referent_alone(photographs: Path) -> None:
    recipe = Recipe(size=96, scenario="photos", photos=photographs, bent=1.0, no_target=0.5)
    kinds, backdrops, nothing = {*KINDS, "dog", "zebra"}, 0, 0
    for number in range(60):
        drawn = draw_scene(np.random.default_rng([2, number]), number, recipe)
        scene = drawn.scene.to_json()
        assert all(thing["area"] for thing in scene["objects"])  # or "second from left" counts what nobody sees
        hardly = {i for i, _ in enumerate(drawn.scene.objects)} - set(drawn.scene.referents())
        for expression in drawn.expressions:
            if expression.referent is not None and expression.meaning.place is not None:
                assert not hardly & set(matching(expression.meaning.looks, drawn.scene, loose=True)), expression
        backdrops += any(not thing["pattern"] and thing["area"] > 600 for thing in scene["objects"])
        for expression in drawn.expressions:
            meant = [] if expression.referent is None else [expression.referent]
            assert read(expression.text, scene, kinds) == meant, (expression.text, scene)
            nothing += expression.referent is None
    assert backdrops > 10
    assert nothing > 40


def test_the_mask_of_a_pasted_thing_is_where_its_colour_is(photographs: Path) -> None:
    recipe, compared = Recipe(size=128, scenario="photos", photos=photographs), []
    for number in range(40):
        drawn = draw_scene(np.random.default_rng([3, number]), number, recipe)
        if any(thing.colour in ("purple", "pink", "red") for thing in drawn.scene.objects):
            continue
        for ref in refs_of(drawn, "", IDS["photos"]):
            thing = drawn.scene.objects[ref.ref_id % IDS["photos"]]
            if ref.segmentation is not None and not thing.pattern and thing.kind in ("cup", "dog"):
                compared.append(float(magenta(drawn.picture)[decode_rle(ref.segmentation)].mean()))
    assert len(compared) > 10
    assert float(np.median(compared)) > 0.9


def test_sizes_that_are_said_are_those_that_are_seen(photographs: Path) -> None:
    said = 0
    for number in range(80):
        scene = draw_scene(
            np.random.default_rng([5, number]), number, Recipe(size=96, scenario="photos", photos=photographs)
        ).scene
        unit = (scene.width * scene.height) ** 0.5 / 192
        for thing in scene.objects:
            seen = thing.extent / unit / (KINDS[thing.kind].scale if thing.kind in KINDS else 1.0)
            if not thing.pattern and thing.size:
                low, high = {"small": (0, 34.0), "mid": (42.0, 50.0), "big": (62.0, 1e9)}[thing.size]
                assert low - 0.02 <= seen <= high + 0.02, thing
                said += 1
    assert said > 60


def test_on_a_photograph_nothing_is_drawn_that_its_annotations_would_not_tell(photographs: Path) -> None:
    found = set()
    for number in range(80):
        made = collage(np.random.default_rng([7, number]), PhotoLibrary(photographs), 96, 96, 0.0)
        if made.backdrop_hw3 is not None:
            found |= {item.draft.kind for item in made.sprites if not item.fixed}
    assert found & SELDOM
    assert "cup" in found
    assert not found & {"car", "chair", "book", "hat", "table"}


def test_annotations_without_a_category_are_named(photographs: Path, tmp_path: Path) -> None:
    document = json.loads((photographs / "instances.json").read_text(encoding="utf-8"))
    del document["categories"]
    document["annotations"] = [{k: v for k, v in one.items() if k != "category_id"} for one in document["annotations"]]
    (tmp_path / "instances.json").write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "images").symlink_to(photographs / "images")
    with pytest.raises(VLFormerError, match="annotation 1 has no category"):
        PhotoLibrary(tmp_path)


def test_expressions_about_nothing_have_an_empty_mask_and_ids_of_their_own(tmp_path: Path) -> None:
    generate_scenes(tmp_path / "scenes", images=40, seed=4, recipe=Recipe(size=96, no_target=0.4), workers=1)
    data = PreparedSplit(tmp_path / "scenes", "train")
    samples = [sample for n in range(data.num_images) for sample in data.image_samples(n)]
    empty = [sample for sample in samples if sample.ref.segmentation is None]
    assert {sample.kind for sample in empty} == {"nothing"}
    assert 0.34 < len(empty) / (len(samples) - len(empty)) < 0.46
    assert len({sample.sent_id for sample in samples}) == len(samples)


@pytest.mark.parametrize("scenario", ["mix", "directions", "near"])
def test_reworded_expressions_mean_the_same_in_the_same_scenes(scenario: str) -> None:
    plain_recipe, rewording = Recipe(size=96, scenario=scenario, no_target=0.2), 0.7
    changed, told, words = 0, 0, set()
    for number in range(80):
        one, other = (
            draw_scene(np.random.default_rng([6, number]), number, recipe)
            for recipe in (plain_recipe, replace(plain_recipe, reworded=rewording))
        )
        assert np.array_equal(one.picture, other.picture)
        assert [(e.referent, e.meaning) for e in one.expressions] == [
            (e.referent, e.meaning) for e in other.expressions
        ]
        texts = [expression.text for expression in other.expressions]
        assert len(set(texts)) == len(texts)
        for before, after in zip(one.expressions, other.expressions, strict=True):
            meant = [] if after.referent is None else [after.referent]
            plainer = usual(after.text, set(KINDS))
            assert read(plainer, other.scene.to_json(), set(KINDS)) == meant, (after.text, plainer)
            changed += before.text != after.text
            told += 1
            words |= set(re.findall(r"[a-z'-]+", after.text)) - set(re.findall(r"[a-z'-]+", before.text))
    assert rewording - 0.12 < changed / told <= rewording + 0.06  # some cannot be said otherwise, or are said already
    assert words >= {"most", "edge", "highlight", "please"}
    if scenario == "mix":
        assert words >= {"smaller", "bigger", "adjacent", "its", "crimson", "photo"}


def test_a_bent_outline_is_another_one_of_about_the_same_size() -> None:
    draft = Draft("cup", "red", "mid", "plain", extent=48, x=60, y=60)
    straight, bent = (
        [sprite(np.random.default_rng(seed), draft, 0, much).tones_hw > 0 for seed in range(12)] for much in (0.0, 1.0)
    )
    for one, other in zip(straight, bent, strict=True):
        assert max(other.shape) == pytest.approx(max(one.shape), rel=0.15)
    same = [
        iou(one, cv2.resize(other.astype(np.uint8), one.shape[::-1]) > 0)
        for one, other in zip(straight, bent, strict=True)
    ]
    assert np.mean(same) < 0.9


def test_what_is_unknown_of_a_thing_is_neither_said_nor_excluded() -> None:
    thing = SceneObject("cup", "", "", "", 40, 5, 5, (0, 0, 9, 9), 0, 60, 60, ())
    for looks in (Looks("cup", colour="red"), Looks("cup", size="big"), Looks(pattern="striped")):
        assert not looks.accepts(thing, loose=False)
        assert looks.accepts(thing, loose=True)
    assert Looks("cup").accepts(thing, loose=False)
    assert not Looks("dog", colour="red").accepts(thing, loose=True)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(scenario="photos"), "needs a folder"),
        (Recipe(bent=1.5), "from 0 to 1"),
        (Recipe(no_target=-0.1), "from 0 to 1"),
        (Recipe(reworded=1.1), "reworded is 1.1: it is a part, from 0 to 1"),
    ],
)
def test_recipes_that_cannot_be_drawn_are_named(recipe: Recipe, said: str, tmp_path: Path) -> None:
    with pytest.raises(VLFormerError, match=said):
        generate_scenes(tmp_path / "scenes", images=4, seed=1, recipe=recipe)
    assert not (tmp_path / "scenes").exists()


def test_a_folder_with_nothing_to_cut_out_is_refused(photographs: Path, tmp_path: Path) -> None:
    document = json.loads((photographs / "instances.json").read_text(encoding="utf-8"))
    document["annotations"] = [one for one in document["annotations"] if one["category_id"] == 1]  # the boat
    (tmp_path / "instances.json").write_text(json.dumps(document), encoding="utf-8")
    (tmp_path / "images").symlink_to(photographs / "images")
    with pytest.raises(VLFormerError, match="can be cut out"):
        PhotoLibrary(tmp_path)
