"""Writes the drawn data set: pictures, refs and, beside each split, the scenes that the expressions were made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from vlformer_cli.data.rle import encode_mask
from vlformer_cli.data.scenes.backgrounds import Picture
from vlformer_cli.data.scenes.expressions import FEWEST, Expression, write_expressions
from vlformer_cli.data.scenes.objects import Scene
from vlformer_cli.data.scenes.paint import paint
from vlformer_cli.data.scenes.plan import plan
from vlformer_cli.data.scenes.render import Labels, Sprite, describe, shrink, sprite, stack
from vlformer_cli.data.scenes.shapes import coin
from vlformer_cli.data.store import PreparedWriter
from vlformer_cli.data.workers import run_chunks
from vlformer_cli.types import Ref, VLFormerError

FEWEST_OBJECTS = {"mix": 3, "directions": 2}
"""The scenarios, and the objects without which a plan of theirs is drawn again."""
SPLITS = ("train", "val", "test")
CHUNK = 32  # scenes handed to a worker at once
IDS = 16  # ref_id and sent_id of one image lie in [ordinal * IDS, ordinal * IDS + IDS)
DRAWS = 60  # plans tried before a seed is called impossible
SMALLEST = 64
JPEG_QUALITY = (70, 96)


class Task(NamedTuple):
    """The scenes from `first` up to `last`, which one call of a worker draws."""

    folder: Path
    first: int
    last: int
    seed: int
    size: int
    scenario: str


class Saved(NamedTuple):
    """What a worker hands back of one scene; the picture is in its file."""

    split: str
    refs: list[Ref]
    scene: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One finished scene."""

    scene: Scene
    labels_HW: Labels
    """The index of the object seen at each pixel."""
    picture: Picture
    """H x W x 3, RGB."""
    expressions: tuple[Expression, ...]


def split_of(ordinal: int) -> str:
    """Every twentieth picture is for val, the one after it for test."""
    return {18: "val", 19: "test"}.get(ordinal % 20, "train")


def draw_scene(rng: Generator, ordinal: int, size: int = 192, scenario: str = "mix") -> Drawn:
    """Draws plans until one of them carries enough expressions, and paints that one."""
    width, height = _canvas(rng, size)
    for _ in range(DRAWS):
        drafts = plan(rng, width, height, scenario)
        outline = int(rng.integers(1, 4)) if coin(rng, 0.35) else 0
        sprites = [sprite(rng, draft, outline) for draft in drafts]
        sprites, scene, labels_HW = _settle(sprites, width, height, ordinal)
        if len(sprites) < FEWEST_OBJECTS[scenario]:
            continue
        expressions = write_expressions(rng, scene, scenario)
        if len(expressions) >= FEWEST:
            return Drawn(scene, labels_HW, paint(rng, sprites, width, height), tuple(expressions))
    raise AssertionError(f"no scene of {size} pixels could be drawn for picture {ordinal}")


def _settle(sprites: list[Sprite], width: int, height: int, ordinal: int) -> tuple[list[Sprite], Scene, Labels]:
    """Takes objects away until all that are left are seen well enough."""
    while True:
        canvas = stack(sprites, width, height)
        labels_HW = shrink(canvas, len(sprites))
        scene = describe(sprites, canvas, labels_HW, ordinal)
        seen = [sprites[i] for i in scene.referents()]
        if len(seen) == len(sprites):
            return sprites, scene, labels_HW
        sprites = seen


def _canvas(rng: Generator, size: int) -> tuple[int, int]:
    """Three quarters of the pictures are square, the others are 4:3 either way."""
    shorter = size * 3 // 4
    return ((size, shorter), (shorter, size), *[(size, size)] * 6)[int(rng.integers(8))]


def refs_of(drawn: Drawn, image: str) -> list[Ref]:
    """One ref per object that an expression is about."""
    scene = drawn.scene
    ids = scene.image_id * IDS
    refs = []
    for index, group in groupby(enumerate(drawn.expressions), key=lambda pair: pair[1].referent):
        pairs, thing = list(group), scene.objects[index]
        ref = Ref(
            image=image,
            image_id=scene.image_id,
            width=scene.width,
            height=scene.height,
            ref_id=ids + index,
            ann_ids=(ids + index,),
            category=thing.kind,
            bbox=thing.bbox,
            segmentation=encode_mask(drawn.labels_HW == index),
            expressions=tuple(e.text for _, e in pairs),
            sent_ids=tuple(ids + position for position, _ in pairs),
            kinds=tuple(e.label for _, e in pairs),
        )
        refs.append(ref)
    return refs


