"""Photographs in scenes: their own things, as COCO's annotations outline them, and cut-outs of them pasted elsewhere.

Letters: H W pixels of the photograph, h w pixels of one cut-out.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from vlformer_cli.data.images import read_image
from vlformer_cli.data.rle import decode_rle, polygons_to_rle, rle_bbox
from vlformer_cli.data.scenes.backgrounds import Picture
from vlformer_cli.data.scenes.objects import SIZES
from vlformer_cli.data.scenes.plan import Draft, own_scale, pick, unit_of
from vlformer_cli.data.scenes.render import ZOOM, Sprite
from vlformer_cli.data.scenes.shapes import BODY, coin, u
from vlformer_cli.data.sources.coco import CocoAnnotation, CocoImage, read_instances
from vlformer_cli.types import RLE, VLFormerError

KIND_OF = {
    "airplane": "plane",
    "cell phone": "phone",
    "dining table": "table",
    "handbag": "bag",
    "potted plant": "plant",
    "sports ball": "ball",
    "teddy bear": "bear",
}
"""COCO's categories that are drawn kinds under another name; all others keep theirs."""
LEFT_OUT = {"bear"}  # the animal: its name is the drawn teddy's; a picture with one is not used
SMALLEST = 40  # pixels of a cut-out's longer side in its photograph
ENLARGED = 2.0  # the most that a cut-out is enlarged
MOST_THINGS = 40  # a photograph with more of them is not used


class Colour(NamedTuple):
    """Bounds of hue (degrees, low to high through 0 if low > high), saturation and value."""

    name: str
    hue: tuple[float, float]
    saturation: tuple[float, float]
    value: tuple[float, float]


SEEN_COLOURS = (
    Colour("black", (0, 360), (0.0, 1.0), (0.0, 0.2)),
    Colour("white", (0, 360), (0.0, 0.14), (0.8, 1.0)),
    Colour("gray", (0, 360), (0.0, 0.14), (0.25, 0.7)),
    Colour("red", (348, 10), (0.55, 1.0), (0.35, 1.0)),
    Colour("orange", (17, 38), (0.65, 1.0), (0.75, 1.0)),
    Colour("yellow", (45, 65), (0.5, 1.0), (0.6, 1.0)),
    Colour("green", (75, 160), (0.25, 1.0), (0.22, 1.0)),
    Colour("blue", (200, 250), (0.35, 1.0), (0.3, 1.0)),
    Colour("pink", (315, 352), (0.2, 0.55), (0.75, 1.0)),
    Colour("brown", (10, 38), (0.3, 1.0), (0.2, 0.55)),
)
"""What a pixel of a photograph is called: narrower than a person would be, with gaps between the names."""
MOSTLY, HARDLY = 0.6, 0.15
"""A thing has a colour where that name fits so much of it, and no other name more than so little."""
UNNAMED = {"person"}  # nobody is called by the colour of their clothes


