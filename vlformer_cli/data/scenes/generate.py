"""Writes the drawn data set: pictures, refs and, beside each split, the scenes that the expressions were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from vlformer_cli.data.rle import encode_mask
from vlformer_cli.data.scenes.backgrounds import Picture
from vlformer_cli.data.scenes.collage import Collage, collage
from vlformer_cli.data.scenes.expressions import FEWEST, Expression, Setting, write_expressions
from vlformer_cli.data.scenes.meaning import Relation, anchors_of
from vlformer_cli.data.scenes.objects import KINDS, Scene
from vlformer_cli.data.scenes.paint import paint
from vlformer_cli.data.scenes.photos import PhotoLibrary
from vlformer_cli.data.scenes.plan import plan
from vlformer_cli.data.scenes.render import Labels, Sprite, describe, shrink, stack
from vlformer_cli.data.scenes.reword import reworded
from vlformer_cli.data.scenes.shapes import coin
from vlformer_cli.data.scenes.stickers import Stickers, drawn, sticker_files
from vlformer_cli.data.store import PreparedWriter, file_sha256
from vlformer_cli.data.workers import run_chunks
from vlformer_cli.types import RLE, Ref, VLFormerError

FEWEST_OBJECTS = {"mix": 3, "directions": 2, "near": 3, "photos": 1}
"""The scenarios, and the objects without which a plan of theirs is drawn again."""
SPLITS = ("train", "val", "test")
CHUNK = 32  # scenes handed to a worker at once
IDS = {"mix": 16, "directions": 16, "near": 16, "photos": 64}
"""ref_id and sent_id of one image lie in [ordinal * IDS, ordinal * IDS + IDS); the last ref_id means nothing."""
DRAWS = 60  # plans tried before a seed is called impossible
SMALLEST = 64
JPEG_QUALITY = (70, 96)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the scenes of a data set are like."""

    size: int = 192
    """Pixels of the longer side."""
    scenario: str = "mix"
    bent: float = 0.0
    """How far outlines depart from their kinds' own, from 0 to 1."""
    no_target: float = 0.0
    """Expressions that mean nothing, as a part of those that mean something."""
    reworded: float = 0.0
    """A part of the expressions is said in words that the others do not use; pictures and meanings stay."""
    photos: Path | None = None
    """Scenario photos: the folder with `images/` and `instances.json`. All splits are made of the same photographs."""
    stickers: Path | None = None
    """Other people's drawings: a folder with a folder of PNG files for each kind; none: only our own."""
    sticker_share: float = 0.6
    """Of the objects of a kind that there are stickers of."""


class Task(NamedTuple):
    """The scenes from `first` up to `last`, which one call of a worker draws."""

    folder: Path
    first: int
    last: int
    seed: int
    recipe: Recipe


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


def draw_scene(rng: Generator, ordinal: int, recipe: Recipe = Recipe()) -> Drawn:
    """Draws plans until one of them carries enough expressions, and paints that one."""
    library = _library(recipe.photos) if recipe.photos is not None else None
    stickers = _stickers(recipe.stickers, recipe.sticker_share) if recipe.stickers is not None else None
    width, height = _canvas(rng, recipe.size)
    for _ in range(DRAWS):
        made = _compose(rng, recipe, library, stickers, width, height)
        sprites, scene, labels_HW = _settle(made.sprites, width, height, ordinal)
        if len(sprites) < FEWEST_OBJECTS[recipe.scenario]:
            continue
        expressions = write_expressions(rng, scene, _setting(recipe, library, made))
        if sum(e.referent is not None for e in expressions) >= FEWEST[recipe.scenario]:
            picture = paint(rng, sprites, width, height, made.backdrop_hw3)
            if recipe.reworded:
                # by numbers of its own: those that follow, of the JPEG's quality, stay as they are
                expressions = reworded(rng.spawn(1)[0], expressions, scene, recipe.reworded)
            return Drawn(scene, labels_HW, picture, tuple(expressions))
    raise AssertionError(f"no scene of {recipe.size} pixels could be drawn for picture {ordinal}")