def _draw_chunk(task: Task) -> list[Saved]:
    """Draws and saves the scenes from `first` up to `last`; runs in a worker."""
    done = []
    for ordinal in range(task.first, task.last):
        rng = np.random.default_rng([task.seed, ordinal])
        drawn = draw_scene(rng, ordinal, task.size, task.scenario)
        image = f"{split_of(ordinal)}/{ordinal:06d}.jpg"
        quality = int(rng.integers(*JPEG_QUALITY))
        _, data = cv2.imencode(".jpg", drawn.picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        (task.folder / image).write_bytes(data.tobytes())
        done.append(Saved(split_of(ordinal), refs_of(drawn, image), drawn.scene.to_json()))
    return done


def generate_scenes(
    directory: Path,
    *,
    images: int,
    seed: int,
    size: int = 192,
    workers: int | None = None,
    scenario: str = "mix",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Draws a data set of `images` pictures into `directory` and returns its manifest.

    The bytes depend on the number of pictures, the seed, the size and the scenario only, not on the number of workers
    (default: one per core). `progress` is called with the pictures done and the pictures in all. Workers are spawned:
    a script that calls this needs `if __name__ == "__main__"`. Raises VLFormerError for values that cannot be drawn.
    """
    _check(images, seed, size, scenario)
    with PreparedWriter(directory, dataset="scenes", split_by=f"seed{seed}", overwrite=overwrite) as writer:
        folder = writer.folder / writer.manifest["image_root"]
        for split in SPLITS:
            (folder / split).mkdir(parents=True)
        starts = range(0, images, CHUNK)
        tasks = [Task(folder, first, min(first + CHUNK, images), seed, size, scenario) for first in starts]
        with closing(run_chunks(_draw_chunk, tasks, workers)) as chunks:  # ends the workers whatever happens
            _collect(writer.folder, chunks, images, progress)
        for split in SPLITS:
            waiting = writer.folder / f"{split}.refs"
            with waiting.open(encoding="utf-8") as lines:
                writer.write_split(split, (Ref.from_json(json.loads(line)) for line in lines))
            waiting.unlink()
        writer.manifest["scenes"] = {"images": images, "seed": seed, "size": size, "scenario": scenario}
    return writer.manifest


def _collect(
    folder: Path, chunks: Iterable[list[Saved]], images: int, progress: Callable[[int, int], None] | None
) -> None:
    """Puts refs and scenes into one file a split as they arrive, so that memory does not grow with the data set."""
    done = 0
    with ExitStack() as files:
        refs = {s: files.enter_context((folder / f"{s}.refs").open("w", encoding="utf-8")) for s in SPLITS}
        scenes = {s: files.enter_context((folder / f"{s}.scenes.jsonl").open("w", encoding="utf-8")) for s in SPLITS}
        for chunk in chunks:
            for saved in chunk:
                refs[saved.split].writelines(json.dumps(ref.to_json()) + "\n" for ref in saved.refs)
                scenes[saved.split].write(json.dumps(saved.scene, separators=(",", ":")) + "\n")
            done += len(chunk)
            if progress is not None:
                progress(done, images)


def _check(images: int, seed: int, size: int, scenario: str) -> None:
    if images < 1:
        raise VLFormerError(f"{images} pictures cannot be drawn: ask for at least 1")
    if seed < 0:
        raise VLFormerError(f"the seed {seed} is negative: use 0 or more")
    if size < SMALLEST:
        raise VLFormerError(f"pictures of {size} pixels are too small to draw in: use at least {SMALLEST}")
    if scenario not in FEWEST_OBJECTS:
        raise VLFormerError(f"there is no scenario {scenario!r}; there are: {', '.join(FEWEST_OBJECTS)}")