@dataclass(frozen=True, slots=True)
class Thing:
    """One annotated thing of a photograph."""

    kind: str
    colour: str
    """Empty where no one name fits."""
    box: tuple[int, int, int, int]
    """Left, top, right, bottom in pixels of the photograph."""
    mask_hw: NDArray[np.bool_]
    """Within the box."""


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph and what is in it."""

    picture_HW3: Picture
    things: dict[int, Thing]
    """By annotation id."""


@dataclass(frozen=True, slots=True)
class View:
    """A photograph as the background of a scene."""

    backdrop_hw3: Picture
    """At twice the size, as sprites are."""
    sprites: tuple[Sprite, ...]
    """Its own things."""


class PhotoLibrary:
    """The photographs of a folder with `images/` and `instances.json`. Pixels are read when they are needed."""

    def __init__(self, folder: Path) -> None:
        """Raises VLFormerError where the folder holds no such data, or nothing that can be cut out."""
        coco = read_instances(folder / "instances.json")
        self.folder = folder / "images"
        of_image: dict[int, list[CocoAnnotation]] = defaultdict(list)
        for annotation in coco.annotations.values():
            of_image[annotation.image_id].append(annotation)
        self._entries = [
            (image, of_image[image.image_id])
            for image in sorted(coco.images.values(), key=lambda one: one.image_id)
            if 0 < len(of_image[image.image_id]) <= MOST_THINGS
            and not any(one.category in LEFT_OUT or one.is_crowd for one in of_image[image.image_id])
        ]
        self.kinds = sorted({KIND_OF.get(name, name) for name in coco.categories.values()} - LEFT_OUT)
        """All that was looked for in the photographs: what is not annotated is not there."""
        self._spots: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, (image, outlined) in enumerate(self._entries):
            for one in outlined:
                if not one.category:
                    raise VLFormerError(f"{folder}: annotation {one.ann_id} has no category: name it in instances.json")
                left, top, width, height = rle_bbox(self._mask(image, one))
                edges = left, top, image.width - left - width, image.height - top - height
                if min(edges) > 1 and max(width, height) >= SMALLEST:
                    self._spots[KIND_OF.get(one.category, one.category)].append((number, one.ann_id))
        self.cut_kinds = sorted(self._spots)
        """The kinds of which there are cut-outs."""
        if not self._spots:
            raise VLFormerError(
                f"{folder}: no annotated thing can be cut out: none is whole and {SMALLEST} pixels long"
            )

    def __len__(self) -> int:
        return len(self._entries)

    @lru_cache(maxsize=256)  # noqa: B019 -- a library lives as long as its worker
    def photo(self, number: int) -> Photo:
        """One photograph with its things."""
        image, annotations = self._entries[number]
        picture_HW3 = read_image(self.folder / image.file_name)
        if picture_HW3.shape[:2] != (image.height, image.width):
            raise VLFormerError(f"{self.folder / image.file_name} is not of the size in instances.json: fetch it again")
        found = {one.ann_id: _thing(picture_HW3, one, decode_rle(self._mask(image, one))) for one in annotations}
        return Photo(picture_HW3, {ann_id: thing for ann_id, thing in found.items() if thing is not None})

    def _mask(self, image: CocoImage, annotation: CocoAnnotation) -> RLE:
        try:
            return polygons_to_rle(annotation.segmentation, image.height, image.width)
        except VLFormerError as error:
            where = f"{self.folder.parent / 'instances.json'}: annotation {annotation.ann_id} of {image.file_name}"
            raise VLFormerError(f"{where}: {error}") from error

    def draw_thing(self, rng: Generator, kind: str | None = None) -> tuple[Thing, Picture] | None:
        """A thing that can be pasted, all kinds alike likely, and its pixels; None if there is none of the kind."""
        kind = pick(rng, sorted(self._spots)) if kind is None else kind
        if kind not in self._spots:
            return None
        number, ann_id = pick(rng, self._spots[kind])
        photo = self.photo(number)
        thing = photo.things[ann_id]
        left, top, right, bottom = thing.box
        return thing, photo.picture_HW3[top:bottom, left:right]


def _thing(picture_HW3: Picture, annotation: CocoAnnotation, mask_HW: NDArray[np.bool_]) -> Thing | None:
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    if not len(rows):
        return None
    left, top, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    mask_hw = mask_HW[top:bottom, left:right].copy()
    kind = KIND_OF.get(annotation.category, annotation.category)
    colour = "" if kind in UNNAMED else name_colour(picture_HW3[top:bottom, left:right][mask_hw])
    return Thing(kind, colour, (left, top, right, bottom), mask_hw)


def name_colour(pixel_P3: NDArray[np.uint8]) -> str:
    """The colour's name that fits most of the pixels (RGB), or an empty one.

    >>> name_colour(np.full((9, 3), (200, 20, 20), np.uint8)), name_colour(np.full((9, 3), (120, 150, 160), np.uint8))
    ('red', '')
    """
    hue_P, saturation_P, value_P = cv2.cvtColor(pixel_P3[None].astype(np.float32) / 255, cv2.COLOR_RGB2HSV)[0].T
    shares = {}
    for name, (low, high), (dull, vivid), (dark, bright) in SEEN_COLOURS:
        turned_P = (hue_P >= low) & (hue_P <= high) if low <= high else (hue_P >= low) | (hue_P <= high)
        fits_P = turned_P & (saturation_P >= dull) & (saturation_P <= vivid) & (value_P >= dark) & (value_P <= bright)
        shares[name] = float(fits_P.mean())
    best, second = sorted(shares, key=lambda name: -shares[name])[:2]
    return best if shares[best] >= MOSTLY and shares[second] <= HARDLY else ""


def view(rng: Generator, library: PhotoLibrary, width: int, height: int) -> View:
    """A photograph cut to the scene's shape, whole or enlarged, mirrored or not: words are made of what is seen."""
    photo = library.photo(int(rng.integers(len(library))))
    tall, wide = photo.picture_HW3.shape[:2]
    fit = max(width * ZOOM / wide, height * ZOOM / tall)
    zoom = fit * (1.0 if coin(rng, 0.6) else u(rng, 1.0, 1.8))
    mirrored = coin(rng)
    picture_HW3 = photo.picture_HW3[:, ::-1] if mirrored else photo.picture_HW3
    size = (max(width * ZOOM, round(wide * zoom)), max(height * ZOOM, round(tall * zoom)))
    x, y = int(rng.integers(size[0] - width * ZOOM + 1)), int(rng.integers(size[1] - height * ZOOM + 1))
    scaled = cv2.resize(np.ascontiguousarray(picture_HW3), size, interpolation=_interpolation(zoom))
    backdrop = np.asarray(scaled[y : y + height * ZOOM, x : x + width * ZOOM], dtype=np.uint8)
    sprites = []
    for thing in sorted(photo.things.values(), key=lambda thing: -int(thing.mask_hw.sum())):  # the largest behind
        left, top, right, bottom = thing.box
        left, right = (wide - right, wide - left) if mirrored else (left, right)
        mask_hw = thing.mask_hw[:, ::-1] if mirrored else thing.mask_hw
        tones = _tones(mask_hw, (max(1, round((right - left) * zoom)), max(1, round((bottom - top) * zoom))))
        spot = (round(left * zoom) - x, round(top * zoom) - y)
        if not (-tones.shape[1] < spot[0] < width * ZOOM and -tones.shape[0] < spot[1] < height * ZOOM):
            continue  # cut off
        extent = max(tones.shape) / ZOOM
        centre = ((spot[0] + tones.shape[1] / 2) / ZOOM, (spot[1] + tones.shape[0] / 2) / ZOOM)
        size_word = _size_word(thing.kind, extent, unit_of(width, height))
        sprites.append(
            Sprite(Draft(thing.kind, thing.colour, size_word, "", extent, *centre), tones, *spot, fixed=True)
        )
    return View(backdrop, tuple(sprites))