def _compose(
    rng: Generator, recipe: Recipe, library: PhotoLibrary | None, stickers: Stickers | None, width: int, height: int
) -> Collage:
    if library is not None:
        return collage(rng, library, width, height, recipe.bent, stickers)
    drafts = plan(rng, width, height, recipe.scenario)
    outline = int(rng.integers(1, 4)) if coin(rng, 0.35) else 0
    return Collage([drawn(rng, draft, outline, recipe.bent, stickers) for draft in drafts])


def _setting(recipe: Recipe, library: PhotoLibrary | None, made: Collage) -> Setting:
    if library is None:
        return Setting(recipe.scenario, no_target=recipe.no_target)
    on_photo = made.backdrop_hw3 is not None
    kinds = tuple(library.kinds) if on_photo else tuple(sorted({*library.kinds, *KINDS}))
    return Setting(recipe.scenario, kinds, on_photo, recipe.no_target)


@lru_cache(maxsize=1)
def _library(folder: Path) -> PhotoLibrary:
    """A worker reads it once."""
    return PhotoLibrary(folder)


def _settle(sprites: list[Sprite], width: int, height: int, ordinal: int) -> tuple[list[Sprite], Scene, Labels]:
    """Takes objects away until all that are left are seen well enough; those of a photograph, until they are seen."""
    while True:
        canvas = stack(sprites, width, height)
        labels_HW = shrink(canvas, len(sprites))
        scene = describe(sprites, canvas, labels_HW, ordinal)
        clear = set(scene.referents())
        seen = [item for i, item in enumerate(sprites) if i in clear or (item.fixed and scene.objects[i].area)]
        if len(seen) == len(sprites):
            return sprites, scene, labels_HW
        sprites = seen


def _canvas(rng: Generator, size: int) -> tuple[int, int]:
    """Three quarters of the pictures are square, the others are 4:3 either way."""
    shorter = size * 3 // 4
    return ((size, shorter), (shorter, size), *[(size, size)] * 6)[int(rng.integers(8))]


@lru_cache(maxsize=1)
def _stickers(folder: Path, share: float) -> Stickers:
    """A worker reads them once."""
    return Stickers(folder, share)


def refs_of(drawn: Drawn, image: str, ids_per_image: int = IDS["mix"]) -> list[Ref]:
    """One ref per object that an expression is about, and one for all that mean nothing."""
    scene = drawn.scene
    ids = scene.image_id * ids_per_image
    refs = []
    for index, group in groupby(enumerate(drawn.expressions), key=lambda pair: pair[1].referent):
        pairs, thing = list(group), None if index is None else scene.objects[index]
        ref = Ref(
            image=image,
            image_id=scene.image_id,
            width=scene.width,
            height=scene.height,
            ref_id=ids + (ids_per_image - 1 if index is None else index),
            ann_ids=() if index is None else (ids + index,),
            category=thing.kind if thing else "",
            bbox=thing.bbox if thing else (0.0, 0.0, 0.0, 0.0),
            segmentation=encode_mask(drawn.labels_HW == index) if thing else None,
            expressions=tuple(e.text for _, e in pairs),
            sent_ids=tuple(ids + position for position, _ in pairs),
            kinds=tuple(e.label for _, e in pairs),
            anchors=tuple(_anchor_mask(drawn, e.meaning.relation) for _, e in pairs),
        )
        refs.append(ref)
    return refs


def _anchor_mask(drawn: Drawn, relation: Relation | None) -> RLE | None:
    """Of all that the relation names beside the referent."""
    if relation is None:
        return None
    return encode_mask(np.isin(drawn.labels_HW, anchors_of(relation, drawn.scene)))


