"""The drawn data set: every expression is read again from its text, and the files are what the contract says."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from scene_reading import read, read_with_anchors
from shared import drawn

from vlformer_cli.data.rle import decode_rle
from vlformer_cli.data.scenes.generate import Recipe, generate_scenes, split_of
from vlformer_cli.data.scenes.meaning import Looks, Meaning, Place, holds
from vlformer_cli.data.scenes.objects import COLOURS, KINDS, MIN_AREA, MIN_VISIBLE, SIZES, Scene, SceneObject
from vlformer_cli.data.scenes.paint import paint
from vlformer_cli.data.scenes.plan import Draft
from vlformer_cli.data.scenes.render import sprite, stack
from vlformer_cli.data.store import PreparedSplit
from vlformer_cli.types import Ref, VLFormerError

IMAGES = 260
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def mix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory, "scenes-mix", images=IMAGES, seed=11, workers=2)


@pytest.fixture(scope="module")
def directions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe(scenario="directions")
    return drawn(tmp_path_factory, "scenes-directions", images=120, seed=12, workers=2, recipe=recipe)


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory, "scenes-near", images=140, seed=13, workers=2, recipe=Recipe(scenario="near"))


def rows(directory: Path) -> list[tuple[dict[str, Any], list[Ref]]]:
    """Every scene with its refs."""
    pairs = []
    for split in SPLITS:
        refs = [Ref.from_json(json.loads(line)) for line in (directory / f"{split}.jsonl").read_text().splitlines()]
        for line in (directory / f"{split}.scenes.jsonl").read_text().splitlines():
            scene = json.loads(line)
            pairs.append((scene, [ref for ref in refs if ref.image_id == scene["image_id"]]))
    return pairs


def digests(directory: Path) -> dict[str, str]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def referent_index(scene: dict[str, Any], ref: Ref) -> int:
    return next(i for i, t in enumerate(scene["objects"]) if tuple(t["bbox"]) == ref.bbox and t["kind"] == ref.category)


@pytest.mark.parametrize("scenario", ["mix", "directions", "near"])
def test_every_expression_is_true_of_its_referent_alone(scenario: str, request: pytest.FixtureRequest) -> None:
    wrong, count = [], 0
    for scene, refs in rows(request.getfixturevalue(scenario)):
        for ref in refs:
            for text in ref.expressions:
                count += 1
                found = read(text, scene, set(KINDS))
                if found != [referent_index(scene, ref)]:
                    wrong.append((scene["image_id"], text, found, referent_index(scene, ref)))
    assert count > 600
    assert not wrong, wrong[:10]


@pytest.mark.parametrize("scenario", ["mix", "near"])
def test_anchors_are_what_the_text_names_beside_the_referent(scenario: str, request: pytest.FixtureRequest) -> None:
    """Seen from the masks: their box and area are those of the objects that a reader finds named."""
    numbers: Counter[int] = Counter()
    for scene, refs in rows(request.getfixturevalue(scenario)):
        for ref in refs:
            for text, rle in zip(ref.expressions, ref.anchors, strict=True):
                named = [scene["objects"][i] for i in read_with_anchors(text, scene, set(KINDS))[1]]
                numbers[len(named)] += 1
                if not named:
                    assert rle is None, text
                    continue
                mask = decode_rle(rle)
                assert mask.sum() == sum(thing["area"] for thing in named), text
                columns, lines = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
                boxes = np.array([thing["bbox"] for thing in named])
                assert (columns[0], lines[0]) == tuple(boxes[:, :2].min(0)), text
                assert (columns[-1] + 1, lines[-1] + 1) == tuple((boxes[:, :2] + boxes[:, 2:]).max(0)), text
    assert numbers[1] > 200
    assert numbers[2] > 15 or scenario == "near"
    assert (numbers[0] > 400) == (scenario == "mix")


def test_near_asks_for_nearness_alone_and_among_several(near: Path) -> None:
    """What is looked for is near, closest to, behind or in front of something; mostly it is not its kind's only one."""
    alike, count = 0, 0
    for scene, refs in rows(near):
        for ref in refs:
            count += len(ref.kinds)
            assert set(ref.kinds) == {"relation"}
            alike += len(ref.kinds) * (sum(thing["kind"] == ref.category for thing in scene["objects"]) > 1)
            for text in ref.expressions:
                assert not re.search(r"\b(left|right|above|below|under|over|between)\b", text), text
    assert alike > 0.7 * count