def cut_out(rng: Generator, found: tuple[Thing, Picture], draft: Draft, unit: float) -> Sprite:
    """A thing of a photograph at a draft's place and size, with the colour that it has.

    `unit`: of the scene, as `unit_of` gives it.
    """
    thing, pixels_hw3 = found
    zoom = min(draft.extent * ZOOM / max(thing.mask_hw.shape), ENLARGED)
    size = (max(2, round(thing.mask_hw.shape[1] * zoom)), max(2, round(thing.mask_hw.shape[0] * zoom)))
    pixels = cv2.resize(pixels_hw3, size, interpolation=_interpolation(zoom))
    tones = _tones(thing.mask_hw, size)
    if coin(rng):
        pixels, tones = pixels[:, ::-1], np.ascontiguousarray(tones[:, ::-1])
    spot = round(draft.x * ZOOM - size[0] / 2), round(draft.y * ZOOM - size[1] / 2)
    gain = np.clip(pixels * u(rng, 0.85, 1.15), 0, 255).astype(np.uint8)
    extent = max(size) / ZOOM  # a small cut-out is not enlarged to the size that was planned
    looks = Draft(thing.kind, thing.colour, _size_word(thing.kind, extent, unit), "", extent, draft.x, draft.y)
    return Sprite(looks, tones, *spot, pixels_hw3=gain)


def _size_word(kind: str, extent: float, unit: float) -> str:
    """The class of a thing whose longest side is `extent` pixels; empty between the classes."""
    extent /= unit * own_scale(kind)
    return next((word for word, low, high in _CLASSES if low <= extent <= high), "")


_CLASSES = (("small", 0.0, SIZES["small"][1]), ("mid", *SIZES["mid"]), ("big", SIZES["big"][0], 1e9))


def _tones(mask_hw: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.uint8]:
    """BODY where at least half of a pixel is the thing's. `size`: width and height."""
    soft = cv2.resize(mask_hw.astype(np.uint8) * 255, size, interpolation=cv2.INTER_AREA)
    return np.asarray((soft >= 128) * np.uint8(BODY), dtype=np.uint8)


def _interpolation(zoom: float) -> int:
    return int(cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR)