def _draw_chunk(task: Task) -> list[Saved]:
    """Draws and saves the scenes from `first` up to `last`; runs in a worker."""
    done = []
    for ordinal in range(task.first, task.last):
        rng = np.random.default_rng([task.seed, ordinal])
        drawn = draw_scene(rng, ordinal, task.recipe)
        image = f"{split_of(ordinal)}/{ordinal:06d}.jpg"
        quality = int(rng.integers(*JPEG_QUALITY))
        _, data = cv2.imencode(".jpg", drawn.picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        (task.folder / image).write_bytes(data.tobytes())
        done.append(Saved(split_of(ordinal), refs_of(drawn, image, IDS[task.recipe.scenario]), drawn.scene.to_json()))
    return done


def generate_scenes(
    directory: Path,
    *,
    images: int,
    seed: int,
    recipe: Recipe = Recipe(),
    workers: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Draws a data set of `images` pictures into `directory` and returns its manifest.

    The bytes depend on the number of pictures, the seed, the recipe and what its folders hold, not on the number of
    workers (default: one per core). `progress` is called with the pictures done and the pictures in all. Workers are
    spawned: a script that calls this needs `if __name__ == "__main__"`. Raises VLFormerError for what cannot be drawn.
    """
    _check(images, seed, recipe)
    names = f"seed{seed}" if recipe.scenario == "mix" else f"{recipe.scenario}-seed{seed}"
    with PreparedWriter(directory, dataset="scenes", split_by=names, overwrite=overwrite) as writer:
        folder = writer.folder / writer.manifest["image_root"]
        for split in SPLITS:
            (folder / split).mkdir(parents=True)
        starts = range(0, images, CHUNK)
        tasks = [Task(folder, first, min(first + CHUNK, images), seed, recipe) for first in starts]
        with closing(run_chunks(_draw_chunk, tasks, workers)) as chunks:  # ends the workers whatever happens
            _collect(writer.folder, chunks, images, progress)
        for split in SPLITS:
            waiting = writer.folder / f"{split}.refs"
            with waiting.open(encoding="utf-8") as lines:
                writer.write_split(split, (Ref.from_json(json.loads(line)) for line in lines))
            waiting.unlink()
        writer.manifest["sources"] = _hashes(recipe)
        writer.manifest["scenes"] = {"images": images, "seed": seed, **_as_json(recipe)}
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


def _hashes(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of what was read: of the annotations, and of the list of the stickers' hashes."""
    found = {}
    if recipe.photos is not None:
        found["instances.json"] = file_sha256(recipe.photos / "instances.json")
    if recipe.stickers is not None:
        paths = sticker_files(recipe.stickers)
        lines = "".join(f"{file_sha256(path)}  {path.parent.name}/{path.name}\n" for path in paths)
        found["stickers"] = hashlib.sha256(lines.encode()).hexdigest()
    return found


def _as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what is as always: the bytes of a manifest do not change when the recipe gets a field."""
    said = {"size": recipe.size, "scenario": recipe.scenario}
    more: dict[str, Any] = {name: getattr(recipe, name) for name in ("bent", "no_target", "reworded")}
    more |= {"photos": str(recipe.photos or "")}
    if recipe.stickers is not None:
        more |= {"stickers": str(recipe.stickers), "sticker_share": recipe.sticker_share}
    return {**said, **{name: value for name, value in more.items() if value}}


def _check(images: int, seed: int, recipe: Recipe) -> None:
    if images < 1:
        raise VLFormerError(f"{images} pictures cannot be drawn: ask for at least 1")
    if seed < 0:
        raise VLFormerError(f"the seed {seed} is negative: use 0 or more")
    if recipe.size < SMALLEST:
        raise VLFormerError(f"pictures of {recipe.size} pixels are too small to draw in: use at least {SMALLEST}")
    if recipe.scenario not in FEWEST_OBJECTS:
        raise VLFormerError(f"there is no scenario {recipe.scenario!r}; there are: {', '.join(FEWEST_OBJECTS)}")
    shares = ("bent", "no_target", "reworded", "sticker_share")
    parts: dict[str, float] = {name: getattr(recipe, name) for name in shares}
    for name, value in parts.items():
        if not 0 <= value <= 1:
            raise VLFormerError(f"{name} is {value}: it is a part, from 0 to 1")
    if (recipe.scenario == "photos") != (recipe.photos is not None):
        raise VLFormerError("the scenario photos, and no other, needs a folder with images/ and instances.json")
    if recipe.photos is not None:
        _library(recipe.photos)  # what is wrong with it is said before anything is written
    if recipe.stickers is not None:
        _stickers(recipe.stickers, recipe.sticker_share)