def test_the_reading_above_notices_when_left_and_right_are_swapped(directions: Path) -> None:
    opposite = {"left": "right", "right": "left"}
    swapped = 0
    for scene, refs in rows(directions):
        for ref in refs:
            for text in ref.expressions:
                other = re.sub("left|right", lambda found: opposite[found[0]], text)
                if other == text or "second" in text or "2nd" in text:  # the second of three from either side
                    continue
                swapped += 1
                try:
                    found = read(other, scene, set(KINDS))
                except AssertionError:  # too close to call
                    continue
                assert found != [referent_index(scene, ref)], text
    assert swapped > 100


def test_the_masks_are_the_visible_pixels(mix: Path) -> None:
    for scene, refs in rows(mix):
        covered = np.zeros((scene["height"], scene["width"]), dtype=int)
        for ref in refs:
            assert ref.segmentation is not None
            mask = decode_rle(ref.segmentation)
            covered += mask
            thing = scene["objects"][referent_index(scene, ref)]
            columns, lines = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            assert ref.bbox == (columns[0], lines[0], np.ptp(columns) + 1, np.ptp(lines) + 1)
            assert mask.sum() == thing["area"] >= MIN_AREA * 192**2
            assert thing["area"] >= MIN_VISIBLE * thing["full_area"]
            x, y, w, h = thing["bbox"]
            if x > 0 and y > 0 and x + w < scene["width"] and y + h < scene["height"]:
                seen = thing["full_area"] * (1 - sum(share for _, share in thing["hidden_by"]))
                assert abs(seen - thing["area"]) < 0.1 * thing["full_area"] + 12
        assert covered.max() <= 1


def test_what_a_reader_of_the_data_set_relies_on(mix: Path) -> None:
    pairs = rows(mix)
    refs = [ref for _, found in pairs for ref in found]
    assert len(pairs) == IMAGES
    assert len({ref.ref_id for ref in refs}) == len(refs)
    sent_ids = [sent for ref in refs for sent in ref.sent_ids]
    assert len(set(sent_ids)) == len(sent_ids)
    assert {(scene["width"], scene["height"]) for scene, _ in pairs} == {(192, 192), (192, 144), (144, 192)}
    for split in SPLITS:
        opened = PreparedSplit(mix, split)
        first = opened.ref(0)
        assert split_of(first.image_id) == split
        picture = cv2.imread(str(opened.image_path(first)))
        assert picture.shape == (first.height, first.width, 3)


def test_each_picture_has_enough_expressions_evenly_spread_over_the_kinds(mix: Path) -> None:
    labels: Counter[str] = Counter()
    for scene, refs in rows(mix):
        assert sum(len(ref.expressions) for ref in refs) >= 4
        assert 3 <= len(scene["objects"]) <= 8
        for ref in refs:
            assert len(ref.expressions) == len(ref.kinds) <= 4
            assert max(Counter(ref.kinds).values()) <= 2
            labels.update(ref.kinds)
    assert set(labels) == {"attribute", "location", "relation"}
    assert all(0.27 < n / labels.total() < 0.4 for n in labels.values()), labels
    assert 6 <= labels.total() / IMAGES <= 8.5


def test_looks_need_reading_because_something_else_shares_the_kind_or_the_colour(mix: Path) -> None:
    shared = total = 0
    for scene, refs in rows(mix):
        for ref in (ref for ref in refs if "attribute" in ref.kinds):
            thing = scene["objects"][referent_index(scene, ref)]
            others = [t for t in scene["objects"] if t is not thing]
            total += 1
            shared += any(t["kind"] == thing["kind"] or t["colour"] == thing["colour"] for t in others)
    assert total > 100
    assert shared / total >= 0.95


def test_directions_holds_places_among_things_of_one_kind_only(directions: Path) -> None:
    for scene, refs in rows(directions):
        assert {label for ref in refs for label in ref.kinds} == {"location"}
        assert len({t["kind"] for t in scene["objects"]}) == 1
        assert 2 <= len(scene["objects"]) <= 4
        assert sum(len(ref.expressions) for ref in refs) >= 4


def test_every_kind_and_look_appears(mix: Path) -> None:
    things = [t for scene, _ in rows(mix) for t in scene["objects"]]
    assert {t["kind"] for t in things} == set(KINDS)
    assert {t["colour"] for t in things} == set(COLOURS)
    assert {t["size"] for t in things} == set(SIZES)
    assert {t["pattern"] for t in things} == {"plain", "striped", "dotted", "checked"}
    assert len(KINDS) >= 28


@pytest.mark.parametrize("kind", KINDS)
def test_a_silhouette_fills_a_sensible_part_of_its_box(kind: str) -> None:
    for seed in range(5):
        tones = sprite(np.random.default_rng(seed), Draft(kind, "red", "big", "plain", 60.0), outline=0).tones_hw > 0
        columns, lines = np.flatnonzero(tones.any(0)), np.flatnonzero(tones.any(1))
        box = (np.ptp(columns) + 1) * (np.ptp(lines) + 1)
        assert 0.12 < tones.sum() / box < 0.99
        assert 38 < (max(np.ptp(columns), np.ptp(lines)) + 1) / 2 < 85


