"""Other people's drawings in scenes: their shapes, places and colours, checked against the pixels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scene_reading import read

from vlformer_cli.data.scenes.generate import Recipe, draw_scene, generate_scenes
from vlformer_cli.data.scenes.objects import KINDS
from vlformer_cli.data.scenes.photos import name_colour
from vlformer_cli.data.scenes.plan import Draft
from vlformer_cli.data.scenes.render import ZOOM
from vlformer_cli.data.scenes.stickers import Stickers, drawn
from vlformer_cli.types import VLFormerError


def save(path: Path, colour: tuple[int, int, int], *, square: bool = False) -> None:
    """A disc or a square in the middle of a transparent picture of 120 pixels."""
    picture = np.zeros((120, 120, 4), dtype=np.uint8)
    if square:
        cv2.rectangle(picture, (30, 40), (89, 79), (*colour[::-1], 255), -1)
    else:
        cv2.circle(picture, (60, 60), 30, (*colour[::-1], 255), -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stickers")
    save(folder / "ball/red.png", (220, 20, 20))
    save(folder / "box/black.png", (0, 0, 0), square=True)
    save(folder / "box/shaded.png", (120, 120, 120), square=True)
    return folder


def only_stickers(
    folder: Path, kind: str, colour: str, count: int
) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_], str]]:
    """Pixels, shape and the colour that was noted, of drafts that became stickers."""
    stickers, rng, found = Stickers(folder, 0.6), np.random.default_rng(0), []
    while len(found) < count:
        item = drawn(rng, Draft(kind, colour, "mid", "plain", 48, 60, 50), 0, 0.0, stickers)
        if item.pixels_hw3 is not None:
            assert item.draft.pattern == ""
            found.append((item.pixels_hw3, item.tones_hw > 0, item.draft.colour))
    return found


def test_a_sticker_has_the_size_and_shape_of_its_picture(folder: Path) -> None:
    for _, solid, _ in only_stickers(folder, "box", "red", 30):
        _, (width, height), _ = cv2.minAreaRect(np.argwhere(solid).astype(np.float32))
        long, short = max(width, height), min(width, height)
        assert 0.85 * 48 * ZOOM < long < 1.05 * 48 * ZOOM
        assert 0.5 < short / long < 0.9  # 40 to 60 pixels, with the proportions changed a little
        assert solid.sum() > 0.93 * long * short  # a rectangle still


@pytest.mark.parametrize("colour", ["red", "blue", "yellow", "green", "black", "white"])
def test_a_tinted_sticker_has_the_colour_that_is_said_of_it(folder: Path, colour: str) -> None:
    tinted = [
        (pixels[solid], said) for pixels, solid, said in only_stickers(folder, "box", colour, 40) if said == colour
    ]
    assert len(tinted) > 20
    named = [name_colour(pixels) for pixels, _ in tinted]
    assert sum(name == colour for name in named) > 0.9 * len(named), named


def test_a_sticker_in_its_own_colour_is_called_by_it(folder: Path) -> None:
    said = {colour for _, _, colour in only_stickers(folder, "ball", "blue", 40)}
    assert said == {"blue", "red"}


def test_a_kind_without_stickers_is_drawn(folder: Path) -> None:
    stickers, rng = Stickers(folder, 0.6), np.random.default_rng(0)
    for _ in range(20):
        assert drawn(rng, Draft("key", "red", "mid", "plain", 48, 60, 50), 0, 0.0, stickers).pixels_hw3 is None


def test_expressions_of_scenes_with_stickers_are_true(folder: Path) -> None:
    recipe, stuck = Recipe(size=96, stickers=folder, bent=1.0, no_target=0.3), 0
    for kind in KINDS:
        target = folder.parent / "all" / kind / "disc.png"
        if not target.exists():
            save(target, (30, 60, 200))
    recipe = Recipe(size=96, stickers=folder.parent / "all", bent=1.0, no_target=0.3)
    for number in range(40):
        made = draw_scene(np.random.default_rng([6, number]), number, recipe)
        scene = made.scene.to_json()
        stuck += sum(not thing["pattern"] for thing in scene["objects"])
        for expression in made.expressions:
            meant = [] if expression.referent is None else [expression.referent]
            assert read(expression.text, scene, set(KINDS)) == meant, (expression.text, scene)
    assert stuck > 60


def test_folders_that_hold_no_stickers(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    save(tmp_path / "wrong/cupp/a.png", (9, 9, 9))
    (tmp_path / "flat/cup").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "flat/cup/a.png"), np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "clear/cup").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "clear/cup/a.png"), np.zeros((9, 9, 4), np.uint8))
    cases = {"none": "holds no stickers", "wrong": "no kind of that name", "flat": "alpha", "clear": "transparent"}
    for name, said in cases.items():
        with pytest.raises(VLFormerError, match=said):
            generate_scenes(tmp_path / "scenes", images=2, seed=0, recipe=Recipe(size=96, stickers=tmp_path / name))
    assert not (tmp_path / "scenes").exists()