NAMED = {
    "red": (215, 25, 25), "orange": (245, 145, 25), "yellow": (245, 225, 40), "green": (45, 150, 50),
    "cyan": (50, 205, 215), "blue": (35, 75, 205), "purple": (125, 35, 150), "pink": (248, 150, 180),
    "brown": (110, 65, 30), "black": (25, 25, 25), "white": (245, 245, 245), "gray": (140, 140, 140),
}  # fmt: skip
"""RGB that a person would think of, not taken from the generator."""


@pytest.mark.parametrize("colour", COLOURS)
def test_a_thing_has_the_colour_of_its_name(colour: str) -> None:
    right = 0
    for seed, kind in enumerate(("ball", "heart", "star", "shirt", "cup", "sock", "bag", "hat") * 3):
        rng = np.random.default_rng(seed)
        item = sprite(rng, Draft(kind, colour, "big", "plain", 60.0, 48, 48), outline=0)
        seen = stack([item], 96, 96)[::2, ::2] == 0
        pixel = np.median(paint(rng, [item], 96, 96)[seen], axis=0)
        lab = cv2.cvtColor(np.float32([[pixel, *NAMED.values()]]) / 255, cv2.COLOR_RGB2LAB)[0]
        right += list(NAMED)[int(np.linalg.norm(lab[1:] - lab[0], axis=1).argmin())] == colour
    assert right >= 20, f"{right} of 24"


def test_the_bytes_depend_on_the_seed_and_not_on_the_workers(tmp_path: Path) -> None:
    one = generate_scenes(tmp_path / "one", images=70, seed=4, recipe=Recipe(size=96), workers=1)
    two = generate_scenes(tmp_path / "two", images=70, seed=4, recipe=Recipe(size=96), workers=2)
    assert one == two
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert one["scenes"] == {"images": 70, "seed": 4, "size": 96, "scenario": "mix"}
    generate_scenes(tmp_path / "other", images=20, seed=5, recipe=Recipe(size=96), workers=1)
    same = digests(tmp_path / "one").items() & digests(tmp_path / "other").items()
    assert not [name for name, _ in same if name.endswith((".jpg", ".jsonl"))]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_scenes(tmp_path / "scenes", images=96, seed=1, recipe=Recipe(size=64), workers=2, progress=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found through /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_leaves_no_process_and_no_final_name(tmp_path: Path, how: signal.Signals) -> None:
    code = (
        "import signal; from pathlib import Path; from vlformer_cli.data.scenes.generate import generate_scenes\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs begin without one
        f"generate_scenes(Path({str(tmp_path / 'scenes')!r}), images=100000, seed=1, workers=2,"
        " progress=lambda done, total: print(done, flush=True))"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    with run:
        assert run.stdout is not None
        assert run.stdout.readline()  # the first chunk is done
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        assert len(children) >= 2
        run.send_signal(how)
        run.wait(timeout=60)
    deadline = time.monotonic() + 20
    while any(alive(int(pid)) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if alive(int(pid))]
    assert not (tmp_path / "scenes").exists()
    assert how == signal.SIGKILL or list(tmp_path.iterdir()) == []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("wrong", [{"images": 0}, {"size": 8}, {"seed": -1}, {"scenario": "maze"}])
def test_values_that_cannot_be_drawn_are_named(tmp_path: Path, wrong: dict[str, Any]) -> None:
    recipe = Recipe(**{name: wrong[name] for name in ("size", "scenario") if name in wrong})
    with pytest.raises(VLFormerError, match=str(next(iter(wrong.values())))):
        generate_scenes(tmp_path / "scenes", images=wrong.get("images", 20), seed=wrong.get("seed", 1), recipe=recipe)
    assert list(tmp_path.iterdir()) == []


def two_cups(step: float) -> Scene:
    def cup(x: float) -> SceneObject:
        return SceneObject("cup", "red", "mid", "plain", 40, x, 100, (x - 20, 80, 40, 40), 0, 1000, 1000, ())

    return Scene(0, 200, 200, (cup(60), cup(60 + step * 200)))


def test_two_centres_must_lie_clearly_apart_to_be_called_left_and_right() -> None:
    left = Meaning(Looks("cup"), Place("far", ("left",)))
    assert holds(left, two_cups(0.1), 0)
    assert not holds(left, two_cups(0.07), 0)
    assert not holds(left, two_cups(0.1), 1)
